//! A client of OpenAI responses on a chat server: requests, answers and streams.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};
use wire_api::openai::aggregate::ChatAggregator;
use wire_api::openai::chat::{
    ChatCompletionChunk, ChatRequest, ChunkHead, Delta, FinishReason, ToolCallDelta,
};
use wire_api::openai::responses::{ResponsesRequest, seal_reasoning};
use wire_api::openai::usage::Usage;
use wire_api::sse::{SseDecoder, SseItem};
use wire_api::translate::responses_on_chat::stream::ResponsesStream;
use wire_api::translate::responses_on_chat::{ReplyContext, reply, request};
use wire_api::translate::{ChatServer, Translated};
use wire_api::{ApiError, Dialect};

type Outcome = Result<Translated<ChatRequest, ReplyContext>, ApiError>;

fn translate_for(extra: Value, server: ChatServer) -> Outcome {
    let mut body = json!({"model": "m", "input": "hi"});
    for (name, value) in extra.as_object().expect("cases are objects") {
        body[name] = value.clone();
    }
    request::translate(ResponsesRequest::parse(body.to_string().as_bytes())?, server)
}

fn translate(extra: Value) -> Outcome {
    translate_for(extra, ChatServer::default())
}

type Row = (Value, &'static str, Value);

fn check(rows: &[Row], server: ChatServer) {
    for (extra, pointer, expected) in rows {
        let translated =
            translate_for(extra.clone(), server).unwrap_or_else(|error| panic!("{extra}: {error}"));
        let body: Value = serde_json::from_slice(&translated.request.to_body()).expect("JSON");
        let found = body.pointer(pointer).cloned().unwrap_or(Value::Null);
        assert_eq!(found, *expected, "{pointer} of {body}");
        let neuron_reads = ChatRequest::parse(body.to_string().as_bytes());
        assert!(neuron_reads.is_ok(), "{:?} of {body}", neuron_reads.err());
    }
}

fn call(id: &str, name: &str, arguments: &str) -> Value {
    json!({"type": "function_call", "call_id": id, "name": name, "arguments": arguments})
}

fn output(id: &str, output: Value) -> Value {
    json!({"type": "function_call_output", "call_id": id, "output": output})
}

#[test]
fn conversations() {
    let codex = json!({"instructions": "be brief", "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "go"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}], "content": [{"type": "reasoning_text", "text": "long"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ok", "annotations": []}]},
        call("c1", "shell", "{\"b\": 1, \"a\": 2}"),
        {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": "*** Begin"},
        output("c1", json!("done")),
        {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "see"}, {"type": "input_image", "image_url": "data:image/png;base64,AA=="}]},
        {"type": "web_search_call", "id": "w", "status": "completed"},
        {"role": "user", "content": "thanks"},
    ]});
    check(
        &[
            (json!({}), "/messages", json!([{"role": "user", "content": "hi"}])),
            (codex.clone(), "/messages/0", json!({"role": "system", "content": "be brief\n\nrules"})),
            (codex.clone(), "/messages/1", json!({"role": "user", "content": "go"})),
            (codex.clone(), "/messages/2/content", json!("ok")),
            (codex.clone(), "/messages/2/reasoning_content", json!("long")),
            (
                codex.clone(),
                "/messages/2/tool_calls/0/function",
                json!({"name": "shell", "arguments": "{\"b\":1,\"a\":2}"}),
            ),
            (
                codex.clone(),
                "/messages/2/tool_calls/1/function",
                json!({"name": "apply_patch", "arguments": "{\"input\":\"*** Begin\"}"}),
            ),
            (codex.clone(), "/messages/3", json!({"role": "tool", "tool_call_id": "c1", "content": "done"})),
            (
                codex.clone(),
                "/messages/4",
                json!({"role": "tool", "tool_call_id": "c2", "content": "see\n[image 1 attached below]"}),
            ),
            (codex.clone(), "/messages/5/content/0/image_url/url", json!("data:image/png;base64,AA==")),
            (codex.clone(), "/messages/6", json!({"role": "user", "content": "thanks"})),
            (codex.clone(), "/messages/7", Value::Null),
            (
                json!({"input": [{"role": "user", "content": "a"}, {"role": "developer", "content": "late"}]}),
                "/messages/1/role",
                json!("user"),
            ),
            (
                json!({"input": [{"type": "reasoning", "summary": [], "encrypted_content": seal_reasoning("hm")}, call("c", "f", "")]}),
                "/messages/0/reasoning_content",
                json!("hm"),
            ),
            (
                json!({"input": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "encrypted_content": "foreign"}, call("c", "f", "")]}),
                "/messages/0/reasoning_content",
                json!("s"),
            ),
            (
                json!({"input": [call("c", "f", ""), output("c", json!("x"))]}),
                "/messages/0/content",
                Value::Null,
            ),
        ],
        ChatServer::default(),
    );
    check(
        &[(
            json!({"input": [{"role": "user", "content": "a"}, {"role": "developer", "content": "late"}]}),
            "/messages/1",
            json!({"role": "system", "content": "late"}),
        )],
        ChatServer { mid_system: true, ..ChatServer::default() },
    );
    assert_eq!(translate(codex).expect("accepted").dropped, ["input.web_search_call"]);
}

