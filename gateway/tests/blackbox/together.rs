//! Several gateways agreeing through etcd: a stand-in everywhere, the real one where there is one (`ETCD` names
//! the program, or it is in `PATH`).

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use cortex::coordinator::{Claim, Coordinator, Etcd, Spendings, Spent};
use cortex::proxy::client::client;
use serde_json::json;
use wire_api::node::registration::{self, Registration};

use crate::client::{chat, get, send};
use crate::fake_etcd::FakeEtcd;
use crate::gateway::TestGateway;
use crate::node::MockNode;

/// etcd as a process of its own, in a folder of its own. Killed when dropped.
struct RealEtcd {
    endpoint: String,
    peer: String,
    program: PathBuf,
    folder: tempfile::TempDir,
    process: Option<Child>,
}

fn program() -> Option<PathBuf> {
    let named = std::env::var_os("ETCD").map(PathBuf::from);
    let in_path = || {
        std::env::split_paths(&std::env::var_os("PATH")?)
            .map(|folder| folder.join("etcd"))
            .find(|p| p.exists())
    };
    named.or_else(in_path)
}

/// Ports nobody listens on now.
fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("bound"))
}

impl RealEtcd {
    async fn start() -> Option<Self> {
        let Some(program) = program() else {
            println!("SKIPPED: no etcd in PATH and ETCD names none; the stand-in was tested alone");
            return None;
        };
        let folder = tempfile::tempdir().expect("a folder");
        let mut etcd =
            Self { endpoint: free_address(), peer: free_address(), program, folder, process: None };
        etcd.launch().await;
        Some(etcd)
    }

