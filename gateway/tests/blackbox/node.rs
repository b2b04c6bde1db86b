//! A node that keeps the node API's contract and answers by script: what a request should meet is in its
//! `x-mock` header (`chunks=5 pause_ms=20 die_after=3 status=503 silent`), which the gateway passes on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use futures_util::StreamExt;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tokio::task::AbortHandle;
use wire_api::node::discovery::{Device, Discovery};
use wire_api::node::lease::{Guard, Lease, LeaseRequest};
use wire_api::node::load::{LoadRequest, LoadResponse, UnloadRequest, UnloadResponse};
use wire_api::node::models::{
    Activity, Failure, ModelDetails, ModelMemory, ModelState, ModelStatus, NodeModels,
};
use wire_api::node::{DeviceId, LeaseId, ModelId};
use wire_api::{ApiError, Dialect, ErrorKind};

/// A scripted node.
pub struct MockNode {
    /// Where it listens.
    pub endpoint: String,
    /// Its state, to look at and to change.
    pub state: Arc<Inner>,
    server: AbortHandle,
}

/// What a model the node can load is like.
#[derive(Clone)]
pub struct Loadable {
    pub bytes: u64,
    pub load_ms: u64,
    pub fails: bool,
}

#[derive(Clone)]
struct Loaded {
    bytes: u64,
    state: ModelState,
    since_ms: u64,
    failure: Option<Failure>,
    aliases: Vec<String>,
    last_used_ms: u64,
    pinned: bool,
}

pub struct Inner {
    pub name: String,
    capacity: u64,
    leases: bool,
    loadable: Mutex<BTreeMap<String, Loadable>>,
    loaded: Mutex<BTreeMap<String, Loaded>>,
    inflight: Mutex<BTreeMap<String, u32>>,
    fence: AtomicU64,
    revision: AtomicU64,
    sequence: AtomicU64,
    pub boot: Mutex<String>,
    /// Everything that changed what is loaded, in order.
    pub history: Mutex<Vec<String>>,
    /// Bodies of the requests that reached a model.
    pub requests: Mutex<Vec<(String, HeaderMap, Value)>>,
    pub served: AtomicU32,
    /// Answers whose client left before their end.
    pub cancelled: AtomicU32,
    pub loads_at_once: AtomicU32,
    pub most_loads_at_once: AtomicU32,
    /// It answers no poll.
    pub mute: AtomicBool,
    pub refuses_unload: AtomicBool,
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64
}

impl MockNode {
    /// A node with so much memory, that grants leases.
    pub async fn start(name: &str, capacity: u64) -> Self {
        Self::start_with(name, capacity, true).await
    }

    pub async fn start_with(name: &str, capacity: u64, leases: bool) -> Self {
        let state = Arc::new(Inner {
            name: name.to_owned(),
            capacity,
            leases,
            loadable: Mutex::default(),
            loaded: Mutex::default(),
            inflight: Mutex::default(),
            fence: AtomicU64::new(0),
            revision: AtomicU64::new(1),
            sequence: AtomicU64::new(1),
            boot: Mutex::new("boot-1".into()),
            history: Mutex::default(),
            requests: Mutex::default(),
            served: AtomicU32::new(0),
            cancelled: AtomicU32::new(0),
            loads_at_once: AtomicU32::new(0),
            most_loads_at_once: AtomicU32::new(0),
            mute: AtomicBool::new(false),
            refuses_unload: AtomicBool::new(false),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let app = Router::new()
            .route("/models", get(models))
            .route("/discovery", get(discovery))
            .route("/models/load", post(load))
            .route("/models/unload", post(unload))
            .route("/leases", post(lease))
            .route("/leases/{id}", delete(release))
            .route("/v1/models", get(foreign_models))
            .fallback(infer)
            .with_state(Arc::clone(&state));
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, app).await;
        });
        Self { endpoint, state, server: server.abort_handle() }
    }

    /// Has the model loaded already, since an hour.
    pub fn with_loaded(self, id: &str, bytes: u64) -> Self {
        self.state.put(id, bytes, ModelState::Ready, unix_ms() - 3_600_000, vec![]);
        self.with_loadable(id, bytes, 0)
    }

    /// Can load the model.
    pub fn with_loadable(self, id: &str, bytes: u64, load_ms: u64) -> Self {
        let loadable = Loadable { bytes, load_ms, fails: false };
        self.state.loadable.lock().expect("unpoisoned").insert(id.into(), loadable);
        self
    }

    /// Fails to load the model.
    pub fn with_broken(self, id: &str) -> Self {
        let loadable = Loadable { bytes: 1, load_ms: 10, fails: true };
        self.state.loadable.lock().expect("unpoisoned").insert(id.into(), loadable);
        self
    }

    /// Connections are refused and those there are break.
    pub fn kill(&self) {
        self.server.abort();
    }
}