fn function(name: &str) -> Value {
    json!({"type": "function", "name": name, "description": "d", "strict": false, "parameters": {"type": "object", "properties": {"z": {}, "a": {}}}})
}

#[test]
fn fields() {
    let tools = json!([
        function("shell"),
        {"type": "namespace", "name": "mcp__calendar", "description": "plans", "tools": [function("create")]},
        {"type": "custom", "name": "apply_patch", "description": "Edits.", "format": {"type": "grammar", "syntax": "lark", "definition": "start: x"}},
        {"type": "web_search", "external_web_access": true},
    ]);
    let with_tools = |extra: Value| {
        let mut body = json!({ "tools": tools });
        for (name, value) in extra.as_object().expect("an object") {
            body[name] = value.clone();
        }
        body
    };
    check(
        &[
            (json!({"stream": false}), "/stream", json!(true)),
            (json!({}), "/stream_options/include_usage", json!(true)),
            (json!({"max_output_tokens": 9, "temperature": 0.5, "top_p": 0.25}), "/max_tokens", json!(9)),
            (json!({"temperature": 0.5}), "/temperature", json!(0.5)),
            (json!({"reasoning": {"effort": "high", "summary": "auto"}}), "/reasoning_effort", json!("high")),
            (
                json!({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": true}, "verbosity": "low"}}),
                "/response_format/json_schema",
                json!({"name": "n", "schema": {"type": "object"}, "strict": true}),
            ),
            (
                json!({"prompt_cache_key": "k", "store": false, "include": ["reasoning.encrypted_content"]}),
                "/prompt_cache_key",
                json!("k"),
            ),
            (
                with_tools(json!({})),
                "/tools/0",
                json!({"type": "function", "function": {"name": "shell", "description": "d", "parameters": {"type": "object", "properties": {"z": {}, "a": {}}}, "strict": false}}),
            ),
            (with_tools(json!({})), "/tools/1/function/name", json!("mcp__calendar__create")),
            (with_tools(json!({})), "/tools/2/function/parameters/required", json!(["input"])),
            (with_tools(json!({})), "/tools/3", Value::Null),
            (
                with_tools(json!({"tool_choice": "required", "parallel_tool_calls": false})),
                "/tool_choice",
                json!("required"),
            ),
            (with_tools(json!({"parallel_tool_calls": false})), "/parallel_tool_calls", json!(false)),
            (
                with_tools(json!({"tool_choice": {"type": "function", "name": "shell"}})),
                "/tool_choice/function/name",
                json!("shell"),
            ),
            (
                with_tools(
                    json!({"tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "shell"}]}}),
                ),
                "/tools/1",
                Value::Null,
            ),
            (json!({"tool_choice": "auto", "parallel_tool_calls": true}), "/tool_choice", Value::Null),
            (
                json!({"tools": tools, "input": [{"type": "function_call", "call_id": "c", "namespace": "mcp__calendar", "name": "create", "arguments": "{}"}]}),
                "/messages/0/tool_calls/0/function/name",
                json!("mcp__calendar__create"),
            ),
        ],
        ChatServer::default(),
    );
    let mut dropped =
        translate(with_tools(json!({"truncation": "auto", "max_tool_calls": 3}))).expect("accepted").dropped;
    dropped.sort();
    assert_eq!(dropped, ["max_tool_calls", "tools.web_search", "truncation"]);
}

#[test]
fn what_needs_state_is_refused_by_name() {
    let cases = [
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"conversation": "c"}), "conversation"),
        (json!({"prompt": {"id": "p"}}), "prompt"),
        (json!({"background": true}), "background"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"include": ["message.output_text.logprobs"]}), "include"),
        (json!({"input": []}), "input"),
        (json!({"input": null}), "input"),
        (json!({"input": [{"type": "item_reference", "id": "x"}]}), "input.0.type"),
        (json!({"input": [{"type": "hologram"}]}), "input.0.type"),
        (json!({"input": [{"role": "wizard", "content": "x"}]}), "input.0.role"),
        (json!({"input": [{"type": "function_call", "name": "f"}]}), "input.0.call_id"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}),
            "input.0.content.0.type",
        ),
        (
            json!({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function"}]}]}),
            "tools.0.tools.0.name",
        ),
        (json!({"tool_choice": {"type": "function", "name": "f"}}), "tool_choice"),
        (json!({"tool_choice": {"type": "web_search"}}), "tool_choice.type"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"text": {"format": {"type": "xml"}}}), "text.format.type"),
    ];
    for (extra, path) in cases {
        let error = translate(extra).expect_err(path);
        assert_eq!(error.param.as_deref(), Some(path), "{error}");
        assert_eq!(error.status(Dialect::OpenAi), 400);
    }
}