    async fn launch(&mut self) {
        let process = Command::new(&self.program)
            .arg("--data-dir")
            .arg(self.folder.path().join("data"))
            .args(["--name", "test", "--listen-client-urls", &self.endpoint])
            .args(["--advertise-client-urls", &self.endpoint, "--listen-peer-urls", &self.peer])
            .args(["--initial-advertise-peer-urls", &self.peer])
            .args(["--initial-cluster", &format!("test={}", self.peer)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd starts");
        self.process = Some(process);
        for _ in 0..1200 {
            let request = http::Request::get(format!("{}/health", self.endpoint));
            let request = request.body(http_body_util::Full::default()).expect("a request");
            if client(Duration::from_secs(1)).request(request).await.is_ok_and(|a| a.status().is_success()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("etcd never became healthy");
    }

    /// As `kill -9`.
    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("it can be killed");
            process.wait().expect("it ended");
        }
    }
}

impl Drop for RealEtcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn settings(endpoint: &str, name: &str) -> String {
    format!("[coordinator]\netcd = [{endpoint:?}]\nname = {name:?}\n")
}

async fn join(endpoint: &str, name: &str) -> Etcd {
    let etcd = Etcd::join(client(Duration::from_secs(2)), &[endpoint.to_owned()], name);
    while !etcd.standing().reachable {
        etcd.settled().await;
    }
    etcd
}

/// What every etcd must do, whoever plays it.
async fn check(endpoint: &str) {
    let (one, two) = (join(endpoint, "one").await, join(endpoint, "two").await);
    // Both know both.
    for etcd in [&one, &two] {
        while etcd.standing().gateways != ["one", "two"] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    // A load is claimed once.
    let Ok(Claim::Mine(claim)) = one.claim_model("org/m").await else { panic!("nobody has it") };
    match two.claim_model("org/m").await {
        Ok(Claim::Theirs { owner }) => assert_eq!(owner, "one"),
        _ => panic!("it is claimed"),
    }
    assert!(matches!(two.claim_model("other").await, Ok(Claim::Mine(_))), "another model is free");
    drop(claim);
    loop {
        if let Ok(Claim::Mine(_)) = two.claim_model("org/m").await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Turns on a node are taken one after the other, in order.
    let two = Arc::new(two);
    let turn = one.lock_node("n").await.expect("free");
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let waiting = tokio::spawn({
        let (two, told) = (Arc::clone(&two), told.clone());
        async move {
            let turn = two.lock_node("n").await.expect("its turn comes");
            told.send("two").expect("heard");
            drop(turn);
        }
    });
    drop(one.lock_node("other node").await.expect("nobody else is there"));
    assert!(heard.try_recv().is_err(), "it is still the other's turn");
    drop(turn);
    assert_eq!(heard.recv().await, Some("two"));
    waiting.await.expect("it ended");
    // What is spent through one is known to the other.
    let spent = Spendings::from([("alice".to_owned(), Spent { requests: 3, tokens: 70 })]);
    one.tell_spent(spent.clone());
    while two.spent_elsewhere().get("one") != Some(&spent) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!one.spent_elsewhere().contains_key("one"), "not to itself");
}

#[tokio::test]
async fn the_stand_in_keeps_the_agreement() {
    let etcd = FakeEtcd::new().await;
    check(&etcd.endpoint).await;
}

#[tokio::test]
async fn etcd_keeps_the_agreement() {
    let Some(etcd) = RealEtcd::start().await else { return };
    check(&etcd.endpoint).await;
}

/// Registers a node as neuron does.
fn registration_of(node: &MockNode) -> (String, String) {
    let told = Registration { name: node.state.name.clone(), endpoint: node.endpoint.clone(), weight: 1.0 };
    (registration::key(&node.state.name), serde_json::to_string(&told).expect("JSON"))
}

#[tokio::test]
async fn a_neuron_that_makes_itself_known_is_served_from_and_stays_while_it_answers() {
    let etcd = FakeEtcd::new().await;
    let gateway = TestGateway::start(&[], &settings(&etcd.endpoint, "g"), "").await;
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let (key, value) = registration_of(&a);
    etcd.put(&key, &value);
    gateway.until("it is there", |g| g.fleet.view().model("m").is_some()).await;
    assert_eq!(chat(&gateway.endpoint, "m", false, "").await.status, 200);
    // It loses etcd, not its models.
    etcd.delete(&key);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(chat(&gateway.endpoint, "m", false, "").await.status, 200);
    // It is gone for good.
    drop(a);
    gateway.until("it has left", |g| g.fleet.view().nodes.is_empty()).await;
}

#[tokio::test]
async fn without_etcd_what_is_loaded_serves_and_what_is_cold_is_refused_until_it_is_back() {
    let etcd = FakeEtcd::new().await;
    let a = MockNode::start("a", 100).await.with_loaded("warm", 10).with_loadable("cold", 10, 10);
    let gateway = TestGateway::start(&[&a], &settings(&etcd.endpoint, "g"), "").await;
    gateway.until("etcd is there", |g| g.placement.coordinator().standing().reachable).await;
    etcd.stop();
    gateway.until("the loss is known", |g| !g.placement.coordinator().standing().reachable).await;
    assert_eq!(chat(&gateway.endpoint, "warm", false, "").await.status, 200);
    let refused = chat(&gateway.endpoint, "cold", false, "").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "5"));
    assert_eq!(refused.json().await["error"]["code"], "coordinator_lost");
    let url = format!("{}/cortex/v1/models/unload", gateway.endpoint);
    let refused = send("POST", &url, &[], json!({"model": "warm"}).to_string()).await;
    assert_eq!(refused.json().await["error"]["code"], "coordinator_lost");
    let fleet = get(&format!("{}/cortex/v1/fleet", gateway.endpoint)).await;
    assert_eq!(fleet["coordinator"]["reachable"], false);
    assert!(fleet["coordinator"]["fault"].is_string(), "{fleet}");
    etcd.start().await;
    gateway.until("it is back", |g| g.placement.coordinator().standing().reachable).await;
    assert_eq!(chat(&gateway.endpoint, "cold", false, "").await.status, 200);
    assert_eq!(a.state.history(), ["load cold"]);
}

#[tokio::test]
async fn two_gateways_load_a_model_once_over_the_whole_fleet() {
    let etcd = FakeEtcd::new().await;
    let a = MockNode::start("a", 100).await.with_loadable("m", 10, 300);
    let b = MockNode::start("b", 100).await.with_loadable("m", 10, 300);
    let nodes = [&a, &b];
    let one = TestGateway::start(&nodes, &settings(&etcd.endpoint, "one"), "").await;
    let two = TestGateway::start(&nodes, &settings(&etcd.endpoint, "two"), "").await;
    for gateway in [&one, &two] {
        gateway.until("etcd is there", |g| g.placement.coordinator().standing().reachable).await;
    }
    let (left, right) =
        tokio::join!(chat(&one.endpoint, "m", false, ""), chat(&two.endpoint, "m", false, ""));
    assert_eq!((left.status, right.status), (200, 200));
    let loads = [a.state.history(), b.state.history()].concat();
    assert_eq!(loads, ["load m"], "not once on each node");
    while !etcd.keys("/cortex/lo").is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_kill_of_etcd_under_load_costs_no_answer_from_what_is_loaded() {
    let Some(mut etcd) = RealEtcd::start().await else { return };
    let a = MockNode::start("a", 100).await.with_loaded("warm", 10).with_loadable("cold", 10, 10);
    let gateway = TestGateway::start(&[&a], &settings(&etcd.endpoint, "g"), "").await;
    gateway.until("etcd is there", |g| g.placement.coordinator().standing().reachable).await;
    let endpoint = gateway.endpoint.clone();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let load = tokio::spawn(async move {
        let mut answers = 0u32;
        while !*stopped.borrow() {
            let text = chat(&endpoint, "warm", true, "chunks=5 pause_ms=2").await.text().await;
            assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
            answers += 1;
        }
        answers
    });
    etcd.kill();
    gateway.until("the loss is known", |g| !g.placement.coordinator().standing().reachable).await;
    let refused = chat(&gateway.endpoint, "cold", false, "").await.json().await;
    assert_eq!(refused["error"]["code"], "coordinator_lost");
    etcd.launch().await;
    gateway.until("it is back", |g| g.placement.coordinator().standing().reachable).await;
    assert_eq!(chat(&gateway.endpoint, "cold", false, "").await.status, 200);
    stop.send_replace(true);
    assert!(load.await.expect("every answer was whole") > 0);
}