impl Drop for MockNode {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Inner {
    fn put(&self, id: &str, bytes: u64, state: ModelState, since_ms: u64, aliases: Vec<String>) {
        let loaded =
            Loaded { bytes, state, since_ms, failure: None, aliases, last_used_ms: 0, pinned: false };
        self.loaded.lock().expect("unpoisoned").insert(id.into(), loaded);
        self.revision.fetch_add(1, Ordering::SeqCst);
    }

    fn used(&self) -> u64 {
        let loaded = self.loaded.lock().expect("unpoisoned");
        let holds = |l: &&Loaded| !matches!(l.state, ModelState::Failed | ModelState::Absent);
        loaded.values().filter(holds).map(|l| l.bytes).sum()
    }

    fn inflight(&self, id: &str) -> u32 {
        self.inflight.lock().expect("unpoisoned").get(id).copied().unwrap_or(0)
    }

    pub fn total_inflight(&self) -> u32 {
        self.inflight.lock().expect("unpoisoned").values().sum()
    }

    pub fn is_loaded(&self, id: &str) -> bool {
        self.loaded.lock().expect("unpoisoned").get(id).is_some_and(|l| l.state == ModelState::Ready)
    }

    pub fn history(&self) -> Vec<String> {
        self.history.lock().expect("unpoisoned").clone()
    }

    fn log(&self, entry: String) {
        self.history.lock().expect("unpoisoned").push(entry);
    }

    fn check(&self, guard: &Guard) -> Result<(), ApiError> {
        let conflict = |code: &str| Err(ApiError::new(ErrorKind::Conflict, code).with_code(code));
        if guard.fence.is_some_and(|fence| fence < self.fence.load(Ordering::SeqCst)) {
            return conflict("stale_fence");
        }
        if guard.residency_revision.is_some_and(|seen| seen < self.revision.load(Ordering::SeqCst)) {
            return conflict("stale_revision");
        }
        Ok(())
    }

