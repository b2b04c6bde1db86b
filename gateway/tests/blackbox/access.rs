//! Keys, limits, and the books.

use std::fs;
use std::path::Path;

use cortex::keys::file;
use serde_json::json;

use crate::client::{chat, chat_with, send};
use crate::gateway::TestGateway;
use crate::node::MockNode;
use cortex::usage::export::{Format, export};
use cortex::usage::{Filter, Source};

/// A folder with a key file: `inference` for everybody's work, `admin` for changes.
fn key_file(folder: &Path, limits: &str) -> (String, String, String) {
    let path = folder.join("keys.toml");
    let user = file::create(&path, "alice", false).expect("a key");
    let text = fs::read_to_string(&path).expect("written");
    fs::write(&path, format!("{text}{limits}\n")).expect("writable");
    let admin = file::create(&path, "root", true).expect("a key");
    (path.display().to_string(), user, admin)
}

fn settings(keys: &str, folder: &Path) -> String {
    format!(
        "[keys]\nfile = {keys:?}\n[usage]\ndatabase = {:?}",
        folder.join("usage.sqlite").display().to_string()
    )
}

#[tokio::test]
async fn a_key_is_needed_and_an_admin_key_for_changes() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, user, admin) = key_file(folder.path(), "");
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a], &settings(&path, folder.path()), "").await;
    let answer = chat(&gateway.endpoint, "m", false, "").await;
    assert_eq!(answer.status, 401);
    assert_eq!(answer.json().await["error"]["code"], "invalid_api_key");
    assert_eq!(chat_with(&gateway.endpoint, "m", false, &[("x-api-key", "wrong")]).await.status, 401);
    let bearer = format!("Bearer {user}");
    assert_eq!(chat_with(&gateway.endpoint, "m", false, &[("authorization", &bearer)]).await.status, 200);
    assert_eq!(chat_with(&gateway.endpoint, "m", false, &[("x-api-key", &user)]).await.status, 200);
    let url = format!("{}/cortex/v1/models/unload", gateway.endpoint);
    let body = json!({"model": "m"}).to_string();
    assert_eq!(send("POST", &url, &[], body.clone()).await.status, 401);
    assert_eq!(send("POST", &url, &[("x-api-key", &user)], body.clone()).await.status, 403);
    assert!(a.state.is_loaded("m"));
    assert_eq!(send("POST", &url, &[("x-api-key", &admin)], body).await.status, 200);
    assert!(!a.state.is_loaded("m"));
}

#[tokio::test]
async fn limits_turn_away_with_a_time_to_come_back_and_running_requests_count_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, user, _) =
        key_file(folder.path(), "models = [\"m\"]\nmax_concurrent = 1\nrequests_per_minute = 3");
    let a = MockNode::start("a", 100).await.with_loaded("m", 10).with_loaded("n", 10);
    let gateway = TestGateway::start(&[&a], &settings(&path, folder.path()), "").await;
    let key: &[(&str, &str)] = &[("x-api-key", &user), ("x-mock", "chunks=1000 pause_ms=20")];
    let refused = chat_with(&gateway.endpoint, "n", false, &key[..1]).await;
    assert_eq!(refused.status, 403, "not on the list");
    let mut stream = chat_with(&gateway.endpoint, "m", true, key).await;
    stream.next().await.expect("it began");
    let refused = chat_with(&gateway.endpoint, "m", false, &key[..1]).await;
    assert_eq!((refused.status, refused.header("retry-after").is_empty()), (429, false), "one at once");
    drop(stream);
    let running = |g: &cortex::server::Gateway| g.keys.load().list().map(|key| key.running()).sum::<u32>();
    gateway.until("counted out", |g| running(g) == 0).await;
    for expected in [200, 200, 429] {
        assert_eq!(chat_with(&gateway.endpoint, "m", false, &key[..1]).await.status, expected);
    }
    assert_eq!(running(&gateway.gateway), 0);
}

#[tokio::test]
async fn every_request_is_in_the_books_and_a_spent_budget_survives_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, user, _) = key_file(folder.path(), "budget = 10.0");
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let catalogue =
        "[[models]]\nid = \"m\"\ncost = { input_per_million = 1000000.0, output_per_million = 1000000.0 }";
    let settings = settings(&path, folder.path());
    let gateway = TestGateway::start(&[&a], &settings, catalogue).await;
    let key: &[(&str, &str)] = &[("x-api-key", &user)];
    // Seven tokens in and three out at one each: exactly the budget.
    assert!(!chat_with(&gateway.endpoint, "m", false, key).await.text().await.is_empty());
    gateway.until("settled", |g| g.metrics.inflight.get() == 0).await;
    let refused = chat_with(&gateway.endpoint, "m", false, key).await;
    assert_eq!(
        (refused.status, refused.json().await["error"]["code"].clone()),
        (429, json!("insufficient_quota"))
    );
    gateway.stop().await;
    let gateway = TestGateway::start(&[&a], &settings, catalogue).await;
    assert_eq!(chat_with(&gateway.endpoint, "m", false, key).await.status, 429, "not forgotten");
    let mut text = Vec::new();
    let books = Source::File(folder.path().join("usage.sqlite"));
    export(&books, &Filter::default(), Format::Csv, &mut text).expect("a ledger");
    let text = String::from_utf8(text).expect("text");
    let row = text.lines().nth(1).expect("one request");
    assert!(row.contains(",alice,m,a,chat,complete,7,0,3,"), "{text}");
    assert_eq!(text.lines().count(), 2, "refused requests never reached a node: {text}");
}

#[tokio::test]
async fn a_model_s_own_limit_turns_away_what_is_too_much() {
    let a = MockNode::start("a", 100).await.with_loaded("m", 10);
    let gateway = TestGateway::start(&[&a], "", "[[models]]\nid = \"m\"\nmax_requests = 1").await;
    let mut stream = chat(&gateway.endpoint, "m", true, "chunks=1000 pause_ms=20").await;
    stream.next().await.expect("it began");
    let refused = chat(&gateway.endpoint, "m", false, "").await;
    assert_eq!((refused.status, refused.json().await["error"]["code"].clone()), (503, json!("overloaded")));
}

#[tokio::test]
async fn a_catalogue_that_becomes_wrong_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("models.toml");
    let write = |text: &str| {
        let beside = folder.path().join("new");
        fs::write(&beside, text).expect("writable");
        fs::rename(&beside, &path).expect("renamed");
    };
    write("[[models]]\nid = \"first\"");
    let a = MockNode::start("a", 100).await;
    let gateway = TestGateway::start_watching(&[&a], &path).await;
    let known = |g: &cortex::server::Gateway, id: &str| g.fleet.view().model(id).is_some();
    assert!(known(&gateway.gateway, "first"));
    write("[[models]]\nidd = \"second\"");
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert!(known(&gateway.gateway, "first"), "the old one stays in force");
    write("[[models]]\nid = \"third\"");
    gateway.until("read again", |g| known(g, "third") && !known(g, "first")).await;
}
