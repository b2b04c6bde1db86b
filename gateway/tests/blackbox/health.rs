//! Nodes that fall silent, die and come back.

use std::sync::atomic::Ordering;

use crate::client::{chat, get};
use crate::gateway::TestGateway;
use crate::node::MockNode;

fn health(gateway: &cortex::server::Gateway, node: &str) -> String {
    gateway.fleet.view().node(node).expect("configured").health.as_str().to_owned()
}

#[tokio::test]
async fn a_silent_node_is_left_out_only_after_several_missed_polls_and_is_not_forgotten() {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let settings = "[polling]\ninterval_ms = 20\ntimeout_ms = 100\nmisses = 4\n";
    let gateway = TestGateway::start(&[&a], settings, "").await;
    a.state.mute.store(true, Ordering::SeqCst);
    gateway.until("suspect", |g| health(g, "a") == "suspect").await;
    assert_eq!(chat(&gateway.endpoint, "m", false, "").await.status, 200, "one missed poll changes nothing");
    gateway.until("down", |g| health(g, "a") == "down").await;
    let answer = chat(&gateway.endpoint, "m", false, "").await;
    assert_eq!(answer.status, 503, "not 404: the model is known");
    let body = answer.json().await;
    assert!(body["error"]["message"].as_str().expect("text").contains("a is down"), "{body}");
    let list = get(&format!("{}/v1/models", gateway.endpoint)).await;
    assert_eq!(list["data"][0]["id"], "m");
    a.state.mute.store(false, Ordering::SeqCst);
    gateway.until("up again", |g| health(g, "a") == "up").await;
    assert_eq!(chat(&gateway.endpoint, "m", false, "").await.status, 200);
}

#[tokio::test]
async fn a_silent_node_holds_up_nobody_else() {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let b = MockNode::start("b", 100).await.with_loaded("n", 10);
    b.state.mute.store(true, Ordering::SeqCst);
    let gateway = TestGateway::start_unheard(&[&a, &b], "[polling]\ntimeout_ms = 20000", "").await;
    gateway.until("a is known", |g| health(g, "a") == "up").await;
    assert_eq!(chat(&gateway.endpoint, "m", false, "").await.status, 200);
    let answer = chat(&gateway.endpoint, "n", false, "").await;
    assert_eq!(answer.status, 503, "nobody knows yet whether b has it");
    assert_eq!(answer.json().await["error"]["code"], "fleet_incomplete");
}

#[tokio::test]
async fn a_dead_node_s_requests_go_elsewhere_at_once() {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let b = MockNode::start("b", 100).await.with_loaded("m", 10);
    let settings = "[routing]\nstrategy = \"round_robin\"\n[polling]\ninterval_ms = 60000\n";
    let gateway = TestGateway::start(&[&a, &b], settings, "").await;
    a.kill();
    let breaker_open = |node: &str| {
        let view = gateway.gateway.fleet.view();
        view.node(node).expect("configured").gauge.breaker() != cortex::fleet::gauge::BreakerState::Closed
    };
    for _ in 0..12 {
        let answer = chat(&gateway.endpoint, "m", false, "").await;
        assert_eq!((answer.status, answer.header("x-cortex-node")), (200, "b"));
    }
    assert!(breaker_open("a") && !breaker_open("b"));
}
