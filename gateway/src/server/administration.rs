//! What operators ask for: load, unload, drain, and why.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::HeaderMap;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use wire_api::node::models::ModelState;
use wire_api::{ApiError, Dialect, ErrorKind};

use super::{Gateway, error};
use crate::placement::decisions::RouteRecord;
use crate::placement::residency::Flight;
use crate::placement::room::line_of;

/// A model, and perhaps a node.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    model: String,
    #[serde(default)]
    node: Option<String>,
    /// In an unload: refuse when it is in use.
    #[serde(default)]
    only_if_idle: bool,
}

/// A model, perhaps a node, and whether it stays there.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pinning {
    model: String,
    #[serde(default)]
    node: Option<String>,
    #[serde(default = "yes")]
    pinned: bool,
}

fn yes() -> bool {
    true
}

/// Whether a node takes no new work.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Draining {
    draining: bool,
}

fn answer<T: serde::Serialize>(result: Result<T, ApiError>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(refused) => error::response(&refused, Dialect::OpenAi, ""),
    }
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, ApiError> {
    wire_api::node::parse(body)
}

/// Loads a model where placement wants it, or on the node named.
pub async fn load(State(gateway): State<Arc<Gateway>>, headers: HeaderMap, body: Bytes) -> Response {
    match gateway.keys.load().authorize_admin(&headers) {
        Ok(()) => answer(load_model(&gateway, &body).await),
        Err(refused) => answer::<()>(Err(refused)),
    }
}

async fn load_model(gateway: &Gateway, body: &Bytes) -> Result<Value, ApiError> {
    let command: Command = parse(body)?;
    let view = gateway.fleet.view();
    let model = view.model(&command.model).ok_or_else(|| ApiError::model_not_found(&command.model))?;
    match &command.node {
        Some(node) => {
            known_node(gateway, node)?;
            gateway.placement.load_on(&model.id, node).await?;
        }
        None => {
            let mut flight = gateway.placement.make_resident(&model.id);
            let over = |flight: &Flight| matches!(flight, Flight::Ready | Flight::Failed(_));
            match flight.wait_for(over).await.map(|state| state.clone()) {
                Ok(Flight::Failed(error)) => return Err(*error),
                Ok(_) => {}
                Err(_) => return Err(ApiError::new(ErrorKind::Internal, "the load was given up")),
            }
        }
    }
    let view = gateway.fleet.view();
    let nodes: Vec<&str> = view
        .model(&model.id)
        .map(|model| model.replicas.iter().filter(|r| r.serves()).map(|r| r.node.name.as_str()).collect())
        .unwrap_or_default();
    Ok(json!({"model": model.id, "state": ModelState::Ready, "resident_on": nodes}))
}

/// Unloads a model from the node named, or from all.
pub async fn unload(State(gateway): State<Arc<Gateway>>, headers: HeaderMap, body: Bytes) -> Response {
    match gateway.keys.load().authorize_admin(&headers) {
        Ok(()) => answer(unload_model(&gateway, &body).await),
        Err(refused) => answer::<()>(Err(refused)),
    }
}

async fn unload_model(gateway: &Gateway, body: &Bytes) -> Result<Value, ApiError> {
    let command: Command = parse(body)?;
    let view = gateway.fleet.view();
    let model = view.model(&command.model).ok_or_else(|| ApiError::model_not_found(&command.model))?;
    if let Some(node) = &command.node {
        known_node(gateway, node)?;
    }
    let resident = |replica: &&crate::fleet::view::Replica| {
        replica.residency != plugin_loader::Residency::LOADABLE
            && command.node.as_ref().is_none_or(|node| *node == replica.node.name)
    };
    let nodes: Vec<String> = model.replicas.iter().filter(resident).map(|r| r.node.name.clone()).collect();
    for node in &nodes {
        gateway.placement.unload(&model.id, node, "unload", command.only_if_idle).await?;
    }
    Ok(json!({"model": model.id, "unloaded_from": nodes}))
}

