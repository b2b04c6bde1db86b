//! What the gateway adds to a request, side by side with a bare proxy and nginx, on this machine, in one run.
//!
//! ```text
//! cargo build --release -p cortex --bin cortex
//! cargo run --release -p cortex --example added_cost [-- SECONDS]
//! ```
//!
//! An upstream answers every chat request with the same JSON of about a kilobyte, or with a stream of
//! fifty-two events. Each contestant runs in a process of its own; this process is the client. Printed are
//! requests per second at 1, 16 and 64 connections, latency at one, the processor time each contestant spent
//! per request, its memory, and the time of one stream. Figures of one run are comparable with each other and
//! with nothing else.

use std::convert::Infallible;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const QUESTION: &str =
    r#"{"model":"m","messages":[{"role":"user","content":"Say something of about a kilobyte."}]}"#;
const STREAM: &str =
    r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"Say it in pieces."}]}"#;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["upstream", port] => serve(port, upstream()).await,
        ["proxy", port, upstream_port] => serve(port, bare_proxy(upstream_port)).await,
        ref rest => compare(rest.first().and_then(|text| text.parse().ok()).unwrap_or(5)).await,
    }
}

async fn serve(port: &str, router: Router) {
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await.expect("a free port");
    let listener = listener.tap_io(|socket| socket.set_nodelay(true).expect("TCP"));
    axum::serve(listener, router).await.expect("it serves");
}

/// Answers as a node would, at once.
fn upstream() -> Router {
    let content = "x".repeat(700);
    let answer = Bytes::from(format!(
        r#"{{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{{"index":0,"message":{{"role":"assistant","content":"{content}"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":12,"completion_tokens":200,"total_tokens":212}}}}"#
    ));
    let chat = move |body: Bytes| {
        let answer = answer.clone();
        async move {
            if memchr::memmem::find(&body, b"\"stream\":true").is_none() {
                return ([("content-type", "application/json")], answer).into_response();
            }
            let events = (0..52).map(|n| {
                Ok::<_, Infallible>(Bytes::from(match n {
                    50 => {
                        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":50}}\n\n"
                            .to_owned()
                    }
                    51 => "data: [DONE]\n\n".to_owned(),
                    n => format!(
                        "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"piece {n}\"}}}}]}}\n\n"
                    ),
                }))
            });
            // One frame after the other, each with a chance for the connection to send it.
            let events = futures_util::StreamExt::then(futures_util::stream::iter(events), |event| async {
                tokio::task::yield_now().await;
                event
            });
            ([("content-type", "text/event-stream")], Body::from_stream(events)).into_response()
        }
    };
    let models = r#"{"boot_id":"b","sequence":1,"models":[{"id":"m","state":"ready"}]}"#;
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/models", get(move || async move { ([("content-type", "application/json")], models) }))
        .route("/discovery", get(|| async { ([("content-type", "application/json")], "{}") }))
}

type Client = cortex::proxy::client::Client;

/// The least a proxy that must know the model can do.
fn bare_proxy(upstream_port: &str) -> Router {
    let base = format!("http://127.0.0.1:{upstream_port}");
    let state = Arc::new((cortex::proxy::client::client(Duration::from_secs(5)), base));
    Router::new().fallback(pass).with_state(state)
}

#[derive(serde::Deserialize)]
struct OnlyModel {
    model: String,
}

async fn pass(State(state): State<Arc<(Client, String)>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    let model: OnlyModel = serde_json::from_slice(&body).expect("JSON");
    assert!(!model.model.is_empty());
    let mut outgoing = http::Request::new(http_body_util::Full::new(body));
    *outgoing.method_mut() = parts.method;
    *outgoing.uri_mut() = format!("{}{}", state.1, parts.uri).parse().expect("a URL");
    let (parts, body) = state.0.request(outgoing).await.expect("an answer").into_parts();
    Response::from_parts(parts, Body::new(body))
}

/// A contestant: its name, its port, and its process unless it is the upstream itself.
struct Contestant {
    name: &'static str,
    port: u16,
    process: Child,
}

impl Drop for Contestant {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port()
}

fn spawn(name: &'static str, port: u16, command: &mut Command) -> Option<Contestant> {
    let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    Some(Contestant { name, port, process })
}

