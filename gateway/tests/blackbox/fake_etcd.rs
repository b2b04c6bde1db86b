//! As much of etcd as the gateway speaks, in memory, over HTTP: leases that lapse, keys with revisions,
//! transactions that create, and watches.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::AbortHandle;

struct Kept {
    value: String,
    created: u64,
    changed: u64,
    lease: String,
}

#[derive(Default)]
struct Store {
    keys: BTreeMap<String, Kept>,
    leases: BTreeMap<String, (Duration, Instant)>,
    revision: u64,
    next: u64,
}

pub struct Shared {
    store: Mutex<Store>,
    changed: watch::Sender<u64>,
}

/// A running one. `stop` and `start` are a crash and a restart that lost nothing.
pub struct FakeEtcd {
    pub endpoint: String,
    pub shared: Arc<Shared>,
    server: Mutex<Option<AbortHandle>>,
}

impl FakeEtcd {
    pub async fn new() -> Self {
        let shared = Arc::new(Shared { store: Mutex::default(), changed: watch::Sender::new(0) });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let fake = Self { endpoint, shared, server: Mutex::new(None) };
        fake.serve(listener);
        fake
    }

    fn serve(&self, listener: tokio::net::TcpListener) {
        let app = Router::new().fallback(answer).with_state(Arc::clone(&self.shared));
        let server = tokio::spawn(async move {
            use hyper_util::rt::TokioIo;
            use hyper_util::service::TowerToHyperService;
            // Connections live in this task's set, so that stopping the server breaks them, too.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let service = TowerToHyperService::new(app.clone());
                connections.spawn(async move {
                    let builder = hyper::server::conn::http1::Builder::new();
                    let _ = builder.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        *self.server.lock().expect("unpoisoned") = Some(server.abort_handle());
    }

    /// It is gone; connections break.
    pub fn stop(&self) {
        if let Some(server) = self.server.lock().expect("unpoisoned").take() {
            server.abort();
        }
    }

    /// It is back, at the same address.
    pub async fn start(&self) {
        let address = self.endpoint.trim_start_matches("http://").to_owned();
        let listener = loop {
            match tokio::net::TcpListener::bind(&address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        self.serve(listener);
    }

    /// Keys that begin so.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        self.shared.tidy();
        let store = self.shared.store.lock().expect("unpoisoned");
        store.keys.keys().filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    /// Writes a key that never lapses.
    pub fn put(&self, key: &str, value: &str) {
        self.shared.put(key, value, "");
    }

    pub fn delete(&self, key: &str) {
        self.shared.delete(key);
    }
}

impl Drop for FakeEtcd {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn bump(&self, store: &mut Store) -> u64 {
        store.revision += 1;
        let revision = store.revision;
        self.changed.send_replace(revision);
        revision
    }

    /// Lets lapse what has lapsed.
    fn tidy(&self) {
        let mut store = self.store.lock().expect("unpoisoned");
        let lapsed: Vec<String> = store
            .leases
            .iter()
            .filter(|(_, (ttl, since))| since.elapsed() > *ttl)
            .map(|(id, _)| id.clone())
            .collect();
        for lease in lapsed {
            self.end(&mut store, &lease);
        }
    }

    fn end(&self, store: &mut Store, lease: &str) {
        store.leases.remove(lease);
        let before = store.keys.len();
        store.keys.retain(|_, kept| kept.lease != lease);
        if store.keys.len() != before {
            self.bump(store);
        }
    }

    fn put(&self, key: &str, value: &str, lease: &str) {
        let mut store = self.store.lock().expect("unpoisoned");
        let revision = self.bump(&mut store);
        let created = store.keys.get(key).map_or(revision, |kept| kept.created);
        let kept = Kept { value: value.into(), created, changed: revision, lease: lease.into() };
        store.keys.insert(key.into(), kept);
    }

    fn delete(&self, key: &str) {
        let mut store = self.store.lock().expect("unpoisoned");
        if store.keys.remove(key).is_some() {
            self.bump(&mut store);
        }
    }

    fn range(&self, from: &str, to: Option<&str>) -> Value {
        let store = self.store.lock().expect("unpoisoned");
        let wanted = |key: &str| to.map_or(key == from, |to| key >= from && key < to);
        let kvs: Vec<Value> = store
            .keys
            .iter()
            .filter(|(key, _)| wanted(key))
            .map(|(key, kept)| {
                json!({"key": STANDARD.encode(key), "value": STANDARD.encode(&kept.value),
                    "create_revision": kept.created.to_string(), "mod_revision": kept.changed.to_string()})
            })
            .collect();
        json!({"header": {"revision": store.revision.to_string()}, "kvs": kvs})
    }
}

fn text(value: &Value) -> String {
    String::from_utf8(STANDARD.decode(value.as_str().unwrap_or_default()).expect("base64")).expect("text")
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    shared.tidy();
    let path = request.uri().path().to_owned();
    let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.expect("a body");
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    let refuse = |why: &str| {
        (http::StatusCode::NOT_FOUND, Json(json!({"error": why, "message": why, "code": 5}))).into_response()
    };
    let lease_of = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match path.as_str() {
        "/v3/lease/grant" => {
            let seconds: u64 = body["TTL"].as_str().and_then(|ttl| ttl.parse().ok()).expect("a TTL");
            let mut store = shared.store.lock().expect("unpoisoned");
            store.next += 1;
            let id = (7_000_000_000_000_000_000 + store.next).to_string();
            store.leases.insert(id.clone(), (Duration::from_secs(seconds), Instant::now()));
            Json(json!({"ID": id, "TTL": seconds.to_string()})).into_response()
        }
        "/v3/lease/keepalive" => {
            let id = lease_of(&body["ID"]);
            let mut store = shared.store.lock().expect("unpoisoned");
            let ttl = store.leases.get_mut(&id).map(|(ttl, since)| {
                *since = Instant::now();
                ttl.as_secs()
            });
            let result = ttl.map_or(json!({"ID": id}), |ttl| json!({"ID": id, "TTL": ttl.to_string()}));
            Json(json!({"result": result})).into_response()
        }
        "/v3/lease/revoke" => {
            shared.end(&mut shared.store.lock().expect("unpoisoned"), &lease_of(&body["ID"]));
            Json(json!({})).into_response()
        }
        "/v3/kv/put" => {
            let lease = lease_of(&body["lease"]);
            if !shared.store.lock().expect("unpoisoned").leases.contains_key(&lease) {
                return refuse("etcdserver: requested lease not found");
            }
            shared.put(&text(&body["key"]), &text(&body["value"]), &lease);
            Json(json!({})).into_response()
        }
        "/v3/kv/deleterange" => {
            shared.delete(&text(&body["key"]));
            Json(json!({})).into_response()
        }
        "/v3/kv/range" => {
            let to = body.get("range_end").map(text);
            Json(shared.range(&text(&body["key"]), to.as_deref())).into_response()
        }
        "/v3/kv/txn" => {
            let key = text(&body["compare"][0]["key"]);
            if shared.store.lock().expect("unpoisoned").keys.contains_key(&key) {
                return Json(json!({"responses": [{"response_range": shared.range(&key, None)}]}))
                    .into_response();
            }
            let put = &body["success"][0]["request_put"];
            shared.put(&key, &text(&put["value"]), &lease_of(&put["lease"]));
            Json(json!({"succeeded": true})).into_response()
        }
        "/v3/watch" => {
            let from: u64 = body["create_request"]["start_revision"]
                .as_str()
                .and_then(|revision| revision.parse().ok())
                .expect("a revision");
            let changes = shared.changed.subscribe();
            let stream = futures_util::stream::unfold(
                (changes, true, from),
                |(mut changes, first, from)| async move {
                    if first {
                        let line = json!({"result": {"created": true}}).to_string() + "\n";
                        return Some((Ok::<_, std::io::Error>(Bytes::from(line)), (changes, false, from)));
                    }
                    while *changes.borrow_and_update() < from {
                        changes.changed().await.ok()?;
                    }
                    let line = json!({"result": {"events": [{"kv": {}}]}}).to_string() + "\n";
                    let next = *changes.borrow() + 1;
                    Some((Ok(Bytes::from(line)), (changes, false, next)))
                },
            );
            Response::new(Body::from_stream(stream))
        }
        _ => refuse("no such route"),
    }
}
