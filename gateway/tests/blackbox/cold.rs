//! Models that nobody has loaded yet.

use std::sync::atomic::Ordering;

use serde_json::json;

use crate::client::{chat, chat_with, get, send};
use crate::gateway::TestGateway;
use crate::node::MockNode;

#[tokio::test]
async fn twenty_requests_for_a_cold_model_are_one_load() {
    let a = MockNode::start("a", 100).await.with_loadable("m", 10, 300);
    let gateway = TestGateway::start(&[&a], "", "").await;
    let requests: Vec<_> = (0..20)
        .map(|_| {
            let endpoint = gateway.endpoint.clone();
            tokio::spawn(async move { chat(&endpoint, "m", false, "").await.status })
        })
        .collect();
    for request in requests {
        assert_eq!(request.await.expect("a request"), 200);
    }
    assert_eq!(a.state.history(), ["load m"]);
}

#[tokio::test]
async fn who_waits_for_a_stream_hears_how_far_the_load_is() {
    let a = MockNode::start("a", 100).await.with_loadable("m", 10, 2500);
    let gateway = TestGateway::start(&[&a], "", "").await;
    let mut answer = chat(&gateway.endpoint, "m", true, "").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "text/event-stream"));
    let first = answer.next().await.expect("a keep-alive");
    assert!(first.starts_with(": loading on a"), "{first:?}");
    let text = answer.text().await;
    assert!(text.matches("\n\n").count() > 5 && text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test]
async fn who_will_not_wait_is_told_when_to_come_back() {
    let a = MockNode::start("a", 100).await.with_loadable("m", 10, 700);
    let gateway = TestGateway::start(&[&a], "", "").await;
    let answer = chat_with(&gateway.endpoint, "m", false, &[("x-cortex-wait", "0")]).await;
    assert_eq!(answer.status, 503);
    assert!(!answer.header("retry-after").is_empty());
    let body = answer.json().await;
    assert_eq!(body["error"]["code"], "model_loading");
    assert!(body["loading"]["state"].is_string(), "{body}");
    // The load it began goes on.
    gateway.until("loaded", |_| a.state.is_loaded("m")).await;
}

#[tokio::test]
async fn an_idle_model_makes_room_before_the_load_and_the_reason_is_kept() {
    let a = MockNode::start("a", 100).await.with_loaded("old", 80).with_loadable("new", 50, 20);
    let gateway = TestGateway::start(&[&a], "", "").await;
    assert_eq!(chat(&gateway.endpoint, "new", false, "").await.status, 200);
    assert_eq!(a.state.history(), ["unload old", "load new"]);
    // And back again: both directions of a swap.
    assert_eq!(chat(&gateway.endpoint, "old", false, "").await.status, 200);
    assert_eq!(a.state.history(), ["unload old", "load new", "unload new", "load old"]);
    let fleet = get(&format!("{}/cortex/v1/fleet", gateway.endpoint)).await;
    let evictions: Vec<_> = fleet["changes"]
        .as_array()
        .expect("changes")
        .iter()
        .filter(|change| change["action"] == "evict")
        .map(|change| (change["model"].clone(), change["on_behalf_of"].clone(), change["outcome"].clone()))
        .collect();
    assert_eq!(
        evictions,
        [(json!("new"), json!("old"), json!("done")), (json!("old"), json!("new"), json!("done"))]
    );
    assert!(fleet["changes"].to_string().contains("regret_s="), "the evictor's terms are kept");
}

#[tokio::test]
async fn nodes_without_leases_are_served_by_their_revision_alone() {
    let a = MockNode::start_with("a", 100, false).await.with_loaded("old", 80).with_loadable("new", 50, 20);
    let gateway = TestGateway::start(&[&a], "", "").await;
    assert_eq!(chat(&gateway.endpoint, "new", false, "").await.status, 200);
    assert_eq!(a.state.history(), ["unload old", "load new"]);
}

#[tokio::test]
async fn a_pinned_model_is_never_evicted() {
    let a = MockNode::start("a", 100).await.with_loaded("old", 80).with_loadable("new", 50, 20);
    let catalogue = "[[models]]\nid = \"old\"\npinned = true";
    let gateway = TestGateway::start(&[&a], "", catalogue).await;
    let answer = chat(&gateway.endpoint, "new", false, "").await;
    assert_eq!(answer.status, 503);
    let body = answer.json().await;
    assert_eq!(body["error"]["code"], "no_capacity", "{body}");
    assert_eq!(a.state.history(), [] as [&str; 0]);
}

#[tokio::test]
async fn a_busy_model_is_not_evicted_until_its_turn_is_over() {
    let a = MockNode::start("a", 100).await.with_loaded("busy", 80).with_loadable("new", 50, 20);
    let gateway = TestGateway::start(&[&a], "[eviction]\nturn_after_s = 1", "").await;
    let mut stream = chat(&gateway.endpoint, "busy", true, "chunks=60 pause_ms=50").await;
    stream.next().await.expect("it began");
    let endpoint = gateway.endpoint.clone();
    let waiting = tokio::spawn(async move { chat(&endpoint, "new", false, "").await.status });
    let text = stream.text().await;
    assert!(text.ends_with("data: [DONE]\n\n"), "the running answer came whole");
    assert_eq!(waiting.await.expect("a request"), 200);
    assert_eq!(a.state.history(), ["unload busy", "load new"]);
}

