//! What operators do.

use serde_json::json;

use crate::client::{chat, send};
use crate::gateway::TestGateway;
use crate::node::MockNode;

async fn post(gateway: &TestGateway, path: &str, body: serde_json::Value) -> (u16, serde_json::Value) {
    let answer = send("POST", &format!("{}{path}", gateway.endpoint), &[], body.to_string()).await;
    (answer.status, answer.json().await)
}

#[tokio::test]
async fn load_and_unload_by_hand() {
    let a = MockNode::start("a", 100).await.with_loadable("m", 10, 10);
    let b = MockNode::start("b", 100).await.with_loadable("m", 10, 10);
    let gateway = TestGateway::start(&[&a, &b], "", "").await;
    let (status, body) = post(&gateway, "/cortex/v1/models/load", json!({"model": "m", "node": "b"})).await;
    assert_eq!((status, &body["resident_on"]), (200, &json!(["b"])), "{body}");
    assert!(b.state.is_loaded("m") && !a.state.is_loaded("m"));
    let (status, body) = post(&gateway, "/cortex/v1/models/unload", json!({"model": "m"})).await;
    assert_eq!((status, &body["unloaded_from"]), (200, &json!(["b"])));
    assert!(!b.state.is_loaded("m"));
    let (status, body) = post(&gateway, "/cortex/v1/models/load", json!({"model": "m", "node": "bb"})).await;
    assert_eq!(status, 404);
    assert!(body["error"]["message"].as_str().expect("text").contains("did you mean 'b'?"), "{body}");
    let (status, body) = post(&gateway, "/cortex/v1/models/load", json!({"modle": "m"})).await;
    assert_eq!(status, 400, "{body}");
}

#[tokio::test]
async fn a_drained_node_gets_nothing_new() {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let b = MockNode::start("b", 100).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a, &b], "[routing]\nstrategy = \"round_robin\"", "").await;
    assert_eq!(post(&gateway, "/cortex/v1/nodes/a/drain", json!({"draining": true})).await.0, 200);
    for _ in 0..4 {
        assert_eq!(chat(&gateway.endpoint, "m", false, "").await.header("x-cortex-node"), "b");
    }
    assert_eq!(post(&gateway, "/cortex/v1/nodes/a/drain", json!({"draining": false})).await.0, 200);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..4 {
        seen.insert(chat(&gateway.endpoint, "m", false, "").await.header("x-cortex-node").to_owned());
    }
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn a_pinned_model_is_loaded_unasked_and_comes_back() {
    let a = MockNode::start("a", 100).await.with_loadable("m", 10, 10);
    let gateway = TestGateway::start(&[&a], "", "[[models]]\nid = \"m\"\npinned_on = [\"a\"]").await;
    gateway.until("loaded", |_| a.state.is_loaded("m")).await;
    assert_eq!(a.state.history(), ["load m"]);
}

#[tokio::test]
async fn an_idle_model_is_unloaded_after_its_time_and_a_busy_one_is_not() {
    let a = MockNode::start("a", 100).await.with_loaded("idle", 10).with_loaded("busy", 10);
    let catalogue =
        "[[models]]\nid = \"idle\"\nidle_timeout_s = 1\n[[models]]\nid = \"busy\"\nidle_timeout_s = 1";
    let gateway = TestGateway::start(&[&a], "", catalogue).await;
    let mut stream = chat(&gateway.endpoint, "busy", true, "chunks=100000 pause_ms=20").await;
    stream.next().await.expect("it began");
    gateway.until("swept", |_| !a.state.is_loaded("idle")).await;
    stream.next().await.expect("still running");
    assert!(a.state.is_loaded("busy"));
    drop(stream);
    gateway.until("swept, too", |_| !a.state.is_loaded("busy")).await;
}

#[tokio::test]
async fn a_worker_is_recycled_when_idle_after_many_cycles() {
    let a = MockNode::start("a", 100).await.with_loaded("stays", 10).with_loadable("comes", 10, 10);
    let gateway = TestGateway::start(&[&a], "[eviction]\ndefrag_after_cycles = 2", "").await;
    for _ in 0..2 {
        assert_eq!(post(&gateway, "/cortex/v1/models/load", json!({"model": "comes"})).await.0, 200);
        assert_eq!(post(&gateway, "/cortex/v1/models/unload", json!({"model": "comes"})).await.0, 200);
    }
    gateway
        .until("recycled", |_| {
            let history = a.state.history();
            history.contains(&"unload stays".to_owned()) && history.contains(&"load stays".to_owned())
        })
        .await;
}
