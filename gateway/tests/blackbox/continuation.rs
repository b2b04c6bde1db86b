//! A node that dies in mid-stream: another goes on where the answer can be had exactly, and nowhere else.

use serde_json::{Value, json};

use crate::client::{chat, send};
use crate::gateway::TestGateway;
use crate::node::MockNode;

const SCRIPT: &str = "chunks=8 pause_ms=5 logs";

/// Two nodes that have the model; which of them is asked first is up to the router.
async fn fleet() -> (MockNode, MockNode, TestGateway) {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let b = MockNode::start("b", 100).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a, &b], "[routing]\nstrategy = \"round_robin\"", "").await;
    (a, b, gateway)
}

/// The orders a node got to go on.
fn orders(node: &MockNode) -> Vec<Value> {
    let requests = node.state.requests.lock().expect("unpoisoned");
    requests.iter().filter(|(path, ..)| path == "/continue").map(|(.., body)| body.clone()).collect()
}

#[tokio::test]
async fn the_client_gets_the_same_bytes_whichever_node_dies_and_when() {
    let (a, b, gateway) = fleet().await;
    let undisturbed = chat(&gateway.endpoint, "m", true, SCRIPT).await.text().await;
    assert!(undisturbed.ends_with("data: [DONE]\n\n"), "{undisturbed}");
    assert!(!undisturbed.contains(": tokens"), "the log is no business of clients");
    for after in [1, 2, 5, 8] {
        // Twice, so that each node is the one that dies.
        for _ in 0..2 {
            let script = format!("{SCRIPT} dies_once={after}");
            let text = chat(&gateway.endpoint, "m", true, &script).await.text().await;
            assert_eq!(text, undisturbed, "it died after {after}");
        }
    }
    let orders = [orders(&a), orders(&b)].concat();
    assert_eq!(orders.len(), 8, "{orders:?}");
    for order in orders {
        let told = order["told"].as_u64().expect("a number");
        assert_eq!(order["emitted"], json!((1..told).collect::<Vec<_>>()), "all that was said");
        assert_eq!((order["id"].as_str(), order["created"].as_u64()), (Some("chatcmpl-1"), Some(1)));
    }
}

#[tokio::test]
async fn a_translated_stream_is_gone_on_with_too() {
    let (a, b, gateway) = fleet().await;
    let body = json!({"model": "m", "max_tokens": 50, "stream": true,
        "messages": [{"role": "user", "content": "x"}]});
    let url = format!("{}/v1/messages", gateway.endpoint);
    let headers = [("anthropic-version", "2023-06-01"), ("x-mock", "chunks=6 pause_ms=5 logs dies_once=3")];
    let text = send("POST", &url, &headers, body.to_string()).await.text().await;
    assert!(text.contains("word-6") && text.contains("event: message_stop"), "{text}");
    assert_eq!(text.matches("event: message_start").count(), 1, "{text}");
    assert_eq!(orders(&a).len() + orders(&b).len(), 1);
}

#[tokio::test]
async fn where_nobody_can_go_on_it_ends_in_an_error_event() {
    // The only node, and one that writes no log.
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a], "", "").await;
    for script in ["chunks=8 pause_ms=5 logs die_after=3", "chunks=8 pause_ms=5 die_after=3"] {
        let text = chat(&gateway.endpoint, "m", true, script).await.text().await;
        assert!(text.contains("upstream_lost") && !text.contains("[DONE]"), "{text}");
        assert!(text.contains("-2 "), "what came before is kept");
    }
    assert!(orders(&a).is_empty());
}
