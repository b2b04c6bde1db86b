//! Where requests go, and where they go next when a node cannot take them.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use serde_json::json;

use crate::client::{chat, chat_with, get, send};
use crate::gateway::TestGateway;
use crate::node::MockNode;

#[tokio::test]
async fn models_of_all_nodes_are_one_list_in_either_dialect() {
    let a = MockNode::start("a", 100).await.with_loaded("org/smol", 10);
    let b = MockNode::start("b", 100).await.with_loadable("big", 50, 10);
    let catalogue = "[[models]]\nid = \"big\"\naliases = [\"claude-big\"]";
    let gateway = TestGateway::start(&[&a, &b], "", catalogue).await;
    let list = get(&format!("{}/v1/models", gateway.endpoint)).await;
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0]["id"], "big");
    assert_eq!(list["data"][0]["state"], "absent");
    assert_eq!(list["data"][0]["loadable_on"], json!(["a", "b"]));
    assert_eq!(list["data"][1]["id"], "org/smol");
    assert_eq!(list["data"][1]["resident_on"], json!(["a"]));
    assert_eq!(list["data"][1]["max_model_len"], 4096);
    let url = format!("{}/v1/models?limit=1000", gateway.endpoint);
    let page = send("GET", &url, &[("anthropic-version", "2023-06-01")], "").await.json().await;
    let ids: Vec<_> = page["data"].as_array().expect("a list").iter().map(|m| m["id"].clone()).collect();
    assert_eq!(ids, [json!("big"), json!("claude-big"), json!("org/smol")]);
    assert_eq!((&page["has_more"], &page["data"][0]["type"]), (&json!(false), &json!("model")));
    let one = get(&format!("{}/v1/models/org/smol", gateway.endpoint)).await;
    assert_eq!(one["id"], "org/smol");
}

#[tokio::test]
async fn requests_are_shared_by_round_robin_and_each_can_be_explained() {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let b = MockNode::start("b", 100).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a, &b], "[routing]\nstrategy = \"round_robin\"", "").await;
    let mut nodes = BTreeMap::new();
    for _ in 0..10 {
        let answer = chat(&gateway.endpoint, "m", false, "").await;
        assert_eq!(answer.status, 200);
        *nodes.entry(answer.header("x-cortex-node").to_owned()).or_insert(0) += 1;
        let id = answer.header("x-request-id").to_owned();
        let why = get(&format!("{}/cortex/v1/explain/{id}", gateway.endpoint)).await;
        let candidates = why["attempts"][0]["candidates"].as_array().expect("candidates").clone();
        let chosen: Vec<_> = candidates.iter().filter(|c| c["chosen"] == json!(true)).collect();
        assert_eq!(chosen.len(), 1);
        assert_eq!(chosen[0]["node"], answer.header("x-cortex-node"));
        assert!(chosen[0]["terms"].as_str().expect("terms").contains("turn="), "{why}");
    }
    assert_eq!(nodes, BTreeMap::from([("a".to_owned(), 5), ("b".to_owned(), 5)]));
}

#[tokio::test]
async fn bytes_pass_through_as_they_came_without_the_callers_key() {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a], "", "").await;
    let headers = [
        ("authorization", "Bearer secret"),
        ("x-api-key", "secret"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("anthropic-beta", "x"),
    ];
    let answer = chat_with(&gateway.endpoint, "m", false, &headers).await;
    assert_eq!(answer.status, 200);
    let body = answer.json().await;
    assert_eq!(body["choices"][0]["message"]["content"], "a-0 a-1 a-2 ");
    let requests = a.state.requests.lock().expect("unpoisoned").clone();
    let (path, seen, _) = &requests[0];
    assert_eq!(path, "/v1/chat/completions");
    assert!(seen.get("authorization").is_none() && seen.get("x-api-key").is_none());
    assert_eq!(seen["traceparent"], headers[2].1);
    assert!(seen["x-request-id"].to_str().expect("text").starts_with("req_"));
}

#[tokio::test]
async fn an_alias_is_renamed_for_a_node_that_does_not_know_it() {
    let a = MockNode::start("a", 100).await.with_loaded("org/smol", 10);
    let catalogue = "[[models]]\nid = \"smol\"\nsource = \"org/smol\"\naliases = [\"claude-smol\"]";
    let gateway = TestGateway::start(&[&a], "", catalogue).await;
    for name in ["smol", "claude-smol", "org/smol"] {
        assert_eq!(chat(&gateway.endpoint, name, false, "").await.status, 200, "{name}");
    }
    let requests = a.state.requests.lock().expect("unpoisoned").clone();
    assert!(requests.iter().all(|(_, _, body)| body["model"] == "org/smol"));
}