fn head() -> ChunkHead {
    ChunkHead { id: "chatcmpl-1".to_owned(), created: 7, model: "upstream".to_owned() }
}

fn context(extra: Value) -> ReplyContext {
    let mut body = json!({"tools": [
        function("shell"),
        {"type": "namespace", "name": "cal", "tools": [function("create")]},
        {"type": "custom", "name": "apply_patch"},
    ]});
    for (name, value) in extra.as_object().expect("an object") {
        body[name] = value.clone();
    }
    translate(body).expect("accepted").reply
}

/// Runs a stream and checks what must hold of every one: events are named and numbered, every item
/// and part that begins ends, deltas add up to what the end says. Gives the events.
fn run(chunks: &[ChatCompletionChunk], context: ReplyContext) -> Vec<Value> {
    let mut stream = ResponsesStream::new("resp_1", 7, context);
    let mut out = Vec::new();
    stream.start(&mut out);
    for chunk in chunks {
        stream.data(&serde_json::to_string(chunk).expect("JSON"), &mut out);
    }
    stream.data("[DONE]", &mut out);
    stream.end(&mut out);
    assert!(stream.is_over());
    let events = events_of(&out);
    obey(&events);
    assert_eq!(events.last().expect("an end")["response"], *stream.response());
    events
}

fn events_of(bytes: &[u8]) -> Vec<Value> {
    let mut decoder = SseDecoder::new();
    decoder.feed(bytes).expect("small");
    let mut events = Vec::new();
    while let Some(SseItem::Event { name, data }) = decoder.next_item() {
        let event: Value = serde_json::from_str(data).expect("every frame holds JSON");
        assert_eq!(event["type"].as_str(), name);
        assert_eq!(event["sequence_number"], json!(events.len()), "numbers count");
        events.push(event);
    }
    events
}

