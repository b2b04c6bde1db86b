//! The node API: what cortex, the command line and operators say to this node.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use wire_api::node::discovery::{self, Discovery, PluginState};
use wire_api::node::lease::{Guard, Lease, LeaseRequest};
use wire_api::node::load::{LoadRequest, LoadResponse, UnloadRequest, UnloadResponse};
use wire_api::node::models::NodeModels;
use wire_api::node::status::{Health, Ready, Version};
use wire_api::node::{DeviceId, LeaseId, routes};
use wire_api::{ApiError, sse};

use super::House;
use super::error::Refused;
use super::payload::{Payload, json};
use crate::catalogue::Entry;
use crate::discovery::{self as machine, Machine};
use crate::generation::of_lifecycle;

/// `GET /discovery`.
pub async fn discovery(State(house): State<Arc<House>>) -> Json<Discovery> {
    let machine = machine::look();
    let plugins = house.models.catalogue().snapshot();
    Json(Discovery {
        name: house.settings.name.clone(),
        boot_id: house.boot_id.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: host(&machine),
        devices: devices(&machine, house.models.promised_bytes()),
        plugins: plugins.entries.iter().map(plugin).collect(),
    })
}

fn host(machine: &Machine) -> discovery::Host {
    discovery::Host {
        operating_system: std::env::consts::OS.to_owned(),
        cpu: machine.cpu.model.clone(),
        cpu_level: u8::try_from(machine.cpu.level).ok().filter(|level| *level > 0),
        threads: machine.cpu.threads as u32,
        memory_total_bytes: machine.memory.total_bytes,
        memory_free_bytes: machine.memory.available_bytes,
    }
}

fn devices(machine: &Machine, promised_bytes: u64) -> Vec<discovery::Device> {
    let cpu = discovery::Device {
        id: DeviceId("cpu-0".to_owned()),
        kind: discovery::DeviceKind::Cpu,
        name: machine.cpu.model.clone(),
        build: format!("cpu-v{}", machine.cpu.level.clamp(2, 4)),
        memory_total_bytes: machine.memory.limit_bytes.unwrap_or(machine.memory.total_bytes),
        memory_free_bytes: machine.memory.available_bytes,
        memory_leased_bytes: promised_bytes,
        ..discovery::Device::default()
    };
    let gpus = machine.gpus.iter().map(|gpu| discovery::Device {
        id: DeviceId(format!("cuda-{}", gpu.ordinal)),
        kind: discovery::DeviceKind::Cuda,
        name: gpu.name.clone(),
        ..discovery::Device::default()
    });
    std::iter::once(cpu).chain(gpus).collect()
}

fn plugin(entry: &Entry) -> discovery::Plugin {
    let descriptor = entry.descriptor.as_ref();
    let mut plugin = discovery::Plugin {
        path: entry.path.display().to_string(),
        name: descriptor.map(|descriptor| descriptor.name.clone()).unwrap_or_default(),
        build: descriptor.map(|descriptor| descriptor.build.clone()).unwrap_or_default(),
        version: descriptor.map(|descriptor| descriptor.version.clone()).unwrap_or_default(),
        abi_version: descriptor.map(|descriptor| descriptor.abi.clone()).unwrap_or_default(),
        ..discovery::Plugin::default()
    };
    match &entry.outcome {
        Ok(report) => {
            plugin.state = PluginState::Usable;
            plugin.architectures = report.architectures.iter().map(|info| info.name.clone()).collect();
        }
        Err(refusal) => {
            plugin.state = PluginState::Refused;
            plugin.reason = Some(refusal.to_string());
        }
    }
    plugin
}

/// `GET /models`.
pub async fn models(State(house): State<Arc<House>>) -> Json<NodeModels> {
    Json(NodeModels {
        boot_id: house.boot_id.clone(),
        residency_revision: house.models.residency_revision(),
        sequence: house.started.elapsed().as_millis() as u64,
        devices: devices(&machine::look(), house.models.promised_bytes()),
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
