//! Sequences: forks, trims, cancellation, and that freed ones leave nothing behind.

use std::sync::atomic::AtomicU32;

use plugin_loader::{ErrorKind, LoadOptions, Model, StepOutput, Want};

use super::stage::{Stage, feed, logits_of, row, same, tokens};
use crate::promise::{Asked, Outcome, Promise, broken, ensure, skipped};
use crate::witness;

/// Sequences made and freed in search of growth.
const ROUNDS: u32 = 600;

pub(crate) const PROMISES: &[Promise<Stage>] = &[
    Promise {
        name: "fork-continues",
        says: "A fork where the sequence stands goes on as the sequence would, and neither disturbs the other.",
        check: fork_continues,
    },
    Promise {
        name: "fork-and-trim-as-declared",
        says: "fork and trim at an earlier length work if the model says so, and are refused if not.",
        check: fork_and_trim,
    },
    Promise {
        name: "cancel",
        says: "A cancelled step says so, and the model goes on working.",
        check: cancel,
    },
    Promise {
        name: "sequences-leave-nothing",
        says: "Sequences made and freed leave no memory behind, and the model's own figures return to zero.",
        check: sequences_leave_nothing,
    },
    Promise {
        name: "out-of-memory",
        says: "Beyond its budget it says out of memory, stays within it, and works again once there is room.",
        check: out_of_memory,
    },
];

fn fork_continues(stage: &mut Stage) -> Outcome {
    let model = stage.model()?;
    let prompt = tokens(model, 20, 11);
    let whole = logits_of(model, &prompt)?;
    let sequence = model.sequence_new().asked("a new sequence")?;
    feed(model, sequence, 0, &prompt[..15], Want::NOTHING)?;
    let forked = model.fork(sequence, 15).asked("a fork where the sequence stands")?;
    let other = tokens(model, 9, 12);
    feed(model, forked, 15, &other, Want::NOTHING)?;
    let logits = feed(model, sequence, 15, &prompt[15..], Want::LAST)?;
    same("a sequence whose fork went elsewhere", &whole, &logits)?;
    let frozen = model.fork(sequence, 20).asked("a fork")?;
    model.sequence_free(sequence);
    let again = model.fork(frozen, 20).asked("a fork of a fork")?;
    let next = tokens(model, 1, 13);
    let continued = feed(model, again, 20, &next, Want::LAST)?;
    let expected = logits_of(model, &[&prompt[..], &next].concat())?;
    same("a snapshot restored after its origin was freed", &expected, &continued)?;
    [forked, frozen, again].into_iter().for_each(|id| model.sequence_free(id));
    Ok(())
}

fn fork_and_trim(stage: &mut Stage) -> Outcome {
    let model = stage.model()?;
    let (prompt, other) = (tokens(model, 24, 14), tokens(model, 6, 15));
    let sequence = model.sequence_new().asked("a new sequence")?;
    feed(model, sequence, 0, &prompt, Want::NOTHING)?;
    match model.fork(sequence, 25) {
        Err(error) if error.kind == ErrorKind::InvalidInput => {}
        Err(error) => return broken(format!("a fork beyond the end failed with {:?}: {error}", error.kind)),
        Ok(_) => return broken("a fork beyond the end succeeded"),
    }
    if model.info().fork_any_length == 0 {
        for (verb, outcome) in
            [("fork", model.fork(sequence, 10).map(drop)), ("trim", model.trim(sequence, 10))]
        {
            match outcome {
                Err(error) if error.kind == ErrorKind::Unsupported => {}
                Err(error) => return broken(format!("{verb} to 10 failed with {:?}: {error}", error.kind)),
                Ok(()) => return broken(format!("{verb} to 10 worked although fork_any_length is 0")),
            }
        }
        model.sequence_free(sequence);
        return Ok(());
    }
    for length in [10usize, 1, 16] {
        let expected = logits_of(model, &[&prompt[..length], &other].concat())?;
        let forked = model.fork(sequence, length as u32).asked("a fork at an earlier length")?;
        let logits = feed(model, forked, length, &other, Want::LAST)?;
        same(&format!("a fork at {length} of 24"), &expected, &logits)?;
        let trimmed = model.fork(sequence, 24).asked("a fork")?;
        model.trim(trimmed, length as u32).asked("a trim to an earlier length")?;
        let logits = feed(model, trimmed, length, &other, Want::LAST)?;
        same(&format!("a trim to {length} of 24"), &expected, &logits)?;
        [forked, trimmed].into_iter().for_each(|id| model.sequence_free(id));
    }
    model.sequence_free(sequence);
    Ok(())
}

