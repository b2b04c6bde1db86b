//! How requests are carried: limits told, a second node for a slow first, servers of other kinds.

use std::fs;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::HeaderMap;
use serde_json::{Value, json};

use crate::client::{chat, chat_with, get as ask, send};
use crate::gateway::TestGateway;
use crate::node::MockNode;

#[tokio::test]
async fn callers_are_told_what_is_left_in_their_dialect() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keys.toml");
    let key = cortex::keys::file::create(&path, "alice", false).expect("a key");
    let text = fs::read_to_string(&path).expect("written");
    fs::write(&path, format!("{text}requests_per_minute = 3\ntokens_per_minute = 100000\n"))
        .expect("writable");
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let gateway =
        TestGateway::start(&[&a], &format!("[keys]\nfile = {:?}", path.display().to_string()), "").await;
    let mine = [("x-api-key", key.as_str())];
    let answer = chat_with(&gateway.endpoint, "m", false, &mine).await;
    assert_eq!(answer.header("x-ratelimit-limit-requests"), "3");
    assert_eq!(answer.header("x-ratelimit-remaining-requests"), "2");
    assert!(!answer.header("x-ratelimit-reset-requests").is_empty());
    assert_eq!(answer.header("x-ratelimit-limit-tokens"), "100000");
    let body = json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]});
    let url = format!("{}/v1/messages", gateway.endpoint);
    let answer = send("POST", &url, &mine, body.to_string()).await;
    assert_eq!(answer.header("anthropic-ratelimit-requests-remaining"), "1");
    assert!(answer.header("anthropic-ratelimit-tokens-reset").ends_with('Z'));
    assert_eq!(answer.header("x-ratelimit-limit-requests"), "");
    assert_eq!(
        chat_with(&gateway.endpoint, "m", true, &mine).await.header("x-ratelimit-remaining-requests"),
        "0"
    );
    let refused = chat_with(&gateway.endpoint, "m", false, &mine).await;
    assert_eq!((refused.status, refused.header("x-ratelimit-remaining-requests")), (429, "0"));
}

#[tokio::test]
async fn a_slow_node_is_helped_by_another_and_its_work_is_cancelled() {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let b = MockNode::start("b", 100).await.with_loaded("m", 10);
    let settings = "[routing]\nstrategy = \"round_robin\"\n[proxy]\nhedge_after_ms = 50\nhedge_budget = 1.0";
    let gateway = TestGateway::start(&[&a, &b], settings, "").await;
    for _ in 0..2 {
        let answer = chat(&gateway.endpoint, "m", false, "head_ms=3600000 only=a").await;
        assert_eq!((answer.status, answer.header("x-cortex-node")), (200, "b"));
    }
    let counted = |outcome| gateway.gateway.metrics.hedges.with_label_values(&[outcome]).get();
    // The request that met the slow node first was helped; the other may have been, on a busy machine.
    assert!(counted("sent") >= 1);
    assert_eq!(counted("won"), 1, "one of the two went to the slow one first");
    gateway.until("the slower one is given up", |_| a.state.total_inflight() == 0).await;
    assert!(a.state.cancelled.load(std::sync::atomic::Ordering::SeqCst) >= 1);
}

#[tokio::test]
async fn without_the_setting_nothing_is_sent_twice() {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let b = MockNode::start("b", 100).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a, &b], "", "").await;
    assert_eq!(chat(&gateway.endpoint, "m", false, "head_ms=200").await.status, 200);
    let served = |node: &MockNode| node.state.served.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(served(&a) + served(&b), 1);
}

/// What reached a server that is no neuron.
type Seen = Arc<Mutex<Vec<(String, HeaderMap, Value)>>>;

/// A server that speaks only Anthropic's API.
async fn anthropic_server() -> (String, Seen) {
    let seen = Seen::default();
    let keep = Arc::clone(&seen);
    let messages = move |headers: HeaderMap, Json(body): Json<Value>| {
        keep.lock().expect("unpoisoned").push(("messages".into(), headers, body.clone()));
        async move { speak(&body) }
    };
    let models = || async {
        Json(json!({"data": [{"type": "model", "id": "claude-far", "display_name": "Far",
            "created_at": "2026-01-01T00:00:00Z", "max_input_tokens": 1000}],
            "has_more": false, "first_id": "claude-far", "last_id": "claude-far"}))
    };
    let app = Router::new().route("/v1/messages", post(messages)).route("/v1/models", get(models));
    (serve(app).await, seen)
}

