//! What the gateway adds to a request, side by side with others, on this machine, in one run.
//!
//! ```text
//! cargo build --release -p cortex --bin cortex
//! cargo run --release -p cortex --example added_cost [-- SECONDS]
//! ```
//!
//! An upstream answers every chat request with the same JSON of about a kilobyte, or with a stream of
//! fifty-two events. The contestants: the upstream itself, nginx (on the path, or `NGINX`), a bare reverse proxy
//! that only reads the model's name, cortex with routing, metrics and keys on, cortex with its usage ledger as
//! well, and the SGLang gateway (`sglang-router` on the path, or `SGLANG_ROUTER`). Who is not installed is left
//! out, and said so. Each runs in a process of its own; this process is the client.
//!
//! Printed are requests per second at 1, 16 and 64 connections with latencies and the processor time each
//! contestant spent per request; the time of one stream; memory at rest, per open stream, and with ten thousand
//! streams waiting. Rounds go round the contestants, and the best round of each counts: what else this machine
//! does disturbs all alike. Figures of one run are comparable with each other and with nothing else.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
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
const IDLE: &str =
    r#"{"model":"m","stream":true,"user":"idle","messages":[{"role":"user","content":"Begin."}]}"#;
const SILENT: &str =
    r#"{"model":"m","stream":true,"user":"silent","messages":[{"role":"user","content":"Wait."}]}"#;