fn cancel(stage: &mut Stage) -> Outcome {
    let model = stage.model()?;
    let prompt = tokens(model, 30, 16);
    let expected = logits_of(model, &prompt)?;
    let sequence = model.sequence_new().asked("a new sequence")?;
    let step = [row(sequence, 0, prompt.len(), Want::LAST)];
    match model.step(&step, &prompt, &[], &AtomicU32::new(1), &mut StepOutput::default()) {
        Err(error) if error.kind == ErrorKind::Cancelled => {}
        Err(error) => return broken(format!("a cancelled step failed with {:?}: {error}", error.kind)),
        Ok(()) => return broken("a step went on although it was cancelled before it began"),
    }
    model.sequence_free(sequence);
    same("a prompt before and after a cancelled step", &expected, &logits_of(model, &prompt)?)
}

fn sequences_leave_nothing(stage: &mut Stage) -> Outcome {
    let model = stage.model()?;
    let before = model.stats();
    let mut settled = 0;
    for round in 0..ROUNDS {
        let sequence = model.sequence_new().asked("a new sequence")?;
        let prompt = tokens(model, 2, round);
        feed(model, sequence, 0, &prompt, Want::NOTHING)?;
        let forked = model.fork(sequence, 2).asked("a fork")?;
        model.sequence_free(sequence);
        model.sequence_free(forked);
        model.sequence_free(forked); // an id that names nothing is ignored
        if round == ROUNDS / 6 {
            settled = witness::resident_bytes();
        }
    }
    let grown = witness::resident_bytes().saturating_sub(settled);
    ensure(grown <= 6 << 20, || format!("memory grew by {grown} bytes over {ROUNDS} sequences"))?;
    let after = model.stats();
    ensure(after.sequences == before.sequences && after.state_bytes == before.state_bytes, || {
        format!("stats went from {before:?} to {after:?}")
    })
}

fn out_of_memory(stage: &mut Stage) -> Outcome {
    stage.model()?;
    let source = stage.source()?;
    let plan = stage.plugin.plan(stage.index, &source, &stage.options()).asked("plan")?;
    // Room for two sequences of 64 tokens.
    let budget = 2 * (plan.state_bytes_per_sequence + 64 * plan.kv_bytes_per_token);
    if budget == 0 {
        return skipped("its sequences take no memory");
    }
    let options = LoadOptions { state_bytes: budget, ..stage.options() };
    let mut model = stage.load(&options)?.asked("a load with a budget")?;
    let prompt = tokens(&model, 64, 17);
    let refused = fill(&mut model, &prompt, budget)?;
    ensure(refused, || format!("24 sequences of 64 tokens went into {budget} bytes without a refusal"))?;
    let sequence = model.sequence_new().asked("a new sequence after the others were freed")?;
    feed(&mut model, sequence, 0, &prompt[..4], Want::LAST).map(drop)
}

/// Feeds sequences until one is refused, and frees them all. Whether one was.
fn fill(model: &mut Model, prompt: &[u32], budget: u64) -> Result<bool, crate::promise::End> {
    let mut ids = Vec::new();
    let mut refusal = None;
    while refusal.is_none() && ids.len() < 24 {
        match model.sequence_new() {
            Err(error) => refusal = Some(error),
            Ok(sequence) => {
                ids.push(sequence);
                let step = [row(sequence, 0, prompt.len(), Want::LAST)];
                let mut output = StepOutput::default();
                let outcome = model.step(&step, prompt, &[], &AtomicU32::new(0), &mut output);
                refusal = outcome.err().or_else(|| output.error(0));
            }
        }
        let held = model.stats().state_bytes;
        // A sequence that was refused may keep its empty shell.
        ensure(held <= budget + budget / 2, || format!("{held} bytes of state are held of {budget}"))?;
    }
    ids.into_iter().for_each(|id| model.sequence_free(id));
    match refusal {
        None => Ok(false),
        Some(error) if error.kind == ErrorKind::OutOfMemory => Ok(true),
        Some(error) => broken(format!("beyond its budget it failed with {:?}: {error}", error.kind)),
    }
}
