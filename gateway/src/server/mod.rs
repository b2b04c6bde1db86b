//! The gateway's own doors: the dialects' routes, the catalogue, the fleet's state, metrics.
//!
//! Requests that reach a model go through [`inference`]; everything else is answered here from the
//! present view and never waits for a node.

pub mod account;
pub mod administration;
pub mod api;
pub mod catalogue;
mod cold;
mod continuing;
pub mod error;
mod hedge;
pub mod inference;
pub mod listen;
pub mod page;
pub mod reload;
pub mod status;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderName, HeaderValue, StatusCode};
use wire_api::node::status::Version;
use wire_api::{ApiError, Dialect, ErrorKind};

use crate::config::Config;
use crate::fleet::Fleet;
use crate::fleet::identity::stable_hash;
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::placement::Placement;
use crate::proxy::budget::RetryBudget;
use crate::proxy::client::Client;
use crate::proxy::forward::key_headers;
use crate::telemetry::Tracer;
use crate::usage::Ledger;

/// Everything a request needs.
pub struct Gateway {
    /// The settings.
    pub config: Config,
    /// The nodes.
    pub fleet: Arc<Fleet>,
    /// Who decides.
    pub placement: Arc<Placement>,
    /// Connections to nodes.
    pub client: Client,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who may ask.
    pub keys: ArcSwap<Keys>,
    /// What was used.
    pub ledger: Option<Arc<Ledger>>,
    budget: RetryBudget,
    hedges: RetryBudget,
    node_keys: HashMap<u64, Vec<(HeaderName, HeaderValue)>>,
    draining: AtomicBool,
    started: Instant,
    tracer: Option<Tracer>,
}

impl Gateway {
    /// A gateway over a fleet.
    pub fn new(
        config: Config,
        fleet: Arc<Fleet>,
        placement: Arc<Placement>,
        client: Client,
        metrics: Arc<Metrics>,
        keys: Keys,
        ledger: Option<Arc<Ledger>>,
    ) -> Self {
        let node_keys = config
            .neurons
            .iter()
            .map(|node| {
                let key = crate::fleet::poll::key(node);
                (stable_hash(node.name.as_bytes()), key_headers(node.kind, key.as_deref()))
            })
            .collect();
        Self {
            budget: RetryBudget::new(config.gateway.retry_budget),
            hedges: RetryBudget::new(config.proxy.hedge_budget),
            config,
            fleet,
            placement,
            client,
            metrics,
            keys: ArcSwap::from_pointee(keys),
            ledger,
            node_keys,
            draining: AtomicBool::new(false),
            started: Instant::now(),
            tracer: None,
        }
    }

    /// The same, tracing its requests.
    pub fn traced_by(mut self, tracer: Option<Tracer>) -> Self {
        self.tracer = tracer;
        self
    }

    /// Takes no new requests; what is under way goes on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether new requests are turned away.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

impl crate::coordinator::membership::Limits for Gateway {
    fn spent(&self) -> crate::coordinator::Spendings {
        self.keys.load().spent()
    }

    fn charge(&self, key: &str, spent: crate::coordinator::Spent) {
        self.keys.load().charge(key, spent);
    }
}

/// The routes of the API listener.
pub fn router(gateway: Arc<Gateway>) -> Router {
    let mut routes = Router::new();
    for path in api::PATHS {
        routes = routes.route(path, post(inference::infer));
    }
    routes
        .route("/", get(page::page))
        .route("/v1/models", get(catalogue::list))
        .route("/v1/models/{*id}", get(catalogue::one))
        .route("/cortex/v1/fleet", get(status::fleet))
        .route("/cortex/v1/explain/{id}", get(administration::explain))
        .route("/cortex/v1/strategies", get(administration::strategies))
        .route("/cortex/v1/models/load", post(administration::load))
        .route("/cortex/v1/models/unload", post(administration::unload))
        .route("/cortex/v1/models/pin", post(administration::pin))
        .route("/cortex/v1/nodes/{name}/drain", post(administration::drain))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/version", get(version))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .with_state(gateway)
}

/// The routes of the metrics listener.
pub fn metrics_router(gateway: Arc<Gateway>) -> Router {
    Router::new().route("/metrics", get(metrics)).route("/health", get(health)).with_state(gateway)
}

async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    if let Some(ledger) = &gateway.ledger {
        gateway.metrics.usage_rows_lost.set(ledger.lost() as i64);
    }
    let text = gateway.metrics.render();
    ([(http::header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response()
}

async fn health(State(gateway): State<Arc<Gateway>>) -> Response {
    let uptime_ms = gateway.started.elapsed().as_millis() as u64;
    axum::Json(serde_json::json!({"status": "ok", "uptime_ms": uptime_ms})).into_response()
}

/// Ready when it takes requests and every node has been heard of, or one can serve.
async fn ready(State(gateway): State<Arc<Gateway>>) -> Response {
    let view = gateway.fleet.view();
    let usable = view.nodes.iter().any(|node| node.usable());
    let ready = !gateway.draining() && usable;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let nodes: serde_json::Map<String, serde_json::Value> =
        view.nodes.iter().map(|node| (node.name.clone(), node.health.as_str().into())).collect();
    (status, axum::Json(serde_json::json!({"ready": ready, "nodes": nodes}))).into_response()
}

async fn version() -> Response {
    axum::Json(Version {
        name: "cortex".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        abi_version: String::new(),
        commit: option_env!("NEURON_GIT").map(str::to_owned),
    })
    .into_response()
}

async fn no_route(request: axum::extract::Request) -> Response {
    let message = format!("there is no route {}", request.uri().path());
    error::response(&ApiError::new(ErrorKind::NotFound, message), dialect_of(request.headers()), "")
}

async fn no_method(request: axum::extract::Request) -> Response {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    error::response(&ApiError::new(ErrorKind::MethodNotAllowed, message), dialect_of(request.headers()), "")
}

/// The dialect of a caller on a route both dialects share.
pub fn dialect_of(headers: &http::HeaderMap) -> Dialect {
    let anthropic = headers.contains_key("anthropic-version") || headers.contains_key("x-api-key");
    if anthropic { Dialect::Anthropic } else { Dialect::OpenAi }
}