/// Streams that are open and idle while memory per stream is measured.
const OPEN: usize = 1000;
/// Streams whose answer does not begin.
const WAITING: usize = 10_000;
/// Rounds around the contestants.
const ROUNDS: usize = 3;
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
            if has(&body, b"\"user\":\"silent\"") {
                std::future::pending::<()>().await;
            }
            if has(&body, b"\"user\":\"idle\"") {
                let first = Ok::<_, Infallible>(Bytes::from_static(b"data: {\"choices\":[]}\n\n"));
                let events = futures_util::stream::iter([first]);
                let events = futures_util::StreamExt::chain(events, futures_util::stream::pending());
                return ([("content-type", "text/event-stream")], Body::from_stream(events)).into_response();
            }
            if !has(&body, b"\"stream\":true") {
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
    let foreign = r#"{"object":"list","data":[{"id":"m","object":"model"}]}"#;
    let json = |text: &'static str| move || async move { ([("content-type", "application/json")], text) };
    let models = r#"{"boot_id":"b","sequence":1,"models":[{"id":"m","state":"ready"}]}"#;
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/models", get(json(models)))
        .route("/discovery", get(json("{}")))
        // What other gateways want to know of a worker.
        .route("/v1/models", get(json(foreign)))
        .route("/health", get(json("{}")))
        .route("/health_generate", get(json("{}")))
        .route(
            "/get_server_info",
            get(json(r#"{"model_path":"m","served_model_name":"m","tp_size":1,"dp_size":1}"#)),
        )
        .route(
            "/server_info",
            get(json(r#"{"model_path":"m","served_model_name":"m","tp_size":1,"dp_size":1}"#)),
        )
        .route("/get_model_info", get(json(r#"{"model_path":"m","is_generation":true}"#)))
        .route("/model_info", get(json(r#"{"model_path":"m","is_generation":true}"#)))
        .route("/get_load", get(json("[]")))
}

fn has(body: &[u8], words: &[u8]) -> bool {
    memchr::memmem::find(body, words).is_some()
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

/// Starts a process that may have as many connections as the machine allows.
fn spawn(name: &'static str, port: u16, program: &Path, arguments: &[&str]) -> Option<Contestant> {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n $(ulimit -Hn); exec \"$0\" \"$@\""]).arg(program).args(arguments);
    let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    Some(Contestant { name, port, process })
}

/// A program named by a variable, or found on the path.
fn program(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(variable) {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file());
    if found.is_none() {
        println!("{name} is not installed and left out; {variable} may name it");
    }
    found
}

/// The best of what one contestant did at one number of connections.
#[derive(Clone, Copy, Default)]
struct Best {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_us: f64,
}

async fn compare(seconds: u64) {
    let folder = std::env::temp_dir().join(format!("cortex-added-cost-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    raise_own_limit();
    let key = cortex::keys::file::create(&folder.join("keys.toml"), "bench", false).expect("a key");
    let contestants = start_all(&folder).await;
    println!("{:14} {:>6} {:>10} {:>9} {:>9} {:>11}", "", "conns", "req/s", "p50 ms", "p99 ms", "CPU µs/req");
    let rest: Vec<f64> = contestants.iter().map(|contestant| rss_mb(&contestant.process)).collect();
    let mut streams = vec![f64::INFINITY; contestants.len()];
    for connections in [1, 16, 64] {
        let mut best = vec![Best::default(); contestants.len()];
        for _ in 0..ROUNDS {
            for (at, contestant) in contestants.iter().enumerate() {
                let run = measure(contestant, connections, seconds, &key).await;
                let known = &mut best[at];
                known.cpu_us = if known.cpu_us > 0.0 { known.cpu_us.min(run.cpu_us) } else { run.cpu_us };
                if run.per_second > known.per_second {
                    *known = Best { cpu_us: known.cpu_us, ..run };
                }
                if connections == 1 {
                    let mut times = load(contestant.port, 1, Duration::from_secs(1), STREAM, &key).await;
                    times.sort_unstable();
                    streams[at] = streams[at].min(times[times.len() / 2] as f64 / 1000.0);
                }
            }
        }
        for (contestant, best) in contestants.iter().zip(&best) {
            let Best { per_second, p50_ms, p99_ms, cpu_us } = best;
            let name = contestant.name;
            println!(
                "{name:14} {connections:>6} {per_second:>10.0} {p50_ms:>9.3} {p99_ms:>9.3} {cpu_us:>11.1}"
            );
        }
    }
    println!(
        "{:14} {:>18} {:>12} {:>16} {:>18}",
        "", "52-event stream ms", "RSS MB idle", "RSS MB after load", "KB per open stream"
    );
    for (at, contestant) in contestants.iter().enumerate() {
        let before = rss_mb(&contestant.process);
        let open = open_streams(contestant.port, OPEN, IDLE, &key, contestant.process.id()).await;
        let each = (rss_mb(&contestant.process) - before) * 1024.0 / OPEN as f64;
        drop(open);
        println!(
            "{:14} {:>18.3} {:>12.1} {before:>16.1} {each:>18.1}",
            contestant.name, streams[at], rest[at]
        );
    }
    if let Some(cortex) = contestants.iter().find(|contestant| contestant.name == "cortex") {
        wait_for_many(cortex, &key).await;
    }
    drop(contestants);
    let _ = std::fs::remove_dir_all(&folder);
}

/// Ten thousand streams whose answer does not begin: what they cost while each is told every second that it waits.
async fn wait_for_many(cortex: &Contestant, key: &str) {
    let before = rss_mb(&cortex.process);
    let open = open_streams(cortex.port, WAITING, SILENT, key, cortex.process.id()).await;
    let cpu = cpu_us(&cortex.process);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let share = (cpu_us(&cortex.process) - cpu) as f64 / 5e4;
    let grown = rss_mb(&cortex.process) - before;
    let each = grown * 1024.0 / WAITING as f64;
    println!(
        "cortex holds {} waiting streams: {grown:.0} MB more, {each:.1} KB each, {share:.0}% of a processor",
        open.len()
    );
}

async fn start_all(folder: &Path) -> Vec<Contestant> {
    let me = std::env::current_exe().expect("a path");
    let [up, proxy, web, sglang] = [(); 4].map(|()| free_port());
    let upstream = up.to_string();
    let mut all = Vec::new();
    all.extend(spawn("direct", up, &me, &["upstream", &upstream]));
    wait_for(up).await;
    all.extend(nginx(web, up, folder));
    all.extend(spawn("axum", proxy, &me, &["proxy", &proxy.to_string(), &upstream]));
    all.extend(cortex("cortex", free_port(), up, "", &me, folder));
    all.extend(cortex("cortex+ledger", free_port(), up, "[usage]\ndatabase = \"usage.sqlite\"", &me, folder));
    if let Some(router) = program("SGLANG_ROUTER", "sglang-router") {
        let url = format!("http://127.0.0.1:{up}");
        let (port, metrics) = (sglang.to_string(), free_port().to_string());
        let arguments = [
            "launch",
            "--host",
            "127.0.0.1",
            "--port",
            &port,
            "--worker-urls",
            &url,
            "--policy",
            "round_robin",
            "--prometheus-port",
            &metrics,
            "--log-level",
            "error",
        ];
        all.extend(spawn("sglang", sglang, &router, &arguments));
    }
    for contestant in &all {
        wait_for(contestant.port).await;
    }
    all
}

async fn measure(contestant: &Contestant, connections: usize, seconds: u64, key: &str) -> Best {
    let before = cpu_us(&contestant.process);
    let mut latencies = load(contestant.port, connections, Duration::from_secs(seconds), QUESTION, key).await;
    let spent = cpu_us(&contestant.process) - before;
    latencies.sort_unstable();
    let at = |share: f64| latencies[(latencies.len() as f64 * share) as usize] as f64 / 1000.0;
    Best {
        per_second: latencies.len() as f64 / seconds as f64,
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        cpu_us: spent as f64 / latencies.len() as f64,
    }
}

/// Opens streams, a few at a time, and waits until the contestant has them all.
async fn open_streams(
    port: u16,
    count: usize,
    body: &'static str,
    key: &str,
    process: u32,
) -> Vec<Connection> {
    let mut open = Vec::with_capacity(count);
    while open.len() < count {
        let mut connection = Connection::open(port, body, key).await;
        connection.socket.write_all(&connection.request).await.expect("sent");
        open.push(connection);
        if open.len() % 64 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    // Two connections for each: the client's and the node's.
    for _ in 0..600 {
        let files = std::fs::read_dir(format!("/proc/{process}/fd")).map_or(0, Iterator::count);
        if files >= 2 * count {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    open
}

/// This process has one connection for each stream; the soft limit of most systems is a thousand files.
fn raise_own_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

fn cortex(
    name: &'static str,
    port: u16,
    upstream: u16,
    more: &str,
    me: &Path,
    folder: &Path,
) -> Option<Contestant> {
    let binary = me.parent()?.parent()?.join("cortex");
    let settings = format!(
        "[gateway]\nlisten = \"127.0.0.1:{port}\"\nmetrics_listen = \"127.0.0.1:0\"\n[keys]\nfile = \"keys.toml\"\n{more}\n\
         [[neurons]]\nname = \"up\"\nendpoint = \"http://127.0.0.1:{upstream}\"\n"
    );
    let path = folder.join(format!("{name}.toml"));
    std::fs::write(&path, settings).expect("a configuration");
    spawn(name, port, &binary, &["serve", "--config", path.to_str()?])
}

/// nginx, where it is installed.
fn nginx(port: u16, upstream: u16, folder: &Path) -> Option<Contestant> {
    let settings = format!(
        "daemon off; master_process off; pid {0}/nginx.pid; error_log /dev/null;\nevents {{ worker_connections 32768; }}\n\
         http {{ access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;\n\
         upstream node {{ server 127.0.0.1:{upstream}; keepalive 128; }}\n\
         server {{ listen 127.0.0.1:{port}; keepalive_requests 100000000; location / {{ proxy_pass http://node; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off; }} }} }}",
        folder.display()
    );
    let path = folder.join("nginx.conf");
    std::fs::write(&path, settings).ok()?;
    spawn("nginx", port, &program("NGINX", "nginx")?, &["-c", path.to_str()?])
}

async fn wait_for(port: u16) {
    for _ in 0..500 {
        if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            // A gateway must have heard of its node before it is asked; some look only every few seconds.
            tokio::time::sleep(Duration::from_secs(4)).await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("nothing listens on port {port}");
}

/// Asks over so many connections for so long; gives the microseconds of every answer.
async fn load(port: u16, connections: usize, time: Duration, body: &'static str, key: &str) -> Vec<u64> {
    let tasks: Vec<_> = (0..connections)
        .map(|_| {
            let key = key.to_owned();
            tokio::spawn(async move {
                let mut connection = Connection::open(port, body, &key).await;
                let mut latencies = Vec::with_capacity(1 << 16);
                let end = Instant::now() + time;
                while Instant::now() < end {
                    let begun = Instant::now();
                    connection.ask().await;
                    latencies.push(begun.elapsed().as_micros() as u64);
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