    /// Somebody else changed what is loaded.
    pub fn meddle(&self) {
        self.revision.fetch_add(1, Ordering::SeqCst);
    }
}

fn refuse(error: ApiError) -> Response {
    let status = StatusCode::from_u16(error.status(Dialect::OpenAi)).expect("a status");
    (status, Json(error.openai_body())).into_response()
}

async fn models(State(node): State<Arc<Inner>>) -> Response {
    if node.mute.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
    let device = Device {
        id: DeviceId::from("cpu-0"),
        memory_total_bytes: node.capacity,
        memory_free_bytes: node.capacity.saturating_sub(node.used()),
        ..Device::default()
    };
    let mut list: BTreeMap<String, ModelStatus> = BTreeMap::new();
    for (id, loadable) in node.loadable.lock().expect("unpoisoned").iter() {
        let memory = ModelMemory { planned_bytes: loadable.bytes, ..ModelMemory::default() };
        list.insert(
            id.clone(),
            ModelStatus { id: ModelId::from(id.as_str()), memory, ..ModelStatus::default() },
        );
    }
    for (id, loaded) in node.loaded.lock().expect("unpoisoned").iter() {
        let inflight = node.inflight(id);
        list.insert(
            id.clone(),
            ModelStatus {
                id: ModelId::from(id.as_str()),
                state: loaded.state,
                aliases: loaded.aliases.clone(),
                pinned: loaded.pinned,
                failure: loaded.failure.clone(),
                memory: ModelMemory {
                    planned_bytes: loaded.bytes,
                    measured_bytes: loaded.bytes,
                    ..Default::default()
                },
                activity: Activity {
                    inflight,
                    running: inflight,
                    last_used_ms: loaded.last_used_ms,
                    ..Default::default()
                },
                details: Some(ModelDetails {
                    devices: vec![DeviceId::from("cpu-0")],
                    slots: 4,
                    context_tokens: 4096,
                    ready_since_ms: Some(loaded.since_ms),
                    ..ModelDetails::default()
                }),
                ..ModelStatus::default()
            },
        );
    }
    Json(NodeModels {
        boot_id: node.boot.lock().expect("unpoisoned").as_str().into(),
        residency_revision: node.revision.load(Ordering::SeqCst),
        sequence: node.sequence.fetch_add(1, Ordering::SeqCst),
        devices: vec![device],
        models: list.into_values().collect(),
        draining: false,
        unix_ms: unix_ms(),
    })
    .into_response()
}

async fn discovery(State(node): State<Arc<Inner>>) -> Response {
    let boot_id = node.boot.lock().expect("unpoisoned").as_str().into();
    Json(Discovery { name: node.name.clone(), boot_id, ..Discovery::default() }).into_response()
}

async fn foreign_models() -> Response {
    Json(json!({"object": "list", "data": [{"id": "foreign", "object": "model", "created": 1, "owned_by": "x"}]}))
        .into_response()
}

async fn lease(State(node): State<Arc<Inner>>, Json(request): Json<LeaseRequest>) -> Response {
    if !node.leases {
        return refuse(ApiError::new(ErrorKind::NotFound, "no such route"));
    }
    let guard = Guard { residency_revision: request.residency_revision, ..Guard::default() };
    if let Err(error) = node.check(&guard) {
        return refuse(error);
    }
    let fence = node.fence.fetch_add(1, Ordering::SeqCst) + 1;
    Json(Lease {
        id: LeaseId::from(format!("lease-{fence}")),
        fence,
        model: request.model,
        claims: request.claims,
        expires_in_ms: request.ttl_ms,
        residency_revision: node.revision.load(Ordering::SeqCst),
    })
    .into_response()
}

async fn release(Path(_id): Path<String>) -> Response {
    Json(json!({})).into_response()
}

async fn load(State(node): State<Arc<Inner>>, Json(request): Json<LoadRequest>) -> Response {
    if let Err(error) = node.check(&request.guard) {
        node.log(format!("refused load {}: {}", request.model, error.code));
        return refuse(error);
    }
    let source = request.model.0.clone();
    let id = request.name.as_ref().unwrap_or(&request.model).0.clone();
    let Some(spec) = node.loadable.lock().expect("unpoisoned").get(&source).cloned() else {
        return refuse(ApiError::model_not_found(&source));
    };
    if node.used() + spec.bytes > node.capacity {
        node.log(format!("no room for {id}"));
        return refuse(ApiError::new(ErrorKind::OutOfMemory, "no room"));
    }
    node.log(format!("load {id}"));
    node.put(&id, spec.bytes, ModelState::Loading, unix_ms(), request.aliases.clone());
    let now = node.loads_at_once.fetch_add(1, Ordering::SeqCst) + 1;
    node.most_loads_at_once.fetch_max(now, Ordering::SeqCst);
    let (worker, name) = (Arc::clone(&node), id.clone());
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(spec.load_ms)).await;
        worker.loads_at_once.fetch_sub(1, Ordering::SeqCst);
        if let Some(loaded) = worker.loaded.lock().expect("unpoisoned").get_mut(&name) {
            loaded.state = if spec.fails { ModelState::Failed } else { ModelState::Ready };
            loaded.since_ms = unix_ms();
            loaded.failure = spec.fails.then(|| Failure {
                code: "broken_file".into(),
                message: "the file is broken".into(),
                ..Failure::default()
            });
        }
        worker.revision.fetch_add(1, Ordering::SeqCst);
    });
    let revision = node.revision.load(Ordering::SeqCst);
    let answer = LoadResponse {
        model: ModelId::from(id),
        state: ModelState::Loading,
        started: true,
        residency_revision: revision,
        ..LoadResponse::default()
    };
    Json(answer).into_response()
}

async fn unload(State(node): State<Arc<Inner>>, Json(request): Json<UnloadRequest>) -> Response {
    let id = request.model.0.clone();
    let outcome = node.check(&request.guard).and_then(|()| {
        if node.refuses_unload.load(Ordering::SeqCst) {
            return Err(ApiError::new(ErrorKind::Internal, "the worker does not die"));
        }
        if request.only_if_idle && node.inflight(&id) > 0 {
            return Err(ApiError::new(ErrorKind::Conflict, "it is in use").with_code("busy"));
        }
        Ok(())
    });
    if let Err(error) = outcome {
        node.log(format!("refused unload {id}: {}", error.code));
        return refuse(error);
    }
    // Without the condition a node drains: nothing new, and what is under way finishes.
    if let Some(loaded) = node.loaded.lock().expect("unpoisoned").get_mut(&id) {
        loaded.state = ModelState::Draining;
    }
    while node.inflight(&id) > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let freed = node.loaded.lock().expect("unpoisoned").remove(&id).map_or(0, |loaded| loaded.bytes);
    node.log(format!("unload {id}"));
    let revision = node.revision.fetch_add(1, Ordering::SeqCst) + 1;
    let answer = UnloadResponse {
        model: request.model,
        freed_bytes: freed,
        residency_revision: revision,
        ..UnloadResponse::default()
    };
    Json(answer).into_response()
}

/// What a request's `x-mock` header asks for.
struct Script(BTreeMap<String, String>);

