//! The hub's wire format, spoken by a small server: downloads resume, are verified, and need no network twice.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as Route, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::StreamExt;
use neuron::hub::{Hub, HubError, HubOptions};
use neuron::lifecycle::ResolveProgress;
use serde_json::json;
use sha2::{Digest, Sha256};
use wire_api::node::events::LoadPhase;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[derive(Default)]
struct Server {
    files: HashMap<&'static str, Vec<u8>>,
    /// The connection breaks after so many bytes of a large file, once per count.
    breaks: Mutex<Vec<usize>>,
    /// Bytes that arrive are not those promised.
    corrupt: AtomicBool,
    /// Ranges are ignored.
    no_ranges: AtomicBool,
    token: Option<&'static str>,
    requests: AtomicU64,
    /// `Range` headers of requests for contents.
    ranges: Mutex<Vec<String>>,
}

impl Server {
    fn model() -> Self {
        let weights: Vec<u8> = (0..300_000u32).map(|i| (i * 7 % 251) as u8).collect();
        let files = HashMap::from([
            ("config.json", br#"{"model_type": "llama"}"#.to_vec()),
            ("tokenizer.json", b"{}".to_vec()),
            ("README.md", b"# hello".to_vec()),
            ("model.safetensors", weights),
        ]);
        Self { files, ..Self::default() }
    }

    async fn start(self) -> (Arc<Self>, String) {
        let server = Arc::new(self);
        let app = Router::new()
            .route("/api/models/o/n/tree/main", get(tree))
            .route("/o/n/resolve/{revision}/{*file}", get(resolve))
            .fallback(|| async { (StatusCode::NOT_FOUND, [("x-error-code", "RepoNotFound")]) })
            .with_state(Arc::clone(&server));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (server, endpoint)
    }

    fn allowed(&self, headers: &HeaderMap) -> bool {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let said = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        self.token.is_none_or(|token| said == Some(&format!("Bearer {token}")))
    }
}

async fn tree(State(server): State<Arc<Server>>, headers: HeaderMap) -> Response {
    if !server.allowed(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let mut entries: Vec<_> = server
        .files
        .iter()
        .map(|(path, bytes)| json!({"type": "file", "oid": "a", "size": bytes.len(), "path": path}))
        .collect();
    entries.push(json!({"type": "directory", "oid": "b", "path": "onnx"}));
    axum::Json(entries).into_response()
}

async fn resolve(
    State(server): State<Arc<Server>>,
    Route((_revision, file)): Route<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    if !server.allowed(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let Some(bytes) = server.files.get(file.as_str()) else {
        return (StatusCode::NOT_FOUND, [("x-error-code", "EntryNotFound")]).into_response();
    };
    let large = file.ends_with("safetensors") || file.ends_with("gguf");
    let etag: String = if large {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    } else {
        format!("{:040x}", bytes.len())
    };
    let mut answer = Response::builder()
        .header("x-repo-commit", COMMIT)
        .header(if large { "x-linked-etag" } else { "etag" }, format!("\"{etag}\""))
        .header("x-linked-size", bytes.len());
    if method == Method::HEAD {
        return answer.header(header::CONTENT_LENGTH, bytes.len()).body(Body::empty()).unwrap();
    }
    let range =
        headers.get(header::RANGE).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    if large {
        server.ranges.lock().unwrap().push(range.clone());
    }
    let start: usize =
        range.strip_prefix("bytes=").and_then(|r| r.split('-').next()?.parse().ok()).unwrap_or(0);
    let start = if server.no_ranges.load(Ordering::Relaxed) { 0 } else { start };
    if start > 0 {
        answer = answer.status(StatusCode::PARTIAL_CONTENT);
    }
    let mut rest = bytes[start..].to_vec();
    if large && server.corrupt.load(Ordering::Relaxed) {
        rest[0] ^= 1;
    }
    let breaks = if large { server.breaks.lock().unwrap().pop() } else { None };
    let Some(length) = breaks else { return answer.body(Body::from(rest)).unwrap() };
    rest.truncate(length);
    // The error follows once the bytes are out: an error that comes with them throws them away unsent.
    let broken = futures_util::stream::once(async { Ok(rest) }).chain(futures_util::stream::once(async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Err(std::io::Error::other("the line broke"))
    }));
    answer.body(Body::from_stream(broken)).unwrap()
}

fn silent() -> ResolveProgress {
    Arc::new(|_, _, _, _| {})
}

fn hub(endpoint: &str, cache: &Path) -> Hub {
    hub_with(HubOptions {
        endpoint: Some(endpoint.to_owned()),
        cache: Some(cache.to_owned()),
        ..Default::default()
    })
}

fn hub_with(options: HubOptions) -> Hub {
    Hub::new(HubOptions { offline: Some(options.offline.unwrap_or(false)), ..options }).unwrap()
}

fn assert_served(server: &Server, path: &Path) {
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        assert_eq!(std::fs::read(path.join(file)).unwrap(), server.files[file], "{file}");
    }
    assert!(!path.join("README.md").exists(), "only what is needed is fetched");
}

#[tokio::test]
async fn a_model_is_fetched_once_and_then_needs_no_network() {
    let (server, endpoint) = Server::model().start().await;
    let cache = tempfile::tempdir().unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    let progress: ResolveProgress =
        Arc::new(move |phase, done, total, _| hears.lock().unwrap().push((phase, done, total)));
    let path = hub(&endpoint, cache.path()).find("o/n", &progress).await.unwrap();
    assert_eq!(path, cache.path().join("models--o--n/snapshots").join(COMMIT));
    assert_served(&server, &path);
    assert_eq!(std::fs::read_to_string(cache.path().join("models--o--n/refs/main")).unwrap(), COMMIT);
    assert!(std::fs::read_link(path.join("config.json")).unwrap().starts_with("../../blobs"));

    let heard = heard.lock().unwrap().clone();
    let total = 300_000 + 23 + 2;
    assert_eq!(heard.last(), Some(&(LoadPhase::Download, total, total)));
    assert!(heard.iter().any(|(phase, ..)| *phase == LoadPhase::Verify));
    let downloads: Vec<u64> =
        heard.iter().filter(|(phase, ..)| *phase == LoadPhase::Download).map(|h| h.1).collect();
    assert!(downloads.is_sorted(), "{downloads:?}");

    let before = server.requests.load(Ordering::Relaxed);
    assert_eq!(hub(&endpoint, cache.path()).find("o/n", &silent()).await.unwrap(), path);
    let offline =
        HubOptions { cache: Some(cache.path().to_owned()), offline: Some(true), ..Default::default() };
    assert_eq!(hub_with(offline).find("o/n@main", &silent()).await.unwrap(), path);
    assert_eq!(server.requests.load(Ordering::Relaxed), before, "nobody was asked");
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_stopped() {
    let server = Server { breaks: Mutex::new(vec![50_000, 100_000]), ..Server::model() };
    let (server, endpoint) = server.start().await;
    let cache = tempfile::tempdir().unwrap();
    let path = hub(&endpoint, cache.path()).find("o/n", &silent()).await.unwrap();
    assert_served(&server, &path);
    let starts: Vec<u64> = server
        .ranges
        .lock()
        .unwrap()
        .iter()
        .map(|range| {
            range.trim_start_matches("bytes=").split('-').next().unwrap_or_default().parse().unwrap_or(0)
        })
        .collect();
    assert_eq!(starts.len(), 3, "{starts:?}");
    assert!(starts[0] == 0 && starts.is_sorted() && starts[2] > 0, "{starts:?}");
}

#[tokio::test]
async fn what_an_earlier_process_left_is_used() {
    let (server, endpoint) = Server::model().start().await;
    let cache = tempfile::tempdir().unwrap();
    let etag: String =
        Sha256::digest(&server.files["model.safetensors"]).iter().map(|b| format!("{b:02x}")).collect();
    let growing: PathBuf = cache.path().join("models--o--n/blobs").join(format!("{etag}.incomplete"));
    std::fs::create_dir_all(growing.parent().unwrap()).unwrap();
    std::fs::write(&growing, &server.files["model.safetensors"][..200_000]).unwrap();
    let path = hub(&endpoint, cache.path()).find("o/n", &silent()).await.unwrap();
    assert_served(&server, &path);
    assert_eq!(*server.ranges.lock().unwrap(), ["bytes=200000-299999"]);
    assert!(!growing.exists());
}

#[tokio::test]
async fn a_server_that_ignores_ranges_is_asked_for_the_whole() {
    let server =
        Server { breaks: Mutex::new(vec![100_000]), no_ranges: AtomicBool::new(true), ..Server::model() };
    let (server, endpoint) = server.start().await;
    let cache = tempfile::tempdir().unwrap();
    let path = hub(&endpoint, cache.path()).find("o/n", &silent()).await.unwrap();
    assert_served(&server, &path);
}

#[tokio::test]
async fn bytes_that_were_not_promised_are_thrown_away() {
    let server = Server { corrupt: AtomicBool::new(true), ..Server::model() };
    let (server, endpoint) = server.start().await;
    let cache = tempfile::tempdir().unwrap();
    let error = hub(&endpoint, cache.path()).find("o/n", &silent()).await.unwrap_err();
    assert!(matches!(&error, HubError::Corrupt { file, .. } if file == "model.safetensors"), "{error}");
    assert!(error.retryable());
    assert!(!cache.path().join("models--o--n/refs/main").exists());
    server.corrupt.store(false, Ordering::Relaxed);
    let path = hub(&endpoint, cache.path()).find("o/n", &silent()).await.unwrap();
    assert_served(&server, &path);
}

#[tokio::test]
async fn one_file_of_many_is_named() {
    let files = HashMap::from([("a.gguf", vec![1u8; 10]), ("b.gguf", vec![2u8; 20])]);
    let (_server, endpoint) = Server { files, ..Server::default() }.start().await;
    let cache = tempfile::tempdir().unwrap();
    let hub = hub(&endpoint, cache.path());
    let error = hub.find("o/n", &silent()).await.unwrap_err();
    assert!(matches!(&error, HubError::Unusable(text) if text.contains("a.gguf, b.gguf")), "{error}");
    let path = hub.find("o/n:b.gguf", &silent()).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), [2u8; 20]);
    assert!(matches!(hub.find("o/n:c.gguf", &silent()).await, Err(HubError::NotFound(_))));
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let server = Server { token: Some("secret"), ..Server::model() };
    let (server, endpoint) = server.start().await;
    let cache = tempfile::tempdir().unwrap();
    let options = |token: Option<&str>| HubOptions {
        endpoint: Some(endpoint.clone()),
        cache: Some(cache.path().to_owned()),
        token: Some(token.unwrap_or("wrong").to_owned()),
        ..Default::default()
    };
    let error = hub_with(options(None)).find("o/n", &silent()).await.unwrap_err();
    assert!(error.to_string().contains("HF_TOKEN") && !error.retryable(), "{error}");
    let path = hub_with(options(Some("secret"))).find("o/n", &silent()).await.unwrap();
    assert_served(&server, &path);

    let error = hub(&endpoint, cache.path()).find("o/other", &silent()).await.unwrap_err();
    assert!(matches!(error, HubError::NotFound(_)), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let offline =
        HubOptions { cache: Some(empty.path().to_owned()), offline: Some(true), ..Default::default() };
    assert!(matches!(hub_with(offline).find("o/n", &silent()).await, Err(HubError::Offline { .. })));
    let nobody = hub("http://127.0.0.1:9", empty.path()).find("o/n", &silent()).await.unwrap_err();
    assert!(matches!(nobody, HubError::Network { .. }) && nobody.retryable(), "{nobody}");
}

#[tokio::test]
async fn a_hub_that_is_away_does_not_take_cached_models_along() {
    let (_server, endpoint) = Server::model().start().await;
    let cache = tempfile::tempdir().unwrap();
    let path = hub(&endpoint, cache.path()).find("o/n", &silent()).await.unwrap();
    let refresh = HubOptions {
        endpoint: Some("http://127.0.0.1:9".to_owned()),
        cache: Some(cache.path().to_owned()),
        refresh: true,
        ..Default::default()
    };
    assert_eq!(hub_with(refresh).find("o/n", &silent()).await.unwrap(), path);
}
