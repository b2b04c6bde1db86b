//! HTTP: the OpenAI routes, the node API, and nothing that is not about sockets, routes and bodies.
//!
//! Answers stream as they are made, with a sign of life every second while there is nothing to say. Dropping a
//! response drops its turn, which cancels its sequences: a client that goes away costs nothing from the next
//! step on. Every error, whoever raises it, leaves in the same envelope.

mod chat;
mod completions;
mod continuity;
mod discovery;
mod error;
mod models;
mod node;
mod payload;
mod stream;
mod text;
mod turn_log;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, post};
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use wire_api::node::{BootId, routes};

use crate::generation::Generator;
use crate::lifecycle::Models;

/// How the server behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The node's name.
    pub name: String,
    /// Largest request body in bytes.
    pub body_limit_bytes: usize,
    /// How long a request waits for a model that is loading or coming back.
    pub model_patience: Duration,
    /// How long work in flight may go on after the server was told to end.
    pub shutdown_patience: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: "neuron".to_owned(),
            body_limit_bytes: 32 << 20,
            model_patience: Duration::from_secs(600),
            shutdown_patience: Duration::from_secs(25),
        }
    }
}

/// Everything the routes share.
pub struct House {
    models: Models,
    generator: Generator,
    settings: Settings,
    boot_id: BootId,
    started: Instant,
    requests: std::sync::atomic::AtomicU64,
}

impl House {
    /// A server's state.
    pub fn new(models: Models, generator: Generator, settings: Settings) -> Self {
        use std::hash::{BuildHasher, Hasher};
        let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
        Self {
            models,
            generator,
            settings,
            boot_id: BootId(format!("{random:016x}")),
            started: Instant::now(),
            requests: std::sync::atomic::AtomicU64::new(0),
        }
    }

    /// A fresh request id: unique across restarts.
    fn next_id(&self) -> String {
        let number = self.requests.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        format!("{}{number:08x}", self.boot_id.as_str())
    }
}

/// Seconds since 1970.
fn unix_seconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// All routes.
pub fn router(house: Arc<House>) -> Router {
    let limit = house.settings.body_limit_bytes;
    Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route(wire_api::node::continuation::PATH, post(chat::resume))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{id}", get(models::show))
        .route(routes::DISCOVERY, get(discovery::discovery))
        .route(routes::MODELS, get(node::models))
        .route(routes::LOAD, post(node::load))
        .route(routes::UNLOAD, post(node::unload))
        .route(routes::LEASES, post(node::lease))
        .route("/leases/{id}", delete(node::release))
        .route("/models/{id}/events", get(node::events))
        .route(routes::HEALTH, get(node::health))
        .route(routes::READY, get(node::ready))
        .route(routes::VERSION, get(node::version))
        .route(routes::METRICS, get(node::metrics))
        .route(routes::TOKENIZE, post(text::tokenize))
        .route(routes::DETOKENIZE, post(text::detokenize))
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::wrong_method)
        .layer(DefaultBodyLimit::max(limit))
        .with_state(house)
}

/// Serves until `shutdown` resolves, then lets work in flight finish, within bounds.
///
/// # Errors
///
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    house: Arc<House>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let patience = house.settings.shutdown_patience;
    let models = house.models.clone();
    // Small events must not wait for each other's acknowledgements.
    let listener = listener.tap_io(|socket| {
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
    });
    let (ending, ended) = tokio::sync::oneshot::channel();
    let server = axum::serve(listener, router(house)).with_graceful_shutdown(async move {
        shutdown.await;
        let _ = ending.send(()); // the receiver goes only when the server has ended
    });
    let deadline = async {
        if ended.await.is_err() {
            return std::future::pending().await;
        }
        tracing::info!(patience_s = patience.as_secs(), "ending: no new requests, work in flight may finish");
        models.shutdown(patience).await;
        // Whoever still holds a connection open has nothing left to wait for.
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    tokio::select! {
        served = server.into_future() => served,
        () = deadline => Ok(()),
    }
}