/// Keeps a model on the node named, or on all that have it, whoever wants its place; or no longer.
pub async fn pin(State(gateway): State<Arc<Gateway>>, headers: HeaderMap, body: Bytes) -> Response {
    let change = || {
        gateway.keys.load().authorize_admin(&headers)?;
        let command: Pinning = parse(&body)?;
        if let Some(node) = &command.node {
            known_node(&gateway, node)?;
        }
        let view = gateway.fleet.view();
        let model = view.model(&command.model).ok_or_else(|| ApiError::model_not_found(&command.model))?;
        let meant = |name: &str| command.node.as_ref().is_none_or(|node| node == name);
        let replicas = model.replicas.iter().filter(|replica| meant(&replica.node.name));
        let mut nodes = Vec::new();
        for replica in replicas.filter(|r| command.node.is_some() || r.residency.0 == 0) {
            replica.gauge.set_pinned(command.pinned);
            nodes.push(replica.node.name.clone());
        }
        Ok(json!({"model": model.id, "pinned": command.pinned, "nodes": nodes}))
    };
    answer(change())
}

/// Sends a node no new work, or does again.
pub async fn drain(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let change = || {
        gateway.keys.load().authorize_admin(&headers)?;
        let command: Draining = if body.is_empty() { Draining { draining: true } } else { parse(&body)? };
        known_node(&gateway, &name)?;
        gateway.fleet.gauges().node(&name).set_draining(command.draining);
        gateway.fleet.rebuild();
        Ok(json!({"node": name, "draining": command.draining}))
    };
    answer(change())
}

fn known_node(gateway: &Gateway, name: &str) -> Result<(), ApiError> {
    let nodes = gateway.fleet.nodes();
    let names = nodes.iter().map(|node| node.name.as_str());
    if names.clone().any(|known| known == name) {
        return Ok(());
    }
    let advice = crate::config::error::nearest(name, names)
        .map_or_else(String::new, |near| format!("; did you mean '{near}'?"));
    let message = format!("there is no node '{name}'{advice}");
    Err(ApiError::new(ErrorKind::NotFound, message).with_code("node_not_found"))
}

/// Every strategy there is, and which are in use.
pub async fn strategies(State(gateway): State<Arc<Gateway>>) -> Response {
    let placement = &gateway.placement;
    answer(Ok(json!({"router": placement.router().name(), "evictor": placement.evictor().name()})))
}

/// Why a request went where it went: every candidate, its score and terms, for each attempt.
pub async fn explain(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Response {
    if let Err(refused) = gateway.keys.load().authenticate(&headers) {
        return answer::<()>(Err(refused));
    }
    let records = gateway.placement.decisions().routes_of(&id);
    if records.is_empty() {
        let message = format!("no decision is kept for '{id}'; only the last thousand are");
        let error = ApiError::new(ErrorKind::NotFound, message).with_code("decision_not_found");
        return error::response(&error, Dialect::OpenAi, "");
    }
    let attempts: Result<Vec<Value>, ApiError> =
        records.iter().map(|record| attempt(&gateway, record)).collect();
    answer(attempts.map(|attempts| {
        let router = gateway.placement.router().name();
        json!({"request_id": id, "model": records[0].model, "router": router, "attempts": attempts})
    }))
}

fn attempt(gateway: &Gateway, record: &RouteRecord) -> Result<Value, ApiError> {
    // The strategy is pure: the same snapshot gives the same answer, and now its reasons, too.
    let decision = gateway
        .placement
        .router()
        .choose(&record.request(), &record.candidates, true)
        .map_err(|error| ApiError::new(ErrorKind::Internal, error.to_string()))?;
    let view = gateway.fleet.view();
    let name = |hash: u64| {
        view.nodes.iter().find(|node| node.hash == hash).map_or("?", |node| node.name.as_str()).to_owned()
    };
    let candidates: Vec<Value> = record
        .candidates
        .iter()
        .enumerate()
        .map(|(index, candidate)| {
            json!({
                "node": name(candidate.node),
                "chosen": index == record.chosen,
                "score": decision.scores.get(index).copied().filter(|score| score.is_finite()),
                "terms": line_of(&decision.explanation, index),
                "residency": match candidate.residency.0 { 0 => "resident", 1 => "loading", _ => "loadable" },
                "inflight": candidate.inflight,
                "running": candidate.running,
                "queued": candidate.queued,
                "cached_tokens": candidate.cached_tokens,
                "metrics_age_ms": candidate.metrics_age_ms,
                "load_s": candidate.load_s,
                "eviction_regret_s": candidate.eviction_regret_s,
            })
        })
        .collect();
    Ok(json!({
        "unix_ms": record.unix_ms,
        "prompt_tokens_estimated": record.facts.prompt_tokens,
        "expected_tokens": record.expected_tokens,
        "session": record.facts.session != 0,
        "candidates": candidates,
    }))
}
