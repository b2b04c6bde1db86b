//! `kill -9` under load, of real processes: a node, the gateway. (etcd: see `together`.)

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::client::chat;
use crate::gateway::TestGateway;
use crate::node::MockNode;

/// Names the node a copy of this program is to be, and the file it says its address in.
const ROLE: &str = "CORTEX_TEST_NODE";

/// A process that is killed when this is dropped.
struct Process(Child);

impl Process {
    /// As `kill -9`.
    fn kill(&mut self) {
        self.0.kill().expect("it can be killed");
        self.0.wait().expect("it ended");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test of anything: what a copy of this program does that is to be a node.
#[tokio::test]
async fn a_node_process_serves_until_it_is_killed() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let (name, file) = role.split_once('@').expect("name@file");
    let node = MockNode::start(name, 100).await.with_loaded("m", 10);
    let draft = format!("{file}.draft");
    std::fs::write(&draft, &node.endpoint).expect("written");
    std::fs::rename(&draft, file).expect("renamed");
    std::future::pending::<()>().await;
}

/// A node in a process of its own, and its address.
async fn node_process(name: &str, folder: &Path) -> (Process, String) {
    let file = folder.join(name);
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "survival::a_node_process_serves_until_it_is_killed"])
        .env(ROLE, format!("{name}@{}", file.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a process");
    let process = Process(child);
    loop {
        if let Ok(endpoint) = std::fs::read_to_string(&file) {
            return (process, endpoint);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_costs_no_stream_that_another_can_go_on_with() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut a, a_endpoint) = node_process("a", folder.path()).await;
    let (_b, b_endpoint) = node_process("b", folder.path()).await;
    let settings = format!(
        "[routing]\nstrategy = \"round_robin\"\n[[neurons]]\nname = \"a\"\nendpoint = {a_endpoint:?}\n\
         [[neurons]]\nname = \"b\"\nendpoint = {b_endpoint:?}\n"
    );
    let gateway = TestGateway::start(&[], &settings, "").await;
    let script = "chunks=60 pause_ms=10 logs";
    let undisturbed = chat(&gateway.endpoint, "m", true, script).await.text().await;
    assert!(undisturbed.contains("word-60 ") && undisturbed.ends_with("data: [DONE]\n\n"), "{undisturbed}");
    let mut streams = Vec::new();
    for _ in 0..10 {
        let mut answer = chat(&gateway.endpoint, "m", true, script).await;
        let first = answer.next().await.expect("it began");
        streams.push(tokio::spawn(async move { first + &answer.text().await }));
    }
    a.kill();
    for stream in streams {
        assert_eq!(stream.await.expect("a stream"), undisturbed);
    }
    // What comes after is sent to who is left.
    for _ in 0..4 {
        assert_eq!(chat(&gateway.endpoint, "m", false, "").await.status, 200);
    }
}

fn cortex(config: &Path) -> Process {
    let child = Command::new(env!("CARGO_BIN_EXE_cortex"))
        .args(["serve", "--config"])
        .arg(config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("cortex starts");
    Process(child)
}

async fn until_it_serves(endpoint: &str) {
    let client = cortex::proxy::client::client(Duration::from_secs(1));
    loop {
        let request = http::Request::get(format!("{endpoint}/ready"));
        let request = request.body(http_body_util::Full::default()).expect("a request");
        if client.request(request).await.is_ok_and(|answer| answer.status().is_success()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_gateway_leaves_no_work_behind_and_its_books_are_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
    let (endpoint, config) = (format!("http://{free}"), folder.path().join("cortex.toml"));
    let settings = format!(
        "[gateway]\nlisten = \"{free}\"\nmetrics_listen = \"\"\n[usage]\ndatabase = \"usage.sqlite\"\n\
         [[neurons]]\nname = \"a\"\nendpoint = {:?}\n",
        a.endpoint
    );
    std::fs::write(&config, settings).expect("written");
    let mut process = cortex(&config);
    until_it_serves(&endpoint).await;
    assert_eq!(chat(&endpoint, "m", false, "").await.status, 200);
    let books = || {
        let output = Command::new(env!("CARGO_BIN_EXE_cortex"))
            .args(["usage", "--database"])
            .arg(folder.path().join("usage.sqlite"))
            .output()
            .expect("cortex runs");
        String::from_utf8_lossy(&output.stdout).lines().count()
    };
    // A row is written when its request is over, not when the gateway ends.
    let mut before = books();
    while before < 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        before = books();
    }
    let mut streams = Vec::new();
    for _ in 0..5 {
        let mut answer = chat(&endpoint, "m", true, "chunks=100000 pause_ms=5").await;
        answer.next().await.expect("it began");
        streams.push(answer);
    }
    process.kill();
    while a.state.total_inflight() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for stream in streams {
        let text = stream.text().await;
        assert!(!text.contains("[DONE]"), "a cut answer must not pass for a whole one");
    }
    let _process = cortex(&config);
    until_it_serves(&endpoint).await;
    assert_eq!(chat(&endpoint, "m", false, "").await.status, 200);
    assert!(books() >= before, "what was written down stays");
}
