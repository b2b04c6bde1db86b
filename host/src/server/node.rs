//! The node API: what cortex, the command line and operators say to this node.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use wire_api::node::lease::{Guard, Lease, LeaseRequest};
use wire_api::node::load::{LoadRequest, LoadResponse, UnloadRequest, UnloadResponse};
use wire_api::node::models::NodeModels;
use wire_api::node::status::{Health, Ready, Version};
use wire_api::node::{LeaseId, routes};
use wire_api::{ApiError, sse};

use super::House;
use super::discovery::devices;
use super::error::Refused;
use super::payload::{Payload, json};
use crate::generation::of_lifecycle;

/// `GET /models`.
pub async fn models(State(house): State<Arc<House>>) -> Json<NodeModels> {
    Json(NodeModels {
        boot_id: house.boot_id.clone(),
        residency_revision: house.models.residency_revision(),
        sequence: house.started.elapsed().as_millis() as u64,
        devices: devices(&house.models).await,
        models: house.models.list(),
        draining: false,
        unix_ms: super::unix_seconds() * 1000,
    })
}

/// `POST /models/load`.
pub async fn load(
    State(house): State<Arc<House>>,
    headers: HeaderMap,
    Payload(body): Payload,
) -> Result<(StatusCode, Json<LoadResponse>), Refused> {
    let mut request: LoadRequest = json(&body)?;
    add_headers(&mut request.guard, &headers)?;
    let wait = request.wait;
    let job = house.models.load(request).map_err(|error| of_lifecycle(&error))?;
    let (id, model, started) = (job.id.clone(), job.model.clone(), job.started);
    if wait {
        job.wait().await.map_err(|error| of_lifecycle(&error))?;
    }
    let status = house.models.status(model.as_str()).unwrap_or_default();
    let answer = LoadResponse {
        job: id,
        model,
        state: status.state,
        progress: status.progress.unwrap_or_default(),
        residency_revision: house.models.residency_revision(),
        started,
    };
    Ok((if wait { StatusCode::OK } else { StatusCode::ACCEPTED }, Json(answer)))
}

/// `POST /models/unload`.
pub async fn unload(
    State(house): State<Arc<House>>,
    headers: HeaderMap,
    Payload(body): Payload,
) -> Result<Json<UnloadResponse>, Refused> {
    let mut request: UnloadRequest = json(&body)?;
    add_headers(&mut request.guard, &headers)?;
    house.models.unload(&request).await.map(Json).map_err(|error| of_lifecycle(&error).into())
}

/// A command's fence and revision may come as headers, too.
fn add_headers(guard: &mut Guard, headers: &HeaderMap) -> Result<(), ApiError> {
    let number = |name: &str| match headers.get(name) {
        None => Ok(None),
        Some(value) => match value.to_str().ok().and_then(|text| text.parse().ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(ApiError::invalid(name, "the header is not a number")),
        },
    };
    guard.fence = number(routes::FENCE_HEADER)?.or(guard.fence);
    guard.residency_revision = number(routes::REVISION_HEADER)?.or(guard.residency_revision);
    Ok(())
}

/// `POST /leases`.
pub async fn lease(
    State(house): State<Arc<House>>,
    Payload(body): Payload,
) -> Result<(StatusCode, Json<Lease>), Refused> {
    let request: LeaseRequest = json(&body)?;
    let lease = house.models.lease(&request).map_err(|error| of_lifecycle(&error))?;
    Ok((StatusCode::CREATED, Json(lease)))
}

/// `DELETE /leases/{id}`. A lease that is not held is as good as released.
pub async fn release(State(house): State<Arc<House>>, Path(id): Path<String>) -> StatusCode {
    house.models.release(&LeaseId(id));
    StatusCode::NO_CONTENT
}

/// `GET /models/{id}/events`.
pub async fn events(State(house): State<Arc<House>>, Path(id): Path<String>) -> Result<Response, Refused> {
    let events = house.models.events(&id).ok_or_else(|| ApiError::model_not_found(&id))?;
    let frames = events.map(|event| {
        let mut frame = Vec::new();
        sse::encode::json_event(&mut frame, event.progress.phase.as_str(), &event);
        Ok::<_, Infallible>(Bytes::from(frame))
    });
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8"), (header::CACHE_CONTROL, "no-cache")];
    Ok((headers, Body::from_stream(frames)).into_response())
}

/// `GET /health`: the process answers.
pub async fn health(State(house): State<Arc<House>>) -> Json<Health> {
    Json(Health {
        status: "ok".to_owned(),
        boot_id: house.boot_id.clone(),
        uptime_ms: house.started.elapsed().as_millis() as u64,
    })
}

/// `GET /ready`: every desired model has lately produced a token.
pub async fn ready(State(house): State<Arc<House>>) -> (StatusCode, Json<Ready>) {
    let models = house.models.readiness();
    let ready = models.iter().all(|model| model.ready);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { ready, models }))
}

/// `GET /version`.
pub async fn version() -> Json<Version> {
    Json(Version {
        name: "neuron".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        abi_version: plugin_abi::ABI_VERSION.to_owned(),
        commit: option_env!("NEURON_GIT").map(str::to_owned),
    })
}

/// `GET /metrics`.
pub async fn metrics(State(house): State<Arc<House>>) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (headers, house.models.metrics().render()).into_response()
}
