//! Clients of dialects that nodes do not speak.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::client::{Answer, send};
use crate::gateway::TestGateway;
use crate::node::MockNode;

async fn messages(gateway: &TestGateway, body: Value, script: &str) -> Answer {
    let url = format!("{}/v1/messages?beta=true", gateway.endpoint);
    let headers = [("anthropic-version", "2023-06-01"), ("x-api-key", "k"), ("x-mock", script)];
    send("POST", &url, &headers, body.to_string()).await
}

fn hello(stream: bool) -> Value {
    json!({
        "model": "claude-m", "max_tokens": 100, "stream": stream, "system": "Be brief.",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    })
}

async fn house() -> (MockNode, TestGateway) {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a], "", "[[models]]\nid = \"m\"\naliases = [\"claude-m\"]").await;
    (a, gateway)
}

#[tokio::test]
async fn an_anthropic_client_gets_a_message() {
    let (a, gateway) = house().await;
    let answer = messages(&gateway, hello(false), "").await;
    assert_eq!(answer.status, 200);
    assert!(answer.header("request-id").starts_with("req_"));
    let message = answer.json().await;
    assert_eq!((&message["type"], &message["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!(message["model"], "claude-m", "the name the client used");
    assert_eq!(message["content"], json!([{"type": "text", "text": "a-1 a-2 a-3 "}]));
    assert_eq!(message["stop_reason"], "end_turn");
    assert_eq!(message["usage"]["output_tokens"], 3);
    assert_eq!(message["usage"]["cache_read_input_tokens"], 4);
    let requests = a.state.requests.lock().expect("unpoisoned").clone();
    let (path, _, body) = &requests[0];
    assert_eq!(path, "/v1/chat/completions");
    assert_eq!((&body["model"], &body["stream"]), (&json!("m"), &json!(true)));
    assert_eq!(body["messages"][0], json!({"role": "system", "content": "Be brief."}));
}

#[tokio::test]
async fn an_anthropic_client_gets_a_stream_with_the_same_text() {
    let (_a, gateway) = house().await;
    let answer = messages(&gateway, hello(true), "").await;
    assert_eq!(answer.header("content-type"), "text/event-stream");
    let text = answer.text().await;
    let events: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(events[0], "message_start");
    assert_eq!(events.last(), Some(&"message_stop"));
    let deltas: String = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
        .filter_map(|event| event["delta"]["text"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(deltas, "a-1 a-2 a-3 ");
}

#[tokio::test]
async fn a_stream_that_dies_ends_in_the_anthropic_shape() {
    let (_a, gateway) = house().await;
    let text = messages(&gateway, hello(true), "chunks=5 die_after=3").await.text().await;
    assert!(text.contains("event: error\n") && !text.contains("message_stop"), "{text}");
    let answer = messages(&gateway, hello(false), "chunks=5 die_after=3").await;
    assert_eq!(answer.status, 502, "a cut answer must not pass for a whole one");
    assert_eq!(answer.json().await["type"], "error");
}

#[tokio::test]
async fn refusals_of_nodes_and_of_the_translation_have_the_anthropic_shape() {
    let (a, gateway) = house().await;
    let answer = messages(&gateway, hello(true), "status=400").await;
    assert_eq!(answer.status, 400);
    let body = answer.json().await;
    assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!("invalid_request_error")));
    let answer = messages(&gateway, json!({"model": "claude-m", "messages": []}), "").await;
    assert_eq!(answer.status, 400);
    assert!(answer.json().await["error"]["message"].as_str().expect("text").contains("max_tokens"));
    assert_eq!(a.state.served.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn tokens_are_counted_by_the_node() {
    let (_a, gateway) = house().await;
    let url = format!("{}/v1/messages/count_tokens", gateway.endpoint);
    let body = json!({"model": "claude-m", "messages": [{"role": "user", "content": "Hi"}]});
    let answer = send("POST", &url, &[("anthropic-version", "2023-06-01")], body.to_string()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json().await, json!({"input_tokens": 11}));
}

#[tokio::test]
async fn a_client_of_responses_gets_its_events() {
    let (_a, gateway) = house().await;
    let url = format!("{}/v1/responses", gateway.endpoint);
    let ask = |stream: bool| {
        json!({"model": "m", "stream": stream, "store": false, "input": [{"role": "user", "content": "Hi"}]})
            .to_string()
    };
    let text = send("POST", &url, &[], ask(true)).await.text().await;
    let events: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!((events[0], events.last()), ("response.created", Some(&"response.completed")));
    assert!(events.contains(&"response.output_text.delta"));
    let answer = send("POST", &url, &[], ask(false)).await.json().await;
    assert_eq!((&answer["object"], &answer["status"]), (&json!("response"), &json!("completed")));
    assert_eq!(answer["output"][0]["content"][0]["text"], "a-1 a-2 a-3 ");
}