async fn serve(app: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        let _ = axum::serve(listener, app).await;
    });
    endpoint
}

fn speak(body: &Value) -> Response {
    if body["messages"][0]["content"].to_string().contains("too much") {
        let error = json!({"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}});
        return (http::StatusCode::TOO_MANY_REQUESTS, Json(error)).into_response();
    }
    let usage = json!({"input_tokens": 9, "cache_read_input_tokens": 3, "output_tokens": 2});
    if body["stream"] != json!(true) {
        let content = json!([{"type": "text", "text": "far away"}]);
        return Json(json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-far",
            "content": content, "stop_reason": "end_turn", "stop_sequence": null, "usage": usage}))
        .into_response();
    }
    let events = [
        json!({"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant",
            "model": "claude-far", "content": [], "stop_reason": null, "stop_sequence": null, "usage": usage}}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "far "}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "away"}}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null},
            "usage": {"output_tokens": 2}}),
        json!({"type": "message_stop"}),
    ];
    let frame =
        |event: &Value| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().expect("named"));
    let text: String = events.iter().map(frame).collect();
    ([("content-type", "text/event-stream")], Body::from(text)).into_response()
}

/// A gateway in front of such a server, with its key in a file.
async fn in_front_of(endpoint: &str, kind: &str) -> (TestGateway, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let key = folder.path().join("key");
    fs::write(&key, "sk-far\n").expect("writable");
    let settings = format!(
        "[[neurons]]\nname = \"far\"\nkind = {kind:?}\nendpoint = {endpoint:?}\napi_key_file = {:?}",
        key.display().to_string()
    );
    (TestGateway::start(&[], &settings, "").await, folder)
}

#[tokio::test]
async fn every_dialect_reaches_a_server_that_speaks_only_anthropic_s() {
    let (far, seen) = anthropic_server().await;
    let (gateway, _folder) = in_front_of(&far, "anthropic").await;
    assert_eq!(ask(&format!("{}/v1/models", gateway.endpoint)).await["data"][0]["id"], "claude-far");

    let whole = chat(&gateway.endpoint, "claude-far", false, "").await.json().await;
    assert_eq!(whole["choices"][0]["message"]["content"], "far away", "{whole}");
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    assert_eq!(whole["usage"]["prompt_tokens"], 12, "{whole}");
    let stream = chat(&gateway.endpoint, "claude-far", true, "").await.text().await;
    assert!(
        stream.contains("\"content\":\"far \"") && stream.trim_end().ends_with("data: [DONE]"),
        "{stream}"
    );

    let url = format!("{}/v1/messages", gateway.endpoint);
    let body = json!({"model": "claude-far", "max_tokens": 9, "unknown_to_us": 1,
        "messages": [{"role": "user", "content": "Hello"}]});
    let native = send("POST", &url, &[("anthropic-beta", "x-1")], body.to_string()).await.json().await;
    assert_eq!(native["content"][0]["text"], "far away");

    let url = format!("{}/v1/responses", gateway.endpoint);
    let asked = |stream: bool| json!({"model": "claude-far", "input": "Hello", "stream": stream}).to_string();
    let answer = send("POST", &url, &[], asked(false)).await.json().await;
    assert_eq!(answer["output"][0]["content"][0]["text"], "far away", "{answer}");
    let stream = send("POST", &url, &[], asked(true)).await.text().await;
    assert!(
        stream.contains("response.output_text.delta") && stream.contains("event: response.completed"),
        "{stream}"
    );

    let seen = seen.lock().expect("unpoisoned");
    assert_eq!(seen.len(), 5);
    for (_, headers, _) in seen.iter() {
        assert_eq!(headers["x-api-key"], "sk-far");
        assert_eq!(headers["anthropic-version"], "2023-06-01");
        assert!(!headers.contains_key("authorization"));
    }
    let (_, headers, body) = &seen[2];
    assert_eq!(headers["anthropic-beta"], "x-1");
    assert_eq!(body["unknown_to_us"], 1, "an Anthropic client's bytes go through as they came");
}