fn obey(events: &[Value]) {
    assert_eq!(events[0]["type"], "response.created");
    assert_eq!(events[1]["type"], "response.in_progress");
    let last = events.last().expect("an end");
    let ends = ["response.completed", "response.incomplete", "response.failed"];
    let is_end = |event: &&Value| ends.contains(&event["type"].as_str().unwrap_or_default());
    assert_eq!(events.iter().filter(is_end).count(), 1, "{events:?}");
    assert!(is_end(&last));
    let failed = last["type"] == "response.failed";
    let mut items: BTreeMap<u64, (Value, String, Option<Value>)> = BTreeMap::new();
    for event in events {
        let kind = event["type"].as_str().expect("a type");
        let index = event["output_index"].as_u64();
        if kind == "response.output_item.added" {
            let index = index.expect("items have places");
            assert_eq!(index, items.len() as u64, "places count");
            items.insert(index, (event["item"].clone(), String::new(), None));
            continue;
        }
        let Some(index) = index else { continue };
        let (item, text, done) = items.get_mut(&index).expect("it was added");
        assert!(done.is_none(), "nothing follows its end: {event}");
        if kind == "response.output_item.done" {
            assert_eq!(event["item"]["id"], item["id"]);
            assert_eq!(event["item"]["type"], item["type"]);
            *done = Some(event["item"].clone());
            continue;
        }
        assert_eq!(event["item_id"], item["id"], "{event}");
        if kind.ends_with(".delta") {
            text.push_str(event["delta"].as_str().expect("text"));
        }
        for field in ["text", "arguments", "input"] {
            if let Some(whole) = event.get(field).and_then(Value::as_str) {
                assert_eq!(whole, text, "{event}");
            }
        }
    }
    let done: Vec<_> = items.into_values().filter_map(|(_, _, done)| done).collect();
    assert_eq!(last["response"]["output"], json!(done));
    assert!(
        failed
            || done.len()
                == events.iter().filter(|event| event["type"] == "response.output_item.added").count()
    );
}

fn text(piece: &str) -> ChatCompletionChunk {
    head().delta(0, Delta::text(piece))
}

fn thought(piece: &str) -> ChatCompletionChunk {
    head().delta(0, Delta::thought(piece))
}

fn open(index: u32, id: &str, name: &str) -> ChatCompletionChunk {
    head().delta(0, Delta::tool_call(ToolCallDelta::open(index, id, name)))
}

fn arguments(index: u32, fragment: &str) -> ChatCompletionChunk {
    head().delta(0, Delta::tool_call(ToolCallDelta::arguments(index, fragment)))
}

fn finish(reason: FinishReason) -> ChatCompletionChunk {
    head().finish(0, reason, None)
}

fn usage() -> ChatCompletionChunk {
    head().usage(Usage::new(10, 4, 6, 2), None)
}

