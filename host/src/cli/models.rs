//! `neuron models`: what a node serves, and how it fares.

use wire_api::node::models::{ModelDetails, ModelState, ModelStatus, NodeModels};
use wire_api::node::routes;

use super::{ask, table};
use crate::lifecycle::bytes;

/// The command's arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  neuron models
  neuron models --json | jq -r '.models[] | select(.state == \"ready\") | .id'")]
pub struct Options {
    #[command(flatten)]
    ask: ask::Ask,
}

/// Prints the models.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let client = options.ask.client()?;
    if options.ask.json {
        let answer: serde_json::Value = client.get(routes::MODELS).await?;
        println!("{answer}");
        return Ok(());
    }
    let answer: NodeModels = client.get(routes::MODELS).await?;
    print!("{}", picture(&answer));
    Ok(())
}

fn picture(node: &NodeModels) -> String {
    if node.models.is_empty() {
        return "no models; load one with `neuron load <model>`\n".into();
    }
    let mut rows = vec![table::row([
        "MODEL", "STATE", "MEMORY", "CONTEXT", "SLOTS", "RUNNING", "QUEUED", "SPEED", "PLUGIN", "DEVICES",
    ])];
    rows.extend(node.models.iter().map(line));
    let mut text = table::columns(&rows);
    for model in &node.models {
        if let Some(failure) = &model.failure {
            text.push_str(&format!("\n{}: {}\n", model.id, failure.message));
        }
        for warning in model.details.iter().flat_map(|details| &details.warnings) {
            text.push_str(&format!("\n{}: {warning}\n", model.id));
        }
    }
    text
}

fn line(model: &ModelStatus) -> Vec<String> {
    let details = model.details.as_ref();
    let mut name = model.id.to_string();
    if !model.aliases.is_empty() {
        name.push_str(&format!(" ({})", model.aliases.join(", ")));
    }
    let speed = model.throughput.decode_tokens_per_second;
    vec![
        name,
        state(model),
        if model.memory.bytes() == 0 { String::new() } else { bytes(model.memory.bytes()) },
        details.map(|details| details.context_tokens.to_string()).unwrap_or_default(),
        details.map(|details| details.slots.to_string()).unwrap_or_default(),
        model.activity.running.to_string(),
        model.activity.queued.to_string(),
        if speed > 0.0 { format!("{speed:.1} tok/s") } else { String::new() },
        details.map(|details| format!("{} {}", details.plugin, details.build)).unwrap_or_default(),
        details.map(devices).unwrap_or_default(),
    ]
}

fn devices(details: &ModelDetails) -> String {
    details.devices.iter().map(|device| device.as_str()).collect::<Vec<_>>().join(",")
}

fn state(model: &ModelStatus) -> String {
    let mut text = format!("{:?}", model.state).to_lowercase();
    if let Some(progress) = model.progress.as_ref().filter(|_| model.state == ModelState::Loading) {
        text.push_str(&format!(" {}", progress.phase));
        if let Some(fraction) = progress.fraction() {
            text.push_str(&format!(" {:.0}%", fraction * 100.0));
        }
    }
    if model.pinned {
        text.push_str(", pinned");
    }
    text
}

#[cfg(test)]
mod tests {
    use wire_api::node::events::{LoadPhase, LoadProgress};
    use wire_api::node::models::Failure;

    use super::*;

    #[test]
    fn the_picture_shows_what_matters() {
        let loading = ModelStatus {
            id: "big".into(),
            aliases: vec!["large".into()],
            state: ModelState::Loading,
            progress: Some(LoadProgress {
                phase: LoadPhase::Read,
                bytes_done: 1,
                bytes_total: 4,
                ..LoadProgress::default()
            }),
            ..ModelStatus::default()
        };
        let failed = ModelStatus {
            id: "gone".into(),
            state: ModelState::Failed,
            failure: Some(Failure { message: "no such file".into(), ..Failure::default() }),
            ..ModelStatus::default()
        };
        let split = ModelStatus {
            id: "split".into(),
            details: Some(ModelDetails {
                plugin: "llama".into(),
                build: "hopper".into(),
                devices: vec!["cuda-0".into(), "cuda-1".into()],
                warnings: vec!["it could be better".into()],
                ..ModelDetails::default()
            }),
            ..ModelStatus::default()
        };
        let text = picture(&NodeModels { models: vec![loading, failed, split], ..NodeModels::default() });
        for expected in [
            "big (large)",
            "loading read 25%",
            "gone: no such file",
            "llama hopper  cuda-0,cuda-1",
            "split: it could be better",
        ] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
        assert!(picture(&NodeModels::default()).contains("neuron load"));
    }
}
