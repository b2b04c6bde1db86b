//! A second node for a request whose first is slow to answer.
//!
//! Off unless `proxy.hedge_after_ms` is set. Only until an answer begins, only between neurons, which keep
//! nothing of a request once it is over, and only for a share of all requests: doubling the work of an overloaded
//! fleet is how it stays overloaded. The slower of the two is dropped, which cancels its sequence.

use std::time::Duration;

use super::Gateway;
use super::inference::{Asked, Elsewhere, Job, ask_node};
use crate::config::NodeKind;
use crate::placement::route::{Placed, Step};

/// Asks the node chosen, and another beside it when that is slow. Who was asked is in `tried` afterwards.
pub(super) async fn ask(
    gateway: &Gateway,
    job: &Job,
    placed: Placed,
    tried: &mut Vec<u64>,
    more: bool,
) -> Result<Asked, Elsewhere> {
    let after = Duration::from_millis(gateway.config.proxy.hedge_after_ms);
    let neuron = placed.node.kind == NodeKind::Neuron;
    if after.is_zero() || !neuron {
        return ask_node(gateway, job, placed, more).await;
    }
    // Apart from the usual way, so that a request that is not hedged does not carry two.
    Box::pin(ask_twice(gateway, job, placed, tried, more, after)).await
}

async fn ask_twice(
    gateway: &Gateway,
    job: &Job,
    placed: Placed,
    tried: &mut Vec<u64>,
    more: bool,
    after: Duration,
) -> Result<Asked, Elsewhere> {
    gateway.hedges.pay_in();
    let mut first = std::pin::pin!(ask_node(gateway, job, placed, more));
    if let Ok(asked) = tokio::time::timeout(after, &mut first).await {
        return asked;
    }
    let Some(second) = another(gateway, job, tried) else { return first.await };
    let name = second.node.name.clone();
    tried.push(second.node.hash);
    gateway.metrics.hedges.with_label_values(&["sent"]).inc();
    tracing::debug!(request = job.id, node = name, "asked as well");
    let mut second = std::pin::pin!(ask_node(gateway, job, second, more));
    let (won, other) = tokio::select! {
        asked = &mut first => (false, asked),
        asked = &mut second => (true, asked),
    };
    match (other, won) {
        (Ok(asked), won) => {
            if won {
                gateway.metrics.hedges.with_label_values(&["won"]).inc();
            }
            Ok(asked)
        }
        // One of the two said no: the other may still say yes.
        (Err(_), true) => first.await,
        (Err(_), false) => second.await,
    }
}

/// Another neuron that has the model now, if the budget allows it.
fn another(gateway: &Gateway, job: &Job, tried: &[u64]) -> Option<Placed> {
    let view = gateway.fleet.view();
    match gateway.placement.route(&view, &job.model, &job.facts, &job.id, tried) {
        Ok(Step::Go(placed)) if placed.node.kind == NodeKind::Neuron && gateway.hedges.take() => {
            Some(*placed)
        }
        _ => None,
    }
}