#[tokio::test]
async fn a_model_under_constant_load_still_gives_way() {
    let a = MockNode::start("a", 100).await.with_loaded("busy", 80).with_loadable("new", 50, 20);
    let gateway = TestGateway::start(&[&a], "[eviction]\nturn_after_s = 1", "").await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let (endpoint, stop) = (gateway.endpoint.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    assert_eq!(chat(&endpoint, "busy", false, "chunks=4 pause_ms=10").await.status, 200);
                }
            })
        })
        .collect();
    gateway.until("under load", |_| a.state.total_inflight() > 1).await;
    for _ in 0..2 {
        assert_eq!(chat(&gateway.endpoint, "new", false, "").await.status, 200, "no starvation");
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.expect("the other model was served, too");
    }
}

#[tokio::test]
async fn a_failed_eviction_never_loads() {
    let a = MockNode::start("a", 100).await.with_loaded("old", 80).with_loadable("new", 50, 20);
    a.state.refuses_unload.store(true, Ordering::SeqCst);
    let gateway = TestGateway::start(&[&a], "", "").await;
    let answer = chat(&gateway.endpoint, "new", false, "").await;
    assert_eq!(answer.status, 503);
    let body = answer.json().await;
    assert_eq!(body["error"]["code"], "eviction_failed", "{body}");
    assert_eq!(a.state.history(), ["refused unload old: internal_error"]);
    assert_eq!(chat(&gateway.endpoint, "old", false, "").await.status, 200, "the victim serves on");
}

#[tokio::test]
async fn a_load_that_fails_says_why_and_the_next_node_is_tried() {
    let a = MockNode::start("a", 100).await.with_broken("m");
    let gateway = TestGateway::start(&[&a], "", "").await;
    let answer = chat(&gateway.endpoint, "m", false, "").await;
    assert_eq!(answer.status, 503);
    let body = answer.json().await;
    assert_eq!(body["error"]["code"], "load_failed");
    assert!(body["error"]["message"].as_str().expect("text").contains("the file is broken"), "{body}");

    let a = MockNode::start("a", 1000).await.with_broken("m");
    let b = MockNode::start("b", 100).await.with_loadable("m", 10, 10);
    let gateway = TestGateway::start(&[&a, &b], "", "").await;
    assert_eq!(chat(&gateway.endpoint, "m", false, "").await.status, 200);
    assert!(b.state.is_loaded("m"));
}

#[tokio::test]
async fn a_node_that_changed_meanwhile_is_planned_anew() {
    let a = MockNode::start("a", 100).await.with_loaded("old", 80).with_loadable("new", 50, 20);
    let gateway = TestGateway::start(&[&a], "", "").await;
    // Somebody changes residency all the time; the guard must notice and the plan must still get through.
    let node = a.state.clone();
    let meddler = tokio::spawn(async move {
        for _ in 0..5 {
            node.meddle();
            tokio::time::sleep(std::time::Duration::from_millis(40)).await;
        }
    });
    assert_eq!(chat(&gateway.endpoint, "new", false, "").await.status, 200);
    meddler.await.expect("it ended");
    assert!(a.state.is_loaded("new") && !a.state.is_loaded("old"));
}

#[tokio::test]
async fn two_gateways_never_load_one_model_twice() {
    let a = MockNode::start("a", 100).await.with_loaded("old", 80).with_loadable("new", 50, 200);
    let one = TestGateway::start(&[&a], "", "").await;
    let two = TestGateway::start(&[&a], "", "").await;
    let (left, right) =
        tokio::join!(chat(&one.endpoint, "new", false, ""), chat(&two.endpoint, "new", false, ""));
    assert_eq!((left.status, right.status), (200, 200));
    let loads = a.state.history().iter().filter(|entry| *entry == "load new").count();
    assert_eq!(loads, 1, "{:?}", a.state.history());
}

#[tokio::test]
async fn the_cheaper_node_is_loaded_on() {
    let full = MockNode::start("a", 100).await.with_loaded("old", 80).with_loadable("new", 50, 20);
    let free = MockNode::start("b", 100).await.with_loadable("new", 50, 20);
    let gateway = TestGateway::start(&[&full, &free], "", "").await;
    assert_eq!(chat(&gateway.endpoint, "new", false, "").await.status, 200);
    assert!(free.state.is_loaded("new") && full.state.is_loaded("old"));
}

#[tokio::test]
async fn anthropic_clients_get_pings_while_they_wait() {
    let a = MockNode::start("a", 100).await.with_loadable("m", 10, 1500);
    let gateway = TestGateway::start(&[&a], "", "").await;
    let body = json!({"model": "m", "max_tokens": 5, "stream": true, "messages": [{"role": "user", "content": "x"}]});
    let url = format!("{}/v1/messages?beta=true", gateway.endpoint);
    let mut answer = send("POST", &url, &[("anthropic-version", "2023-06-01")], body.to_string()).await;
    assert_eq!(answer.next().await.expect("a ping"), "event: ping\ndata: {\"type\": \"ping\"}\n\n");
}