#[tokio::test]
async fn what_an_anthropic_server_cannot_do_is_refused_and_its_errors_are_translated() {
    let (far, _) = anthropic_server().await;
    let (gateway, _folder) = in_front_of(&far, "anthropic").await;
    let url = format!("{}/v1/embeddings", gateway.endpoint);
    let refused = send("POST", &url, &[], json!({"model": "claude-far", "input": "x"}).to_string()).await;
    assert_eq!(refused.json().await["error"]["code"], "dialect_unsupported");
    let url = format!("{}/v1/chat/completions", gateway.endpoint);
    let body = json!({"model": "claude-far", "messages": [{"role": "user", "content": "too much"}]});
    let refused = send("POST", &url, &[], body.to_string()).await;
    assert_eq!(refused.status, 429);
    let error = refused.json().await;
    assert!(error["error"]["message"].as_str().is_some_and(|text| text.contains("slow down")), "{error}");
}

#[tokio::test]
async fn embeddings_reach_servers_that_make_them_with_the_server_s_own_key() {
    let seen = Seen::default();
    let keep = Arc::clone(&seen);
    let embed = move |headers: HeaderMap, Json(body): Json<Value>| {
        keep.lock().expect("unpoisoned").push(("embeddings".into(), headers, body));
        async {
            Json(
                json!({"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": "AACAPw=="}],
            "model": "e", "usage": {"prompt_tokens": 2, "total_tokens": 2}}),
            )
        }
    };
    let models = || async { Json(json!({"object": "list", "data": [{"id": "e", "object": "model"}]})) };
    let far =
        serve(Router::new().route("/v1/embeddings", post(embed)).route("/v1/models", get(models))).await;
    let (gateway, _folder) = in_front_of(&far, "openai").await;
    let url = format!("{}/v1/embeddings", gateway.endpoint);
    let body = json!({"model": "e", "input": "x", "encoding_format": "base64"});
    let answer = send("POST", &url, &[("authorization", "Bearer callers")], body.to_string()).await;
    assert_eq!(answer.json().await["data"][0]["embedding"], "AACAPw==");
    let seen = seen.lock().expect("unpoisoned");
    assert_eq!(seen[0].1["authorization"], "Bearer sk-far");
    assert_eq!(seen[0].2["encoding_format"], "base64");
}

#[tokio::test]
async fn traces_are_exported_and_continued_at_the_node() {
    let (batches, mut received) = tokio::sync::mpsc::unbounded_channel::<Value>();
    let take = move |Json(body): Json<Value>| {
        let _ = batches.send(body);
        async { Json(json!({})) }
    };
    let collector = serve(Router::new().route("/v1/traces", post(take))).await;
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let settings = format!("[telemetry]\notlp_endpoint = {collector:?}\nservice = \"edge\"");
    let gateway = TestGateway::start(&[&a], &settings, "").await;
    let parent = [("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")];
    let text = chat_with(&gateway.endpoint, "m", true, &parent).await.text().await;
    assert!(text.trim_end().ends_with("data: [DONE]"), "{text}");
    let batch = received.recv().await.expect("a batch of spans");
    let resource = &batch["resourceSpans"][0];
    assert_eq!(resource["resource"]["attributes"][0]["value"]["stringValue"], "edge");
    let span = &resource["scopeSpans"][0]["spans"][0];
    assert_eq!(span["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(span["parentSpanId"], "00f067aa0ba902b7");
    assert_eq!(
        (span["name"].as_str(), span["events"][0]["name"].as_str()),
        (Some("chat m"), Some("first token"))
    );
    let told =
        a.state.requests.lock().expect("unpoisoned")[0].1["traceparent"].to_str().expect("text").to_owned();
    let id = span["spanId"].as_str().expect("an id");
    assert_eq!(told, format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{id}-01"));
}
