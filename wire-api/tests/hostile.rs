//! Whatever bytes arrive, readers and translators answer with a request or an error of class 4xx.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use wire_api::anthropic::messages::MessagesRequest;
use wire_api::anthropic::reply::Message;
use wire_api::node;
use wire_api::node::text::TokenizeRequest;
use wire_api::openai::chat::{ChatCompletion, ChatCompletionChunk, ChatRequest};
use wire_api::openai::completions::CompletionRequest;
use wire_api::openai::embeddings::EmbeddingRequest;
use wire_api::openai::responses::ResponsesRequest;
use wire_api::translate::{
    ChatServer, MessagesServer, chat_on_messages, messages_on_chat, responses_on_chat,
};
use wire_api::{ApiError, Dialect, peek};

/// Feeds a body to everything that reads bodies.
fn read_with_everything(body: &[u8]) -> Result<(), TestCaseError> {
    let check = |result: Result<(), ApiError>| match result {
        Ok(()) => Ok(()),
        Err(error) => {
            prop_assert!((400..500).contains(&error.status(Dialect::OpenAi)), "{error}");
            prop_assert!((400..500).contains(&error.status(Dialect::Anthropic)), "{error}");
            Ok(())
        }
    };
    check(peek(body).map(drop))?;
    check(ChatRequest::parse(body).map(drop))?;
    check(CompletionRequest::parse(body).map(drop))?;
    check(EmbeddingRequest::parse(body).map(drop))?;
    check(TokenizeRequest::parse(body).map(drop))?;
    check(node::parse::<node::load::LoadRequest>(body).map(drop))?;
    check(node::parse::<node::load::UnloadRequest>(body).map(drop))?;
    check(node::parse::<node::lease::LeaseRequest>(body).map(drop))?;
    check(ChatRequest::parse_lenient(body).and_then(|request| {
        prop_assert_read_again(&request.to_body())?;
        chat_on_messages::request::translate(request, MessagesServer::default()).map(drop)
    }))?;
    check(MessagesRequest::parse(body).and_then(|request| {
        let chat = messages_on_chat::request::translate(request, ChatServer::default())?;
        prop_assert_read_again(&chat.request.to_body())
    }))?;
    check(ResponsesRequest::parse(body).and_then(|request| {
        let chat = responses_on_chat::request::translate(request, ChatServer::default())?;
        prop_assert_read_again(&chat.request.to_body())
    }))?;
    if let Ok(completion) = serde_json::from_slice::<ChatCompletion>(body) {
        let _ = messages_on_chat::reply::translate(completion.clone(), &Default::default());
        let _ = responses_on_chat::reply::translate(completion, Default::default());
    }
    if let Ok(message) = serde_json::from_slice::<Message>(body) {
        let _ = chat_on_messages::reply::translate(message, 0, &Default::default());
    }
    let _ = serde_json::from_slice::<ChatCompletionChunk>(body);
    let _ = ApiError::from_response(500, body);
    Ok(())
}

