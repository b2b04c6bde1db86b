//! `plan` is total and honest.

use plugin_loader::{ErrorKind, LoadOptions, Plan, PluginError, Source, Want};

use super::stage::{Stage, feed, tokens};
use crate::promise::{Asked, End, Outcome, Promise, broken, ensure};

pub(crate) const PROMISES: &[Promise<Stage>] = &[
    Promise {
        name: "plan-total",
        says: "plan answers any config.json, however broken, with a refusal and never with a panic.",
        check: plan_total,
    },
    Promise {
        name: "plan-steady",
        says: "plan answers the same question the same way.",
        check: |stage| {
            let (first, second) = (plan(stage)?.asked("plan")?, plan(stage)?.asked("plan")?);
            ensure(first == second, || format!("{first:?} once and {second:?} the next time"))
        },
    },
    Promise {
        name: "plan-honest",
        says: "What plan announces is what the loaded model turns out to be and to take.",
        check: plan_honest,
    },
    Promise {
        name: "refuses-unknown-options",
        says: "Options it does not know are refused by name, by plan and by load.",
        check: refuses_unknown_options,
    },
];

fn plan(stage: &Stage) -> Result<Result<Plan, PluginError>, End> {
    let source = stage.source()?;
    Ok(stage.plugin.plan(stage.index, &source, &stage.options()))
}

/// Texts that are no configuration of anything.
pub(crate) fn broken_configs() -> Vec<String> {
    let mut configs: Vec<String> =
        ["", "{", "[]", "null", "42", "\"llama\"", "{}", "{\"model_type\": 7}", "\u{0}", "ÿ😀"]
            .map(str::to_owned)
            .to_vec();
    configs.push("[".repeat(100_000));
    configs.push(format!("{}1{}", "{\"a\":".repeat(2_000), "}".repeat(2_000)));
    configs.push("x".repeat(1 << 20));
    configs
}

pub(crate) fn shown(config: &str) -> String {
    config.chars().take(24).collect()
}

fn plan_total(stage: &mut Stage) -> Outcome {
    for config in broken_configs() {
        let source = Source { config: config.clone(), ..Source::default() };
        match stage.plugin.plan(stage.index, &source, &stage.options()) {
            Ok(_) => return broken(format!("it planned a model from the config {:?}", shown(&config))),
            Err(error) if !matches!(error.kind, ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
                return broken(format!(
                    "the config {:?} was refused as {:?}: {error}",
                    shown(&config),
                    error.kind
                ));
            }
            Err(_) => {}
        }
    }
    Ok(())
}

fn plan_honest(stage: &mut Stage) -> Outcome {
    const LENGTH: usize = 24;
    stage.model()?;
    let plan = plan(stage)?.asked("plan")?;
    let model = stage.model()?;
    let info = *model.info();
    ensure(plan.vocab_size == info.vocab_size, || {
        format!("plan says a vocabulary of {}, the model {}", plan.vocab_size, info.vocab_size)
    })?;
    ensure(info.max_context <= plan.max_context, || {
        format!("plan says at most {} tokens, the model {}", plan.max_context, info.max_context)
    })?;
    ensure(info.weight_bytes <= plan.weight_bytes + plan.weight_bytes / 50 + (1 << 20), || {
        format!("plan says {} bytes of weights, the model {}", plan.weight_bytes, info.weight_bytes)
    })?;
    let sequence = model.sequence_new().asked("a new sequence")?;
    let tokens = tokens(model, LENGTH, 1);
    feed(model, sequence, 0, &tokens, Want::NOTHING)?;
    let held = model.sequence_bytes(sequence);
    model.sequence_free(sequence);
    // State may come in blocks: up to 256 tokens more than asked for.
    let announced = plan.state_bytes_per_sequence + plan.kv_bytes_per_token * (LENGTH as u64 + 256);
    ensure(held <= announced, || {
        format!("a sequence of {LENGTH} tokens holds {held} bytes; plan announces at most {announced}")
    })
}

fn refuses_unknown_options(stage: &mut Stage) -> Outcome {
    let source = stage.source()?;
    for text in ["{\"no_such_option_at_all\": 1}", "{", "[1]", "7"] {
        let options = LoadOptions { options: text.into(), ..stage.options() };
        let planned = stage.plugin.plan(stage.index, &source, &options).map(drop);
        let loaded = stage.load(&options)?.map(drop);
        for (verb, outcome) in [("plan", planned), ("load", loaded)] {
            match outcome {
                Ok(()) => return broken(format!("{verb} took the options {text}")),
                Err(error) if !matches!(error.kind, ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
                    return broken(format!("{verb} refused the options {text} as {:?}: {error}", error.kind));
                }
                Err(_) => {}
            }
        }
    }
    Ok(())
}