#[tokio::test]
async fn a_busy_node_s_request_goes_to_another_before_the_first_byte() {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let b = MockNode::start("b", 100).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a, &b], "[routing]\nstrategy = \"round_robin\"", "").await;
    for _ in 0..4 {
        let answer = chat(&gateway.endpoint, "m", true, "only=a status=503").await;
        assert_eq!((answer.status, answer.header("x-cortex-node")), (200, "b"));
    }
    assert_eq!(b.state.served.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn what_all_nodes_refuse_is_told_as_they_told_it() {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a], "", "").await;
    let answer = chat(&gateway.endpoint, "m", false, "status=400").await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json().await["error"]["message"], "a says 400");
    let answer = chat(&gateway.endpoint, "m", false, "status=429").await;
    assert_eq!(answer.status, 429);
    assert_eq!(a.state.served.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn retries_have_a_budget() {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let b = MockNode::start("b", 100).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a, &b], "[gateway]\nretry_budget = 0.0", "").await;
    let answer = chat(&gateway.endpoint, "m", false, "status=503").await;
    assert_eq!(answer.status, 503);
    let tried = a.state.requests.lock().expect("unpoisoned").len()
        + b.state.requests.lock().expect("unpoisoned").len();
    assert_eq!(tried, 1);
}

#[tokio::test]
async fn refusals_of_the_gateway_itself_have_the_callers_shape() {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a], "[gateway]\nmax_body_mib = 1", "").await;
    let url = |path: &str| format!("{}{path}", gateway.endpoint);
    let cases = [
        ("/v1/chat/completions", "{\"model\":\"nope\"}".to_owned(), 404, "model_not_found"),
        ("/v1/chat/completions", "{\"messages\":[]}".to_owned(), 400, "missing_required_parameter"),
        ("/v1/chat/completions", "[]".to_owned(), 400, "invalid_json"),
        ("/v1/embeddings", format!("{{\"input\":\"{}\"}}", "x".repeat(1 << 20)), 413, "request_too_large"),
        ("/v1/nonsense", "{}".to_owned(), 404, "not_found"),
    ];
    for (path, body, status, code) in cases {
        let answer = send("POST", &url(path), &[], body).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.json().await["error"]["code"], code, "{path}");
    }
    let unknown = json!({"model": "nope", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]});
    let answer = send("POST", &url("/v1/messages"), &[("x-api-key", "k")], unknown.to_string()).await;
    assert_eq!(answer.status, 404);
    assert!(answer.header("request-id").starts_with("req_"));
    let body = answer.json().await;
    assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!("not_found_error")));
    assert_eq!(send("GET", &url("/v1/chat/completions"), &[], "").await.status, 405);
}

#[tokio::test]
async fn a_foreign_server_is_a_node_too() {
    let node = MockNode::start("foreign-node", 100).await;
    let settings =
        format!("[[neurons]]\nname = \"vendor\"\nkind = \"openai\"\nendpoint = {:?}\n", node.endpoint);
    let gateway = TestGateway::start(&[], &settings, "").await;
    let answer = chat(&gateway.endpoint, "foreign", false, "").await;
    assert_eq!((answer.status, answer.header("x-cortex-node")), (200, "vendor"));
}

#[tokio::test]
async fn a_conversation_goes_where_its_beginning_was_computed() {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let b = MockNode::start("b", 100).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a, &b], "[routing]\nstrategy = \"prefix_affinity\"", "").await;
    let url = format!("{}/v1/chat/completions", gateway.endpoint);
    for topic in ["cats", "dogs", "birds", "fish", "bees", "ants"] {
        let mut messages = vec![json!({"role": "system", "content": topic.repeat(400)})];
        let mut nodes = std::collections::BTreeSet::new();
        for turn in 0..4 {
            messages.push(json!({"role": "user", "content": format!("turn {turn} {}", "x".repeat(300))}));
            let body = json!({"model": "m", "messages": messages}).to_string();
            let answer = send("POST", &url, &[], body).await;
            nodes.insert(answer.header("x-cortex-node").to_owned());
        }
        assert_eq!(nodes.len(), 1, "{topic} wandered");
    }
}