impl Script {
    fn of(headers: &HeaderMap) -> Self {
        let text = headers.get("x-mock").and_then(|value| value.to_str().ok()).unwrap_or("");
        let pairs = text.split_whitespace().map(|pair| pair.split_once('=').unwrap_or((pair, "1")));
        Self(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.0.get(key)?.parse().ok()
    }

    /// A script may be meant for one node only.
    fn applies_to(&self, node: &str) -> bool {
        self.0.get("only").is_none_or(|only| only == node)
    }
}

struct Counted(Arc<Inner>, String, bool);

impl Drop for Counted {
    fn drop(&mut self) {
        *self.0.inflight.lock().expect("unpoisoned").get_mut(&self.1).expect("counted") -= 1;
        if !self.2 {
            self.0.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

async fn infer(State(node): State<Arc<Inner>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.expect("a body");
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    let mut script = Script::of(&parts.headers);
    if !script.applies_to(&node.name) {
        script = Script(BTreeMap::new());
    }
    node.requests.lock().expect("unpoisoned").push((path.clone(), parts.headers, body.clone()));
    if let Some(status) = script.number("status") {
        let error =
            ApiError::new(ErrorKind::from_status(status as u16), format!("{} says {status}", node.name));
        let status = StatusCode::from_u16(status as u16).expect("a status");
        return (status, Json(error.openai_body())).into_response();
    }
    // What another node began is gone on with behind the events that were told.
    let told = body["told"].as_u64().unwrap_or(0);
    let body = if path == "/continue" { body["request"].clone() } else { body };
    let model = body["model"].as_str().unwrap_or_default().to_owned();
    {
        let mut loaded = node.loaded.lock().expect("unpoisoned");
        let found = loaded.iter_mut().find(|(id, l)| **id == model || l.aliases.contains(&model));
        match found {
            Some((_, l)) if l.state == ModelState::Ready => l.last_used_ms = unix_ms(),
            _ if model == "foreign" => {}
            _ => return refuse(ApiError::model_not_found(&model)),
        }
    }
    *node.inflight.lock().expect("unpoisoned").entry(model.clone()).or_default() += 1;
    node.served.fetch_add(1, Ordering::SeqCst);
    let mut counted = Counted(Arc::clone(&node), model.clone(), false);
    let chunks = script.number("chunks").unwrap_or(3);
    let pause = Duration::from_millis(script.number("pause_ms").unwrap_or(0));
    if script.number("head_ms").is_some() {
        tokio::time::sleep(Duration::from_millis(script.number("head_ms").expect("checked"))).await;
    }
    if path == "/tokenize" {
        counted.2 = true;
        return Json(json!({"count": 11, "max_model_len": 4096, "tokens": []})).into_response();
    }
    if body["stream"] != json!(true) {
        tokio::time::sleep(pause * chunks as u32).await;
        counted.2 = true;
        let content: String = (0..chunks).map(|n| format!("{}-{n} ", node.name)).collect();
        return Json(json!({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 7, "completion_tokens": chunks, "total_tokens": 7 + chunks},
        }))
        .into_response();
    }
    // Who goes on does not die as well.
    let dies_once = script.number("dies_once").filter(|_| path != "/continue");
    let die_after = script.number("die_after").or(dies_once);
    let silent = script.number("silent").is_some();
    // With a token log the words are the model's, the same on every node.
    let logs = script.number("logs").is_some();
    let name = if logs { "word".to_owned() } else { node.name.clone() };
    let chunk = move |delta: Value, finish: Value| {
        let value = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
        format!("data: {value}\n\n")
    };
    let frames = futures_util::stream::unfold((told, counted), move |(step, mut counted)| {
        let frame = if step == 0 {
            Some(Ok(chunk(json!({"role": "assistant", "content": ""}), Value::Null)))
        } else if die_after == Some(step) {
            Some(Err(std::io::Error::other("scripted death")))
        } else if step <= chunks {
            let words = chunk(json!({"content": format!("{name}-{step} ")}), Value::Null);
            Some(Ok(if logs { format!(": tokens {step}\n\n{words}") } else { words }))
        } else if step == chunks + 1 {
            let usage = json!({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": chunks,
                "total_tokens": 7 + chunks, "prompt_tokens_details": {"cached_tokens": 4}}});
            Some(Ok(format!("{}data: {usage}\n\ndata: [DONE]\n\n", chunk(json!({}), json!("stop")))))
        } else {
            counted.2 = true;
            None
        };
        async move {
            if silent && step == 1 {
                tokio::time::sleep(Duration::from_secs(3600)).await;
            }
            tokio::time::sleep(pause).await;
            if step > chunks {
                counted.2 = true;
            }
            frame.map(|frame| (frame.map(Bytes::from), (step + 1, counted)))
        }
    });
    let mut response = Response::new(Body::from_stream(frames.boxed()));
    response.headers_mut().insert("content-type", "text/event-stream".parse().expect("a header"));
    if logs {
        response.headers_mut().insert("x-cortex-token-log", "1".parse().expect("a header"));
    }
    response
}
