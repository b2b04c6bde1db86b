//! The node API as it looks on the wire.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use wire_api::Dialect;
use wire_api::node::discovery::Discovery;
use wire_api::node::events::{LoadEvent, LoadPhase, LoadProgress};
use wire_api::node::lease::{Guard, Lease, LeaseRequest};
use wire_api::node::load::{LoadRequest, LoadResponse, UnloadRequest, UnloadResponse};
use wire_api::node::models::{ModelState, ModelStatus, NodeModels};
use wire_api::node::status::{Health, Ready, Version};
use wire_api::node::text::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};
use wire_api::node::{DeviceId, parse};
use wire_api::openai::models::{Model, ModelList};

fn survives<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: T) {
    let text = serde_json::to_string(&value).expect("JSON");
    assert_eq!(serde_json::from_str::<T>(&text).expect("our own form"), value, "{text}");
}

/// An older cortex must read a newer neuron, and a newer one an older.
fn tolerates<T: DeserializeOwned>(fields: Value) {
    let mut body = fields;
    body["a_field_of_tomorrow"] = json!([1]);
    serde_json::from_value::<T>(body).expect("unknown fields of answers are skipped");
}

#[test]
fn answers_survive_the_wire_and_tolerate_strangers() {
    survives(Discovery::default());
    survives(NodeModels { models: vec![ModelStatus::default()], ..NodeModels::default() });
    survives(LoadResponse::default());
    survives(UnloadResponse::default());
    survives(Lease::default());
    survives(Health::default());
    survives(Ready::default());
    survives(Version::default());
    survives(TokenizeResponse::default());
    survives(DetokenizeResponse::default());
    survives(LoadEvent {
        progress: LoadProgress { phase: LoadPhase::WarmUp, bytes_total: 5, ..Default::default() },
        ..Default::default()
    });
    survives(ModelList::new(vec![Model { state: Some(ModelState::Loading), ..Model::new("m", 1, "o") }]));
    tolerates::<Discovery>(json!({"devices": [{"id": "cuda-0", "kind": "cuda", "tomorrow": 1}]}));
    tolerates::<NodeModels>(
        json!({"models": [{"id": "m", "state": "ready", "activity": {"inflight": 3, "tomorrow": 1}}]}),
    );
    tolerates::<LoadResponse>(json!({"job": "j"}));
    tolerates::<LoadEvent>(json!({"job": "j", "phase": "read"}));
}

#[test]
fn commands_are_exact() {
    let load: LoadRequest =
        parse(br#"{"model":"org/name:f.gguf","wait":true,"devices":["cpu-0"],"context":4096}"#)
            .expect("well formed");
    assert_eq!(load.context_tokens, Some(4096));
    assert_eq!(load.devices, [DeviceId::from("cpu-0")]);
    assert!(load.wait && load.guard.is_empty());
    let unload: UnloadRequest = parse(br#"{"model":"m"}"#).expect("well formed");
    assert!(unload.wait && !unload.only_if_idle);
    let slips = [
        (&br#"{"model":"m","device":["cpu-0"]}"#[..], "device"),
        (br#"{"wait":true}"#, "model"),
        (br#"{"model":"m","guard":{"fenc":1}}"#, "fenc"),
        (br#"{"model":"m","slots":-1}"#, "-1"),
        (br#"{"model":"#, "EOF"),
    ];
    for (body, name) in slips {
        let error = parse::<LoadRequest>(body).expect_err(name);
        assert_eq!(error.status(Dialect::OpenAi), 400);
        assert!(error.message.contains(name), "{error}");
    }
    survives(load);
    survives(unload);
    survives(LeaseRequest { owner: "c".into(), model: "m".into(), ttl_ms: 5, ..Default::default() });
    survives(LoadRequest { guard: Guard { fence: Some(3), ..Guard::default() }, ..LoadRequest::default() });
}

#[test]
fn words_of_the_wire_are_stable() {
    let event = LoadEvent {
        job: "job-1".into(),
        model: "m".into(),
        progress: LoadProgress {
            phase: LoadPhase::Download,
            bytes_done: 1,
            bytes_total: 4,
            eta_ms: Some(9),
            elapsed_ms: 3,
            detail: None,
        },
        failure: None,
    };
    assert_eq!(
        serde_json::to_value(&event).expect("JSON"),
        json!({"job": "job-1", "model": "m", "phase": "download", "bytes_done": 1, "bytes_total": 4, "eta_ms": 9, "elapsed_ms": 3})
    );
    assert_eq!(event.progress.fraction(), Some(0.25));
    let phases = [
        "queued", "resolve", "download", "verify", "read", "upload", "warm-up", "ready", "failed", "unloaded",
    ];
    for word in phases {
        let phase: LoadPhase = serde_json::from_value(json!(word)).expect("a phase");
        assert_eq!(phase.as_str(), word);
    }
    assert!(LoadPhase::Resolve < LoadPhase::Download && LoadPhase::WarmUp < LoadPhase::Ready);
    assert_eq!(serde_json::to_value(ModelState::Recovering).expect("JSON"), json!("recovering"));
}

#[test]
fn text_or_conversation_is_tokenized() {
    for name in ["prompt", "text", "content"] {
        let body = json!({"model": "m", name: "hi", "add_special_tokens": false}).to_string();
        let request = TokenizeRequest::parse(body.as_bytes()).expect("well formed");
        assert!(
            matches!(&request, TokenizeRequest::Text { text, add_special_tokens: false, .. } if text == "hi")
        );
        assert_eq!(
            TokenizeRequest::parse(request.to_body().to_string().as_bytes()).expect("our own form"),
            request
        );
    }
    let chat = br#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
    assert!(matches!(TokenizeRequest::parse(chat), Ok(TokenizeRequest::Chat(_))));
    let error = TokenizeRequest::parse(br#"{"model":"m"}"#).expect_err("nothing to tokenize");
    assert_eq!(error.param.as_deref(), Some("prompt"));
    let request: DetokenizeRequest = parse(br#"{"model":"m","tokens":[1,2]}"#).expect("well formed");
    assert_eq!(request.tokens, [1, 2]);
}
