//! Streams: unbuffered, ended properly, cancelled when the client leaves.

use std::sync::atomic::Ordering;

use crate::client::{chat, get, send};
use crate::gateway::TestGateway;
use crate::node::MockNode;

#[tokio::test]
async fn frames_arrive_as_they_are_made() {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a], "", "").await;
    let mut answer = chat(&gateway.endpoint, "m", true, "chunks=3 pause_ms=30").await;
    assert_eq!(answer.header("content-type"), "text/event-stream");
    let mut frames = Vec::new();
    while let Some(frame) = answer.next().await {
        frames.push(frame);
    }
    assert!(frames.len() >= 5, "one frame per event, not {}: {frames:?}", frames.len());
    assert!(frames[0].contains("\"role\":\"assistant\""));
    assert!(frames.last().expect("frames").ends_with("data: [DONE]\n\n"));
    let text = get_metrics(&gateway).await;
    for expected in [
        "cortex_prompt_tokens_total{key=\"\",model=\"m\",node=\"a\"} 7",
        "cortex_completion_tokens_total{key=\"\",model=\"m\",node=\"a\"} 3",
        "cortex_cached_tokens_total{key=\"\",model=\"m\",node=\"a\"} 4",
        "cortex_first_token_seconds_count{key=\"\",model=\"m\",node=\"a\"} 1",
        "cortex_requests_total{end=\"complete\",key=\"\",model=\"m\",node=\"a\"} 1",
        "cortex_requests_inflight 0",
    ] {
        assert!(text.contains(expected), "{expected} is missing in\n{text}");
    }
}

async fn get_metrics(gateway: &TestGateway) -> String {
    gateway.until("counted", |g| g.metrics.inflight.get() == 0).await;
    gateway.gateway.metrics.render()
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_work() {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a], "", "").await;
    for _ in 0..5 {
        let mut answer = chat(&gateway.endpoint, "m", true, "chunks=100000 pause_ms=5").await;
        answer.next().await.expect("it began");
        drop(answer);
    }
    gateway.until("the node is idle", |_| a.state.total_inflight() == 0).await;
    assert_eq!(a.state.cancelled.load(Ordering::SeqCst), 5);
    gateway
        .until("counters at zero", |g| g.fleet.gauges().inflight() == 0 && g.metrics.inflight.get() == 0)
        .await;
}

#[tokio::test]
async fn a_stream_that_dies_ends_with_an_error_event_in_the_callers_shape() {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a], "", "").await;
    let text = chat(&gateway.endpoint, "m", true, "chunks=5 die_after=3").await.text().await;
    let last = text.trim_end().rsplit("\n\n").next().expect("events");
    let error: serde_json::Value =
        serde_json::from_str(last.strip_prefix("data: ").expect("data")).expect("JSON");
    assert_eq!(error["error"]["code"], "upstream_lost", "{text}");
    assert!(!text.contains("[DONE]"), "a cut answer must not pass for a whole one: {text}");
    assert!(text.contains("a-2"), "what came before is kept");
}

#[tokio::test]
async fn silence_ends_a_stream_but_length_does_not() {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a], "[gateway]\nidle_timeout_s = 1", "").await;
    let text = chat(&gateway.endpoint, "m", true, "silent").await.text().await;
    assert!(text.contains("upstream_idle"), "{text}");
    // Longer than the idle limit in all, never silent for that long.
    let text = chat(&gateway.endpoint, "m", true, "chunks=15 pause_ms=100").await.text().await;
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test]
async fn a_slow_head_is_bridged_with_keep_alives() {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a], "", "").await;
    let mut answer = chat(&gateway.endpoint, "m", true, "head_ms=2000").await;
    assert_eq!(answer.status, 200);
    assert!(answer.next().await.expect("a keep-alive").starts_with(": "));
    let text = answer.text().await;
    assert!(text.contains("a-1") && text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test]
async fn an_answer_to_nobody_is_cancelled_while_it_is_awaited() {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a], "", "").await;
    let endpoint = gateway.endpoint.clone();
    let waiting = tokio::spawn(async move { chat(&endpoint, "m", false, "chunks=1000 pause_ms=1000").await });
    gateway.until("under way", |_| a.state.total_inflight() == 1).await;
    waiting.abort();
    gateway.until("cancelled", |_| a.state.total_inflight() == 0).await;
}

#[tokio::test]
async fn draining_lets_streams_finish_and_turns_new_requests_away() {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a], "", "").await;
    let mut answer = chat(&gateway.endpoint, "m", true, "chunks=10 pause_ms=50").await;
    answer.next().await.expect("it began");
    gateway.gateway.drain();
    let refused = chat(&gateway.endpoint, "m", false, "").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "2"));
    assert_eq!(refused.json().await["error"]["code"], "draining");
    gateway.stop.send_replace(true);
    assert!(answer.text().await.ends_with("data: [DONE]\n\n"));
    gateway.server.await.expect("it ended by itself");
}

#[tokio::test]
async fn the_fleet_tells_how_it_is() {
    let a = MockNode::start("a", 1 << 30).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a], "", "").await;
    let fleet = get(&format!("{}/cortex/v1/fleet", gateway.endpoint)).await;
    assert_eq!(fleet["router"], "least_tokens");
    assert_eq!(fleet["nodes"][0]["health"], "up");
    assert_eq!(fleet["nodes"][0]["models"][0]["state"], "ready");
    assert_eq!(fleet["nodes"][0]["devices"][0]["total_bytes"], 1u64 << 30);
    let ready = send("GET", &format!("{}/ready", gateway.endpoint), &[], "").await;
    assert_eq!(ready.status, 200);
}
