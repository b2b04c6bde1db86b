//! `GET /cortex/v1/fleet`: the fleet as it stands, for people and scripts.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use wire_api::Dialect;
use wire_api::node::models::ModelState;

use super::{Gateway, error};
use crate::fleet::gauge::BreakerState;
use crate::fleet::identity::now_ms;
use crate::fleet::view::{FleetView, NodeView};

/// The fleet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FleetStatus {
    /// Version of cortex.
    pub version: String,
    /// The router in use.
    pub router: String,
    /// The evictor in use.
    pub evictor: String,
    /// Requests under way through this gateway.
    pub inflight: u64,
    /// The nodes, by name.
    pub nodes: Vec<NodeStatus>,
    /// How gateways agree.
    pub coordinator: crate::coordinator::Standing,
    /// Loads under way: model and what it is doing.
    pub loads: Vec<(String, String)>,
    /// The last changes of what is loaded where, newest first.
    pub changes: Vec<serde_json::Value>,
}

/// A node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Where it is reached.
    pub endpoint: String,
    /// `up`, `suspect`, `down`, `unknown`.
    pub health: String,
    /// It takes no new work.
    pub draining: bool,
    /// Requests are held back after failures in a row.
    pub breaker_open: bool,
    /// Why the last poll failed.
    pub fault: Option<String>,
    /// How long ago it was heard of.
    pub heard_ms_ago: Option<u64>,
    /// Requests of this gateway under way there.
    pub inflight: u32,
    /// Its devices.
    pub devices: Vec<DeviceStatus>,
    /// What is on it.
    pub models: Vec<ResidentStatus>,
}

/// A device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceStatus {
    /// Its id.
    pub id: String,
    /// Its product name.
    pub name: String,
    /// All memory.
    pub total_bytes: u64,
    /// Free memory.
    pub free_bytes: u64,
}

/// A model on a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResidentStatus {
    /// What the node calls it.
    pub id: String,
    /// How it stands.
    pub state: ModelState,
    /// Never evicted.
    pub pinned: bool,
    /// Memory it holds.
    pub bytes: u64,
    /// Devices it is on.
    pub devices: Vec<String>,
    /// Requests under way.
    pub inflight: u32,
    /// Requests waiting.
    pub queued: u32,
    /// Requests since the load.
    pub requests_total: u64,
    /// Tokens per second of one sequence.
    pub decode_tokens_per_second: f32,
    /// From arrival to first token, in milliseconds, as the node measured it.
    pub first_token_ms: f32,
    /// How far its load has come, 0 to 1.
    pub progress: Option<f32>,
    /// The phase of its load.
    pub phase: Option<String>,
    /// Why it failed.
    pub failure: Option<String>,
}

/// Answers with the fleet, to everybody who may ask for anything.
pub async fn fleet(State(gateway): State<Arc<Gateway>>, headers: HeaderMap) -> Response {
    match gateway.keys.load().authenticate(&headers) {
        Ok(_) => Json(status(&gateway)).into_response(),
        Err(refused) => error::response(&refused, Dialect::OpenAi, ""),
    }
}

/// The fleet as it stands.
pub fn status(gateway: &Gateway) -> FleetStatus {
    let view: Arc<FleetView> = gateway.fleet.view();
    let loads = gateway.placement.flights().list();
    let changes = gateway.placement.decisions().changes(50);
    FleetStatus {
        version: env!("CARGO_PKG_VERSION").into(),
        router: gateway.placement.router().name().into(),
        evictor: gateway.placement.evictor().name().into(),
        inflight: gateway.fleet.gauges().inflight(),
        nodes: view.nodes.iter().map(|node| node_status(&view, node)).collect(),
        coordinator: gateway.placement.coordinator().standing(),
        loads: loads.into_iter().map(|(model, flight)| (model, flight.line())).collect(),
        changes: changes.iter().filter_map(|change| serde_json::to_value(change).ok()).collect(),
    }
}

fn node_status(view: &FleetView, node: &NodeView) -> NodeStatus {
    // Pinned by this gateway's administrator, or by the node's own.
    let pinned = |id: &str| {
        let replicas = view.model(id).map_or(&[][..], |model| &model.replicas);
        replicas.iter().any(|replica| replica.node.hash == node.hash && replica.gauge.pinned())
    };
    NodeStatus {
        name: node.name.clone(),
        endpoint: node.endpoint.as_str().to_owned(),
        health: node.health.as_str().to_owned(),
        draining: node.draining(),
        breaker_open: node.gauge.breaker() != BreakerState::Closed,
        fault: node.fault.clone(),
        heard_ms_ago: (node.heard_ms > 0).then(|| now_ms().saturating_sub(node.heard_ms)),
        inflight: node.gauge.inflight(),
        devices: node
            .devices()
            .iter()
            .map(|device| DeviceStatus {
                id: device.id.0.clone(),
                name: device.name.clone(),
                total_bytes: device.memory_total_bytes,
                free_bytes: device.memory_free_bytes,
            })
            .collect(),
        models: node.status.models.iter().map(|model| resident_status(model, pinned(&model.id.0))).collect(),
    }
}

fn resident_status(model: &wire_api::node::models::ModelStatus, pinned: bool) -> ResidentStatus {
    let loading = matches!(model.state, ModelState::Loading | ModelState::Recovering);
    let progress = model.progress.as_ref().filter(|_| loading);
    ResidentStatus {
        id: model.id.0.clone(),
        state: model.state,
        pinned: model.pinned || pinned,
        bytes: model.memory.bytes(),
        devices: model.details.iter().flat_map(|d| d.devices.iter().map(|id| id.0.clone())).collect(),
        inflight: model.activity.inflight,
        queued: model.activity.queued,
        requests_total: model.activity.requests_total,
        decode_tokens_per_second: model.throughput.decode_tokens_per_second,
        first_token_ms: model.throughput.first_token_ms,
        progress: progress.and_then(|progress| progress.fraction()),
        phase: progress.map(|progress| progress.phase.as_str().to_owned()),
        failure: model.failure.as_ref().map(|failure| failure.message.clone()),
    }
}
