//! `neuron unload`: a model out of a running node.

use wire_api::node::load::{UnloadRequest, UnloadResponse};
use wire_api::node::routes;

use super::{ask, load};
use crate::lifecycle::bytes;

/// The command's arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  neuron unload smol
  neuron unload smol --drain-s 0        cut its requests off
  neuron unload smol --if-idle          leave it when it has work")]
pub struct Options {
    #[command(flatten)]
    ask: ask::Ask,
    /// Id or alias.
    model: String,
    /// Seconds its requests get to finish; the node's default if left out.
    #[arg(long, value_name = "SECONDS")]
    drain_s: Option<u64>,
    /// Refuse when it has requests in flight.
    #[arg(long)]
    if_idle: bool,
}

/// Unloads.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let client = options.ask.client()?;
    let request = UnloadRequest {
        model: load::absolute(&options.model, client.endpoint()).into(),
        drain_timeout_ms: options.drain_s.map(|seconds| seconds.saturating_mul(1000)),
        only_if_idle: options.if_idle,
        wait: true,
        ..UnloadRequest::default()
    };
    let answer: UnloadResponse = client.post(routes::UNLOAD, &request).await?;
    if options.ask.json {
        println!("{}", serde_json::to_string(&answer)?);
    } else {
        println!("{} is gone, {} are free again", answer.model, bytes(answer.freed_bytes));
    }
    Ok(())
}
