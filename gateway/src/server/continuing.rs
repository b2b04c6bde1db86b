//! The rest of a chat answer from another node, when the one that began it is gone.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method};
use wire_api::node::continuation::{LOG_HEADER, PATH};

use super::Gateway;
use super::inference::Job;
use crate::config::NodeKind;
use crate::fleet::gauge::Ticket;
use crate::fleet::identity::random_bits;
use crate::fleet::view::{NodeView, Replica};
use crate::placement::route::{Placed, Step};
use crate::proxy::continuation::{Elsewhere, Progress};
use crate::proxy::forward::{self, Outgoing};

/// The path whose streams can be gone on with.
const CHAT: &str = "/v1/chat/completions";

/// What it takes to ask for the rest of an answer.
pub(super) struct Replay {
    seed: u64,
    outgoing: Outgoing,
    model_span: Option<std::ops::Range<usize>>,
}

/// Asks for the token log, where the node is one that writes it. What is needed to go on elsewhere.
pub(super) fn prepare(
    node: &NodeView,
    stream: bool,
    outgoing: &mut Outgoing,
    model_span: Option<&std::ops::Range<usize>>,
) -> Option<Replay> {
    let path = outgoing.path.split('?').next().unwrap_or_default();
    if !stream || node.kind != NodeKind::Neuron || path != CHAT {
        return None;
    }
    let seed = random_bits();
    outgoing.headers.insert(LOG_HEADER, HeaderValue::from(seed));
    Some(Replay { seed, outgoing: outgoing.clone(), model_span: model_span.cloned() })
}

/// Finds the rest of an answer that `first` began.
pub(super) fn elsewhere(gateway: &Arc<Gateway>, job: &Job, first: &Placed, replay: Replay) -> Elsewhere {
    let gateway = Arc::clone(gateway);
    let (model, id, facts) = (job.model.clone(), job.id.clone(), job.facts.clone());
    let began = Arc::clone(&first.node);
    let replay = Arc::new(replay);
    let mut tried = vec![first.node.hash];
    Box::new(move |progress| {
        began.gauge.failed();
        let (gateway, replay, began) = (Arc::clone(&gateway), Arc::clone(&replay), Arc::clone(&began));
        let (model, id, facts) = (model.clone(), id.clone(), facts.clone());
        let so_far = tried.clone();
        // Whoever goes on and dies, too, is not asked again; which it is, only the routing below knows.
        let next = gateway.placement.route(&gateway.fleet.view(), &model, &facts, &id, &so_far);
        let placed = match next {
            Ok(Step::Go(placed)) if alike(&gateway, &model, &began, &placed.node) => *placed,
            _ => {
                gateway.metrics.continuations.with_label_values(&["nobody"]).inc();
                return Box::pin(async { None });
            }
        };
        tried.push(placed.node.hash);
        Box::pin(async move {
            let rest = ask(&gateway, placed, &replay, &progress, &id).await;
            let word = if rest.is_some() { "done" } else { "refused" };
            gateway.metrics.continuations.with_label_values(&[word]).inc();
            rest
        })
    })
}

/// Whether both nodes have the same model in the same form: only then are the next words the same.
fn alike(gateway: &Gateway, model: &str, one: &NodeView, other: &NodeView) -> bool {
    let view = gateway.fleet.view();
    let Some(model) = view.model(model) else { return false };
    let form = |replica: &Replica| {
        let details = replica.status.as_ref()?.details.as_ref()?;
        Some((details.architecture.clone(), details.quant.clone(), details.dtype.clone()))
    };
    let same_source = |a: &Replica, b: &Replica| model.spec.is_some() || a.served_as == b.served_as;
    match (model.on(&one.name), model.on(&other.name)) {
        (Some(a), Some(b)) => other.kind == NodeKind::Neuron && same_source(a, b) && form(a) == form(b),
        _ => false,
    }
}

async fn ask(
    gateway: &Gateway,
    mut placed: Placed,
    replay: &Replay,
    progress: &Progress,
    request_id: &str,
) -> Option<(hyper::body::Incoming, Ticket)> {
    let node = placed.node.name.as_str();
    let body: Bytes = match (&placed.rename, &replay.model_span) {
        (Some(name), Some(span)) => wire_api::peek::with_model(&replay.outgoing.body, span, name).into(),
        _ => replay.outgoing.body.clone(),
    };
    let mut outgoing = Outgoing {
        method: Method::POST,
        path: PATH.to_owned(),
        headers: replay.outgoing.headers.clone(),
        body: order(&body, replay.seed, progress).into(),
    };
    outgoing.headers.remove(LOG_HEADER);
    let uri = placed.node.endpoint.uri(&outgoing.path)?;
    let key = gateway.node_keys.get(&placed.node.hash).map_or(&[][..], Vec::as_slice);
    let silence = Some(gateway.config.gateway.idle_timeout());
    match forward::send(&gateway.client, uri, outgoing, key, silence).await {
        Ok(response) if response.status().is_success() => {
            tracing::warn!(
                request = request_id,
                node,
                told = progress.told,
                "another node goes on with an answer"
            );
            placed.ticket.succeeded();
            Some((response.into_body(), placed.ticket))
        }
        Ok(response) => {
            placed.ticket.succeeded();
            tracing::warn!(
                request = request_id,
                node,
                status = response.status().as_u16(),
                "it does not go on"
            );
            None
        }
        Err(error) => {
            placed.ticket.failed();
            tracing::warn!(request = request_id, node, %error, "it does not go on");
            None
        }
    }
}

/// The order to go on. The request is put in as it is: parsing it would cost, and change nothing.
fn order(request: &[u8], seed: u64, progress: &Progress) -> Vec<u8> {
    let rest = serde_json::json!({
        "seed": seed,
        "emitted": progress.emitted,
        "told": progress.told,
        "id": progress.id,
        "created": progress.created,
    })
    .to_string();
    let mut order = b"{\"request\":".to_vec();
    order.extend_from_slice(request);
    order.push(b',');
    order.extend_from_slice(&rest.as_bytes()[1..]);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire_api::node::continuation::ContinueRequest;

    #[test]
    fn an_order_is_read_as_it_was_meant() {
        let progress = Progress { emitted: vec![1, 2], told: 3, id: "chatcmpl-1".into(), created: 4 };
        let read: ContinueRequest =
            serde_json::from_slice(&order(b"{\"model\":\"m\"}", u64::MAX, &progress)).expect("an order");
        assert_eq!(read.request, serde_json::json!({"model": "m"}));
        assert_eq!((read.seed, read.emitted, read.told), (u64::MAX, vec![1, 2], 3));
        assert_eq!((read.id.as_str(), read.created), ("chatcmpl-1", 4));
    }
}