/// What we write ourselves must be readable by ourselves.
fn prop_assert_read_again(body: &[u8]) -> Result<(), ApiError> {
    let read = ChatRequest::parse(body);
    assert!(read.is_ok(), "{:?} of {}", read.err(), String::from_utf8_lossy(body));
    Ok(())
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        Just(json!(-1)),
        Just(json!(1e308)),
        Just(json!(u64::MAX)),
        "\\PC{0,12}".prop_map(Value::from),
        prop::sample::select(vec![
            "user",
            "assistant",
            "tool",
            "text",
            "image",
            "data:",
            "data:,",
            "data:image/png;base64,é",
            "auto",
            "function"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-z_]{0,8}", inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Bodies with a bit of everything, one per dialect.
fn specimens() -> Vec<Value> {
    let image = "data:image/png;base64,AAAA";
    let schema = json!({"type": "object", "properties": {"a": {"type": "string"}}});
    vec![
        json!({"model": "m", "stream": true, "temperature": 0.5, "stop": ["a"], "logit_bias": {"1": 2}, "stream_options": {"include_usage": true},
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": {"url": image}}]},
                {"role": "assistant", "content": null, "reasoning_content": "r", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]},
                {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "x"}]}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
            "tool_choice": {"type": "function", "function": {"name": "f"}}, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}),
        json!({"model": "m", "max_tokens": 2048, "system": [{"type": "text", "text": "s"}], "thinking": {"type": "enabled", "budget_tokens": 1024},
            "messages": [
                {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}, {"type": "document", "source": {"type": "text", "data": "d"}}]},
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": "s"}, {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "x"}], "is_error": true}]}],
            "tools": [{"name": "f", "input_schema": schema}, {"type": "bash_20250124", "name": "bash"}],
            "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": true}, "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": schema}},
            "metadata": {"user_id": "{\"session_id\":\"s\"}"}, "context_management": {"edits": []}}),
        json!({"model": "m", "instructions": "i", "reasoning": {"effort": "low", "summary": "auto"}, "include": ["reasoning.encrypted_content"],
            "input": [
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "t"}, {"type": "input_image", "image_url": image}]},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "encrypted_content": "cortex:v1:AA=="},
                {"type": "function_call", "call_id": "c", "namespace": "n", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "x"}],
            "tools": [{"type": "function", "name": "f", "parameters": schema}, {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f"}]}, {"type": "custom", "name": "p", "format": {"type": "grammar", "definition": "g"}}],
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}, "text": {"format": {"type": "text"}}}),
        json!({"model": "m", "prompt": ["a", [1, 2]], "logprobs": 2, "input": [[1], "a"], "encoding_format": "base64"}),
        json!({"model": "m", "wait": true, "devices": ["cpu-0"], "guard": {"fence": 1}}),
        json!({"id": "1", "choices": [{"index": 0, "message": {"content": "x", "reasoning": "r", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{"}}]}, "finish_reason": "length"}], "usage": {"prompt_tokens": 1}}),
        json!({"id": "1", "type": "message", "content": [{"type": "text", "text": "x"}, {"type": "tool_use", "id": "t", "name": "f", "input": {}}], "stop_reason": "end_turn", "usage": {"input_tokens": 1}}),
    ]
}

/// Replaces the value at the `at`-th place (counted depth first) by another.
fn replace(value: &mut Value, at: &mut usize, new: &Value) {
    if *at == 0 {
        *value = new.clone();
        *at = usize::MAX;
        return;
    }
    *at -= 1;
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, at, new)),
        Value::Object(map) => map.values_mut().for_each(|item| replace(item, at, new)),
        _ => {}
    }
}

fn places(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(places).sum(),
        Value::Object(map) => map.values().map(places).sum(),
        _ => 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn bytes(body in prop::collection::vec(any::<u8>(), 0..200)) {
        read_with_everything(&body)?;
    }

    #[test]
    fn json(value in any_value()) {
        read_with_everything(value.to_string().as_bytes())?;
    }

    #[test]
    fn bodies_with_one_value_exchanged(which in any::<prop::sample::Index>(), place in any::<prop::sample::Index>(), new in any_value()) {
        let mut specimens = specimens();
        let which = which.index(specimens.len());
        let specimen = &mut specimens[which];
        let mut at = place.index(places(specimen));
        replace(specimen, &mut at, &new);
        read_with_everything(specimen.to_string().as_bytes())?;
    }

    #[test]
    fn bodies_cut_short(which in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>()) {
        let specimens = specimens();
        let body = specimens[which.index(specimens.len())].to_string().into_bytes();
        read_with_everything(&body[..cut.index(body.len())])?;
    }
}

#[test]
fn the_specimens_are_well_formed() {
    let specimens = specimens();
    let body = |index: usize| specimens[index].to_string().into_bytes();
    assert!(ChatRequest::parse(&body(0)).is_ok());
    assert!(MessagesRequest::parse(&body(1)).is_ok());
    assert!(ResponsesRequest::parse(&body(2)).is_ok());
    assert!(node::parse::<node::load::LoadRequest>(&body(4)).is_ok());
    assert!(serde_json::from_slice::<ChatCompletion>(&body(5)).is_ok());
    assert!(serde_json::from_slice::<Message>(&body(6)).is_ok());
}

#[test]
fn deep_nesting_is_refused_and_not_followed() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let body =
            format!("{{\"model\":\"m\",\"messages\":{}1{}}}", open.repeat(100_000), close.repeat(100_000));
        read_with_everything(body.as_bytes()).expect("an orderly refusal");
    }
}

/// Bodies that are large in one dimension are read in time linear in their size: a quadratic step
/// would keep this test busy for minutes.
#[test]
fn large_bodies_are_read_in_linear_time() {
    const MANY: usize = 20_000;
    let user = || json!({"role": "user", "content": "go"});

    let mut strangers = json!({"model": "m", "max_tokens": 9, "messages": [user()]});
    let names = (0..MANY).map(|n| (format!("field{n}"), json!(1)));
    strangers.as_object_mut().expect("an object").extend(names);
    let dropped = messages_on_chat(&strangers).expect("tolerated");
    assert!(dropped.len() < 100, "{} names of dropped fields", dropped.len());
    assert!(chat_on_messages(&strangers).is_ok());

    let calls: Vec<Value> = (0..MANY)
        .map(|n| json!({"type": "tool_use", "id": format!("t{n}"), "name": "f", "input": {}}))
        .collect();
    let result = |n| json!({"type": "tool_result", "tool_use_id": format!("t{n}"), "content": "x"});
    let results: Vec<Value> = (0..MANY).rev().map(result).collect();
    let turns =
        json!([user(), {"role": "assistant", "content": calls}, {"role": "user", "content": results}]);
    assert!(messages_on_chat(&json!({"model": "m", "max_tokens": 9, "messages": turns})).is_ok());

    let call =
        |n| json!({"id": format!("t{n}"), "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let calls: Vec<Value> = (0..MANY).map(call).collect();
    let mut messages = vec![user(), json!({"role": "assistant", "tool_calls": calls})];
    messages.extend(
        (0..MANY).rev().map(|n| json!({"role": "tool", "tool_call_id": format!("t{n}"), "content": "x"})),
    );
    assert!(chat_on_messages(&json!({"model": "m", "messages": messages})).is_ok());

    let tools: Vec<Value> = (0..MANY).map(|n| json!({"name": format!("odd.name.{n}")})).collect();
    let body = json!({"model": "m", "max_tokens": 9, "messages": [user()], "tools": tools});
    assert!(messages_on_chat(&body).is_ok());

    let body = json!({"model": "m", "messages": [user()], "x".repeat(10_000_000): 1});
    let error = ChatRequest::parse(body.to_string().as_bytes()).expect_err("unknown");
    assert!(error.openai_body().to_string().len() < 10_000);
}

fn messages_on_chat(body: &Value) -> Result<Vec<String>, ApiError> {
    let request = MessagesRequest::parse(body.to_string().as_bytes())?;
    Ok(messages_on_chat::request::translate(request, ChatServer::default())?.dropped)
}

fn chat_on_messages(body: &Value) -> Result<Vec<String>, ApiError> {
    let request = ChatRequest::parse_lenient(body.to_string().as_bytes())?;
    Ok(chat_on_messages::request::translate(request, MessagesServer::default())?.dropped)
}