async fn compare(seconds: u64) {
    let me = std::env::current_exe().expect("a path");
    let folder = std::env::temp_dir().join(format!("cortex-added-cost-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let [up, proxy, gateway, web] = [(); 4].map(|()| free_port());
    let mut contestants = Vec::new();
    contestants.extend(spawn("direct", up, Command::new(&me).args(["upstream", &up.to_string()])));
    contestants.extend(nginx(web, up, &folder));
    contestants.extend(spawn(
        "axum",
        proxy,
        Command::new(&me).args(["proxy", &proxy.to_string(), &up.to_string()]),
    ));
    wait_for(up).await;
    let key = cortex::keys::file::create(&folder.join("keys.toml"), "bench", false).expect("a key");
    contestants.extend(cortex(gateway, up, &me, &folder));
    println!(
        "{:8} {:>6} {:>10} {:>9} {:>9} {:>11} {:>8}",
        "", "conns", "req/s", "p50 ms", "p99 ms", "CPU µs/req", "RSS MB"
    );
    for contestant in &contestants {
        wait_for(contestant.port).await;
        for connections in [1, 16, 64] {
            let run = load(contestant.port, connections, Duration::from_secs(seconds), QUESTION, &key);
            let before = cpu_us(&contestant.process);
            let mut latencies = run.await;
            let spent = cpu_us(&contestant.process) - before;
            latencies.sort_unstable();
            let at = |share: f64| latencies[(latencies.len() as f64 * share) as usize] as f64 / 1000.0;
            println!(
                "{:8} {:>6} {:>10.0} {:>9.3} {:>9.3} {:>11.1} {:>8.1}",
                contestant.name,
                connections,
                latencies.len() as f64 / seconds as f64,
                at(0.5),
                at(0.99),
                spent as f64 / latencies.len() as f64,
                rss_mb(&contestant.process)
            );
        }
        let mut streams = load(contestant.port, 1, Duration::from_secs(seconds.min(3)), STREAM, &key).await;
        streams.sort_unstable();
        let middle = streams.get(streams.len() / 2).copied().unwrap_or(0);
        println!("{:8} {:>6} one stream of 52 events: {:.3} ms", contestant.name, 1, middle as f64 / 1000.0);
    }
    drop(contestants);
    let _ = std::fs::remove_dir_all(&folder);
}

fn cortex(port: u16, upstream: u16, me: &std::path::Path, folder: &std::path::Path) -> Option<Contestant> {
    let binary = me.parent()?.parent()?.join("cortex");
    let settings = format!(
        "[gateway]\nlisten = \"127.0.0.1:{port}\"\nmetrics_listen = \"127.0.0.1:0\"\n[keys]\nfile = \"keys.toml\"\n\
         [[neurons]]\nname = \"up\"\nendpoint = \"http://127.0.0.1:{upstream}\"\n"
    );
    let path = folder.join("cortex.toml");
    std::fs::write(&path, settings).expect("a configuration");
    spawn("cortex", port, Command::new(binary).arg("serve").arg("--config").arg(path))
}

/// nginx, where it is installed.
fn nginx(port: u16, upstream: u16, folder: &std::path::Path) -> Option<Contestant> {
    let settings = format!(
        "daemon off; master_process off; pid {0}/nginx.pid; error_log /dev/null;\nevents {{ worker_connections 1024; }}\n\
         http {{ access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;\n\
         upstream node {{ server 127.0.0.1:{upstream}; keepalive 128; }}\n\
         server {{ listen 127.0.0.1:{port}; keepalive_requests 100000000; location / {{ proxy_pass http://node; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off; }} }} }}",
        folder.display()
    );
    let path = folder.join("nginx.conf");
    std::fs::write(&path, settings).ok()?;
    spawn("nginx", port, Command::new("nginx").arg("-c").arg(path))
}

async fn wait_for(port: u16) {
    for _ in 0..500 {
        if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            // A gateway must have heard of its node before it is asked.
            tokio::time::sleep(Duration::from_millis(300)).await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("nothing listens on port {port}");
}

/// Asks over so many connections for so long; gives the microseconds of every answer.
async fn load(port: u16, connections: usize, time: Duration, body: &'static str, key: &str) -> Vec<u64> {
    let asked = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..connections)
        .map(|_| {
            let (asked, key) = (Arc::clone(&asked), key.to_owned());
            tokio::spawn(async move {
                let mut connection = Connection::open(port, body, &key).await;
                let mut latencies = Vec::with_capacity(1 << 16);
                let end = Instant::now() + time;
                while Instant::now() < end {
                    let begun = Instant::now();
                    connection.ask().await;
                    latencies.push(begun.elapsed().as_micros() as u64);
                    asked.fetch_add(1, Ordering::Relaxed);
                }
                latencies
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.expect("a client"));
    }
    all
}

/// A client that costs next to nothing: one written request, answers only searched for their end.
struct Connection {
    socket: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(port: u16, body: &str, key: &str) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
        socket.set_nodelay(true).expect("TCP");
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        Self { socket, request: request.into_bytes(), buffer: Vec::with_capacity(1 << 16) }
    }

    async fn ask(&mut self) {
        self.socket.write_all(&self.request).await.expect("sent");
        self.buffer.clear();
        loop {
            let read = self.socket.read_buf(&mut self.buffer).await.expect("received");
            assert!(read > 0, "the connection was closed: {}", String::from_utf8_lossy(&self.buffer));
            if self.complete() {
                break;
            }
        }
        assert!(self.buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&self.buffer));
    }

    fn complete(&self) -> bool {
        let Some(head) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") else { return false };
        let text = String::from_utf8_lossy(&self.buffer[..head]).to_ascii_lowercase();
        match text.split("content-length: ").nth(1) {
            Some(rest) => {
                let length: usize = rest.split("\r\n").next().and_then(|n| n.parse().ok()).expect("a length");
                self.buffer.len() >= head + 4 + length
            }
            None => self.buffer.ends_with(b"0\r\n\r\n"),
        }
    }
}

/// Processor time a process has spent, in microseconds.
fn cpu_us(process: &Child) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap_or_default();
    let after_name = text.rsplit(')').next().unwrap_or_default();
    let ticks: u64 =
        after_name.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    // Linux counts in hundredths of a second for this file, whatever the kernel's own tick.
    ticks * 10_000
}

fn rss_mb(process: &Child) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}