#[test]
fn a_plain_answer() {
    let events = run(
        &[head().delta(0, Delta::opening()), text("Hel"), text("lo"), finish(FinishReason::Stop), usage()],
        context(json!({"instructions": "be", "metadata": {"a": "b"}})),
    );
    let kinds: Vec<_> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(
        kinds,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let response = &events[9]["response"];
    assert_eq!(
        (&response["id"], &response["status"], &response["model"]),
        (&json!("resp_1"), &json!("completed"), &json!("m"))
    );
    assert_eq!((&response["instructions"], &response["metadata"]), (&json!("be"), &json!({"a": "b"})));
    assert_eq!(
        response["output"][0]["content"][0],
        json!({"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []})
    );
    assert_eq!(
        response["usage"],
        json!({"input_tokens": 10, "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0}, "output_tokens": 6, "output_tokens_details": {"reasoning_tokens": 2}, "total_tokens": 16})
    );
    assert_eq!(
        serde_json::to_string(&events[4]).expect("JSON"),
        r#"{"type":"response.output_text.delta","sequence_number":4,"item_id":"msg_1_0","output_index":0,"content_index":0,"delta":"Hel","logprobs":[]}"#
    );
}

#[test]
fn thoughts_and_calls() {
    let chunks = [
        thought("h"),
        thought("m"),
        text("first"),
        open(0, "c0", "shell"),
        open(1, "c1", "cal__create"),
        arguments(0, "{\"a\""),
        arguments(1, "{}"),
        arguments(0, ":1}"),
        open(2, "c2", "apply_patch"),
        arguments(2, "{\"input\":\"*** B"),
        arguments(2, "egin\\n\"}"),
        finish(FinishReason::ToolCalls),
        usage(),
    ];
    let events = run(&chunks, context(json!({"include": ["reasoning.encrypted_content"]})));
    let output = &events.last().expect("an end")["response"]["output"];
    assert_eq!(output[0]["content"], json!([{"type": "reasoning_text", "text": "hm"}]));
    assert_eq!(output[0]["encrypted_content"], json!(seal_reasoning("hm")));
    assert_eq!(output[1]["type"], "message");
    assert_eq!(
        output[2],
        json!({"id": "fc_1_2", "type": "function_call", "status": "completed", "call_id": "c0", "name": "shell", "arguments": "{\"a\":1}"})
    );
    assert_eq!(
        (&output[3]["namespace"], &output[3]["name"], &output[3]["arguments"]),
        (&json!("cal"), &json!("create"), &json!("{}"))
    );
    assert_eq!(
        output[4],
        json!({"id": "fc_1_4", "type": "custom_tool_call", "status": "completed", "call_id": "c2", "name": "apply_patch", "input": "*** Begin\n"})
    );

    let events = run(&chunks, context(json!({"reasoning": {"summary": "auto"}})));
    let kinds: Vec<_> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(
        kinds[2..8],
        [
            "response.output_item.added",
            "response.reasoning_summary_part.added",
            "response.reasoning_summary_text.delta",
            "response.reasoning_summary_text.delta",
            "response.reasoning_summary_text.done",
            "response.reasoning_summary_part.done",
        ]
    );
    assert_eq!(
        events.last().expect("an end")["response"]["output"][0]["summary"],
        json!([{"type": "summary_text", "text": "hm"}])
    );
}

#[test]
fn what_went_in_comes_back_as_the_same_turn() {
    let chunks = [
        thought("hm"),
        text("a"),
        open(0, "c0", "cal__create"),
        arguments(0, "{\"x\":1}"),
        finish(FinishReason::ToolCalls),
    ];
    let events = run(&chunks, context(json!({"include": ["reasoning.encrypted_content"]})));
    let output = &events.last().expect("an end")["response"]["output"];
    let again = translate(json!({ "input": output })).expect("our own items").request;
    let mut aggregator = ChatAggregator::new();
    chunks.iter().cloned().for_each(|chunk| aggregator.push(chunk));
    let said = aggregator.finish().expect("complete").choices.remove(0).message;
    let turn = serde_json::to_value(&again.messages[0]).expect("JSON");
    assert_eq!(turn["content"], json!(said.content));
    assert_eq!(turn["reasoning_content"], json!(said.reasoning_content));
    assert_eq!(turn["tool_calls"], json!(said.tool_calls));
}

#[test]
fn ends() {
    let end = |chunks: &[ChatCompletionChunk]| {
        let events = run(chunks, context(json!({})));
        events.last().expect("an end").clone()
    };
    let cut = end(&[text("a"), finish(FinishReason::Length)]);
    assert_eq!(
        (&cut["type"], &cut["response"]["incomplete_details"]["reason"]),
        (&json!("response.incomplete"), &json!("max_output_tokens"))
    );
    assert_eq!(cut["response"]["output"][0]["status"], "incomplete");
    let withheld = end(&[finish(FinishReason::ContentFilter)]);
    assert_eq!(withheld["response"]["incomplete_details"]["reason"], "content_filter");
    for chunks in [vec![], vec![text("half")], vec![text("half"), finish(FinishReason::Abnormal)]] {
        let failed = end(&chunks);
        assert_eq!(
            (&failed["type"], &failed["response"]["error"]["code"]),
            (&json!("response.failed"), &json!("stream_interrupted"))
        );
    }
    let mut stream = ResponsesStream::new("resp_1", 7, context(json!({})));
    let mut out = Vec::new();
    stream.data(r#"{"error":{"message":"prompt is too long: 9 tokens > 8 maximum","code":"context_length_exceeded"}}"#, &mut out);
    stream.chunk(&text("late"), &mut out);
    let events = events_of(&out);
    assert_eq!(events.len(), 3);
    assert_eq!(events[2]["response"]["error"]["code"], "context_length_exceeded");
}

#[test]
fn odd_servers_are_understood() {
    let mut nameless = ToolCallDelta::open(0, "", "shell");
    nameless.id = None;
    let events = run(
        &[
            head().delta(0, Delta::tool_call(nameless)),
            open(1, "c1", "shell"),
            arguments(2, "{}"),
            finish(FinishReason::Stop),
        ],
        context(json!({})),
    );
    let output = &events.last().expect("an end")["response"]["output"];
    assert_eq!(output.as_array().map(Vec::len), Some(2), "a call without a name is none: {output}");
    let by_id =
        |id: &str| output.as_array().expect("items").iter().find(|item| item["call_id"] == id).cloned();
    assert_eq!(by_id("c1").expect("it was called")["arguments"], "{}");
    assert!(
        output
            .as_array()
            .expect("items")
            .iter()
            .any(|item| item["call_id"].as_str().is_some_and(|id| id.starts_with("call_")))
    );
}

fn turn() -> impl Strategy<Value = Vec<ChatCompletionChunk>> {
    let calls = prop::collection::vec(
        (prop::sample::select(vec!["shell", "cal__create", "apply_patch"]), "\\PC{0,12}"),
        0..3,
    );
    ("\\PC{0,16}", "\\PC{0,16}", calls, 1usize..5).prop_map(|(thinking, words, calls, size)| {
        let pieces = |whole: &str| {
            let characters: Vec<char> = whole.chars().collect();
            characters.chunks(size).map(|chunk| chunk.iter().collect::<String>()).collect::<Vec<_>>()
        };
        let mut chunks: Vec<_> = pieces(&thinking).iter().map(|piece| thought(piece)).collect();
        chunks.extend(pieces(&words).iter().map(|piece| text(piece)));
        for (index, (name, value)) in calls.iter().enumerate() {
            let index = index as u32;
            chunks.push(open(index, &format!("c{index}"), name));
            let json = json!({ "input": value }).to_string();
            chunks.extend(pieces(&json).iter().map(|piece| arguments(index, piece)));
        }
        chunks.push(finish(FinishReason::Stop));
        chunks.push(usage());
        chunks
    })
}

proptest! {
    #[test]
    fn stream_equals_whole(chunks in turn()) {
        let mut aggregator = ChatAggregator::new();
        chunks.iter().cloned().for_each(|chunk| aggregator.push(chunk));
        let whole = reply::translate(aggregator.finish().expect("complete"), context(json!({}))).expect("an answer");
        let events = run(&chunks, context(json!({})));
        prop_assert_eq!(&events.last().expect("an end")["response"], &whole);
    }

    #[test]
    fn the_rules_hold_in_any_order(chunks in turn(), order in prop::collection::vec(any::<u32>(), 80)) {
        let mut keyed: Vec<_> = chunks.into_iter().zip(order).collect();
        keyed.sort_by_key(|(_, key)| *key);
        let mut chunks: Vec<_> = keyed.into_iter().map(|(chunk, _)| chunk).collect();
        chunks.push(finish(FinishReason::Stop));
        run(&chunks, context(json!({})));
    }

    #[test]
    fn hostile_servers_do_no_harm(payloads in prop::collection::vec(prop_oneof![
        "\\PC{0,60}",
        Just("[DONE]".to_owned()),
        Just(r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","function":{"arguments":"{"}}]}}]}"#.to_owned()),
        Just(r#"{"choices":[{"delta":{"tool_calls":[{"index":7,"function":{"name":"apply_patch"}}],"content":"x"},"finish_reason":"stop"}]}"#.to_owned()),
        Just(r#"{"choices":[{"delta":{"reasoning":"x","content":"y"},"finish_reason":"length"}],"usage":{"prompt_tokens":18446744073709551615}}"#.to_owned()),
        Just(r#"{"error":"x"}"#.to_owned()),
    ], 0..12)) {
        let mut stream = ResponsesStream::new("resp_1", 7, context(json!({})));
        let mut out = Vec::new();
        stream.start(&mut out);
        for payload in &payloads {
            stream.data(payload, &mut out);
        }
        stream.end(&mut out);
        obey(&events_of(&out));
    }
}
