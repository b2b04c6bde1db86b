//! An OpenAI client on an Anthropic server: requests, answers and streams, row by row.

use proptest::prelude::*;
use serde_json::{Value, json};
use wire_api::anthropic::messages::MessagesRequest;
use wire_api::anthropic::reply::Message;
use wire_api::openai::aggregate::ChatAggregator;
use wire_api::openai::chat::{ChatCompletion, ChatRequest, ChunkHead};
use wire_api::translate::chat_on_messages::stream::{ChatStream, Piece};
use wire_api::translate::chat_on_messages::{ReplyContext, reply, request};
use wire_api::translate::messages_on_chat;
use wire_api::translate::{MessagesServer, Translated};
use wire_api::{ApiError, Dialect};

type Outcome = Result<Translated<MessagesRequest, ReplyContext>, ApiError>;

fn translate_for(extra: Value, server: MessagesServer) -> Outcome {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    for (name, value) in extra.as_object().expect("cases are objects") {
        body[name] = value.clone();
    }
    request::translate(ChatRequest::parse_lenient(body.to_string().as_bytes())?, server)
}

fn translate(extra: Value) -> Outcome {
    translate_for(extra, MessagesServer::default())
}

type Row = (&'static str, Value, &'static str, Value);

fn check(rows: &[Row], server: MessagesServer) {
    for (id, extra, pointer, expected) in rows {
        let translated = translate_for(extra.clone(), server).unwrap_or_else(|error| panic!("{id}: {error}"));
        let body: Value = serde_json::from_slice(&translated.request.to_body()).expect("JSON");
        let found = body.pointer(pointer).cloned().unwrap_or(Value::Null);
        assert_eq!(found, *expected, "{id} at {pointer} of {body}");
        let readable = MessagesRequest::parse(body.to_string().as_bytes());
        assert!(readable.is_ok(), "{id}: {:?} of {body}", readable.err());
    }
}

fn with_messages(messages: Value) -> Value {
    json!({ "messages": messages })
}

fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

fn function(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {"z": {}, "a": {}}}}})
}

#[test]
fn messages() {
    let call = |id: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}});
    let systems = json!([
        {"role": "system", "content": "a"}, {"role": "developer", "content": [text("b"), text("c")]}, {"role": "system", "content": ""},
        {"role": "user", "content": "hi"}, {"role": "system", "content": "late"}, {"role": "user", "content": "go"},
    ]);
    let tools = json!([
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": null, "tool_calls": [call("c1", "{\"b\":1,\"a\":2}"), call("c2", ""), call("c3", "{\"a\":")]},
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
        {"role": "tool", "tool_call_id": "c1", "content": [text("one")]},
        {"role": "tool", "tool_call_id": "c3", "content": ""},
        {"role": "user", "content": "and?"},
    ]);
    let thoughts = json!([
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "x", "reasoning_content": "h", "thinking_blocks": [{"type": "thinking", "thinking": "h", "signature": "s"}]},
        {"role": "user", "content": "go"},
    ]);
    let result =
        |id: &str, content: Value| json!({"type": "tool_result", "tool_use_id": id, "content": content});
    check(
        &[
            (
                "T60",
                with_messages(systems.clone()),
                "/system",
                json!([text("a"), text("b\nc"), text("late")]),
            ),
            (
                "T61",
                with_messages(
                    json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}]}]),
                ),
                "/messages/0/content/0",
                json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}),
            ),
            (
                "T61",
                with_messages(
                    json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y"}}]}]),
                ),
                "/messages/0/content/0/source",
                json!({"type": "url", "url": "https://x/y"}),
            ),
            (
                "T61",
                with_messages(
                    json!([{"role": "user", "content": [{"type": "file", "file": {"filename": "r.pdf", "file_data": "data:application/pdf;base64,AA=="}}]}]),
                ),
                "/messages/0/content/0",
                json!({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AA=="}, "title": "r.pdf"}),
            ),
            (
                "T62",
                with_messages(systems.clone()),
                "/messages",
                json!([{"role": "user", "content": [text("hi"), text("go")]}]),
            ),
            (
                "T63",
                with_messages(tools.clone()),
                "/messages/1/content/0",
                json!({"type": "tool_use", "id": "c1", "name": "f", "input": {"b": 1, "a": 2}}),
            ),
            ("T63", with_messages(tools.clone()), "/messages/1/content/1/input", json!({})),
            ("T63", with_messages(tools.clone()), "/messages/1/content/2/input", json!({"_raw": "{\"a\":"})),
            (
                "T63",
                with_messages(
                    json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b \n"}]),
                ),
                "/messages/1/content/0/text",
                json!("b"),
            ),
            (
                "T63",
                with_messages(
                    json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": " \n"}]),
                ),
                "/messages/1",
                Value::Null,
            ),
            (
                "T64",
                with_messages(thoughts.clone()),
                "/messages/1/content",
                json!([{"type": "thinking", "thinking": "h", "signature": "s"}, text("x")]),
            ),
            (
                "T65",
                with_messages(tools),
                "/messages/2/content",
                json!([
                    result("c1", json!([text("one")])),
                    result("c2", json!([text("two")])),
                    result("c3", json!([])),
                    text("and?")
                ]),
            ),
        ],
        MessagesServer::default(),
    );
    check(
        &[(
            "T60",
            with_messages(systems),
            "/messages/1",
            json!({"role": "system", "content": [text("late")]}),
        )],
        MessagesServer { mid_system: true, ..MessagesServer::default() },
    );
    check(
        &[(
            "T62",
            with_messages(json!([{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}])),
            "/messages/0/content",
            json!([text(".")]),
        )],
        MessagesServer { lenient: true, ..MessagesServer::default() },
    );
    let unsigned = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "h"}, {"role": "user", "content": "c"}]);
    let translated = translate(with_messages(unsigned)).expect("T64");
    assert_eq!(translated.dropped, ["reasoning_content"], "T64");
    assert_eq!(translated.request.messages[1].content.len(), 1, "T64");
}

#[test]
fn parameters() {
    let with_tools = |extra: Value| {
        let mut body = json!({"tools": [function("f"), function("g")]});
        for (name, value) in extra.as_object().expect("an object") {
            body[name] = value.clone();
        }
        body
    };
    let named = json!({"type": "function", "function": {"name": "g"}});
    let allowed = json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}});
    check(
        &[
            ("T66", json!({}), "/max_tokens", json!(4096)),
            ("T66", json!({"max_tokens": 5}), "/max_tokens", json!(5)),
            ("T66", json!({"max_completion_tokens": 6}), "/max_tokens", json!(6)),
            ("T67", json!({"temperature": 1.5}), "/temperature", json!(1.0)),
            ("T67", json!({"temperature": 0.5}), "/temperature", json!(0.5)),
            ("T67", json!({"temperature": 0.5, "reasoning_effort": "low"}), "/temperature", Value::Null),
            ("T68", json!({"stop": ["a", " \n"]}), "/stop_sequences", json!(["a"])),
            ("T68", json!({"stop": " "}), "/stop_sequences", Value::Null),
            (
                "T69",
                with_tools(json!({})),
                "/tools/0",
                json!({"name": "f", "input_schema": {"type": "object", "properties": {"z": {}, "a": {}}}}),
            ),
            (
                "T69",
                json!({"tools": [{"type": "function", "function": {"name": "f"}}]}),
                "/tools/0/input_schema",
                json!({"type": "object", "properties": {}}),
            ),
            (
                "T70",
                json!({"functions": [{"name": "f"}], "function_call": {"name": "f"}}),
                "/tool_choice",
                json!({"type": "tool", "name": "f"}),
            ),
            ("T71", with_tools(json!({"tool_choice": "none"})), "/tool_choice/type", json!("none")),
            ("T71", with_tools(json!({"tool_choice": "auto"})), "/tool_choice/type", json!("auto")),
            ("T71", with_tools(json!({"tool_choice": "required"})), "/tool_choice/type", json!("any")),
            (
                "T71",
                with_tools(json!({ "tool_choice": named })),
                "/tool_choice",
                json!({"type": "tool", "name": "g"}),
            ),
            ("T71", with_tools(json!({ "tool_choice": allowed })), "/tools/0/name", json!("g")),
            ("T71", with_tools(json!({ "tool_choice": allowed })), "/tool_choice/type", json!("any")),
            ("T71", json!({"tool_choice": "none"}), "/tool_choice", Value::Null),
            (
                "T72",
                with_tools(json!({"parallel_tool_calls": false})),
                "/tool_choice",
                json!({"type": "auto", "disable_parallel_tool_use": true}),
            ),
            ("T73", json!({"reasoning_effort": "high"}), "/thinking", json!({"type": "adaptive"})),
            ("T73", json!({"reasoning_effort": "high"}), "/output_config/effort", json!("high")),
            ("T73", json!({"reasoning_effort": "minimal"}), "/output_config/effort", json!("low")),
            ("T73", json!({"reasoning_effort": "none"}), "/thinking", json!({"type": "disabled"})),
            (
                "T73",
                with_tools(json!({"reasoning_effort": "high", "tool_choice": "required"})),
                "/thinking/type",
                json!("disabled"),
            ),
            (
                "T74",
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}}),
                "/output_config/format",
                json!({"type": "json_schema", "schema": {"type": "object"}}),
            ),
            (
                "T74",
                json!({"response_format": {"type": "json_object"}}),
                "/system/0/text",
                json!("Answer with one JSON object and nothing else."),
            ),
            ("T75", json!({"user": "u"}), "/metadata/user_id", json!("u")),
            ("T75", json!({"safety_identifier": "s"}), "/metadata/user_id", json!("s")),
            (
                "T78",
                json!({"stream": true, "stream_options": {"include_usage": true}}),
                "/stream_options",
                Value::Null,
            ),
        ],
        MessagesServer::default(),
    );
    check(
        &[
            (
                "T73",
                json!({"reasoning_effort": "minimal"}),
                "/thinking",
                json!({"type": "enabled", "budget_tokens": 1024}),
            ),
            ("T73", json!({"reasoning_effort": "xhigh"}), "/thinking/budget_tokens", json!(8192)),
            ("T73", json!({"reasoning_effort": "xhigh"}), "/max_tokens", json!(4096 + 8192)),
        ],
        MessagesServer { adaptive_thinking: false, ..MessagesServer::default() },
    );
}

#[test]
fn losses_are_told_and_dependencies_refused() {
    let dropped = translate(json!({
        "seed": 1, "logit_bias": {"1": 1}, "presence_penalty": 0.5, "frequency_penalty": 0, "verbosity": "low", "store": true,
        "prediction": {}, "prompt_cache_key": "k", "temperature": 1.5, "stop": [" "], "min_p": 0.1, "ignore_eos": true,
    }))
    .expect("T77")
    .dropped;
    for name in [
        "seed",
        "logit_bias",
        "presence_penalty",
        "verbosity",
        "store",
        "prediction",
        "prompt_cache_key",
        "temperature",
        "stop",
        "min_p",
        "ignore_eos",
    ] {
        assert!(dropped.iter().any(|lost| lost == name), "T77 {name}: {dropped:?}");
    }
    assert!(!dropped.iter().any(|lost| lost == "frequency_penalty"), "0 asks for nothing");
    let cases = [
        ("T77", json!({"n": 2}), "n"),
        ("T77", json!({"logprobs": true}), "logprobs"),
        ("T62", with_messages(json!([{"role": "assistant", "content": "a"}])), "messages"),
        (
            "T61",
            with_messages(
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/tiff;base64,AA=="}}]}]),
            ),
            "messages.0.content.0.image_url",
        ),
        (
            "T61",
            with_messages(json!([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}])),
            "messages.0.content.0.type",
        ),
        (
            "T61",
            with_messages(json!([{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}])),
            "messages.0.content.0.file",
        ),
        ("T69", json!({"tools": [{"type": "custom", "custom": {"name": "x"}}]}), "tools.0.type"),
    ];
    for (id, extra, path) in cases {
        let error = translate(extra).expect_err(id);
        assert_eq!(error.param.as_deref(), Some(path), "{id}: {error}");
        assert_eq!(error.status(Dialect::OpenAi), 400);
    }
}

fn context() -> ReplyContext {
    ReplyContext { model: "m".to_owned(), include_usage: true, stream: true, ..ReplyContext::default() }
}

fn head() -> ChunkHead {
    ChunkHead { id: "chatcmpl-1".to_owned(), created: 7, model: "m".to_owned() }
}

fn replied(message: Value) -> Value {
    let message: Message = serde_json::from_value(message).expect("a message");
    serde_json::to_value(reply::translate(message, 7, &context())).expect("JSON")
}

#[test]
fn answers() {
    let message = |content: Value, reason: &str| {
        json!({"id": "msg_1", "type": "message", "role": "assistant", "content": content, "stop_reason": reason, "stop_sequence": null,
        "usage": {"input_tokens": 3, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 5, "output_tokens": 6}})
    };
    let call = json!({"type": "tool_use", "id": "t", "name": "f", "input": {"b": 1, "a": 2}});
    let rows: &[Row] = &[
        ("T79", message(json!([text("a")]), "end_turn"), "/choices/0/finish_reason", json!("stop")),
        ("T79", message(json!([text("a")]), "pause_turn"), "/choices/0/finish_reason", json!("stop")),
        ("T79", message(json!([text("a")]), "stop_sequence"), "/choices/0/finish_reason", json!("stop")),
        ("T79", message(json!([text("a")]), "max_tokens"), "/choices/0/finish_reason", json!("length")),
        (
            "T79",
            message(json!([text("a")]), "model_context_window_exceeded"),
            "/choices/0/finish_reason",
            json!("length"),
        ),
        ("T79", message(json!([call]), "tool_use"), "/choices/0/finish_reason", json!("tool_calls")),
        ("T79", message(json!([]), "refusal"), "/choices/0/finish_reason", json!("content_filter")),
        ("T80", message(json!([text("a")]), "end_turn"), "/usage/prompt_tokens", json!(12)),
        (
            "T80",
            message(json!([text("a")]), "end_turn"),
            "/usage/prompt_tokens_details/cached_tokens",
            json!(4),
        ),
        ("T80", message(json!([text("a")]), "end_turn"), "/usage/total_tokens", json!(18)),
        (
            "T81",
            message(
                json!([text("a"), {"type": "server_tool_use", "id": "x", "name": "y", "input": {}}, text("b")]),
                "end_turn",
            ),
            "/choices/0/message/content",
            json!("ab"),
        ),
        (
            "T81",
            message(json!([{"type": "thinking", "thinking": "h", "signature": "s"}, text("a")]), "end_turn"),
            "/choices/0/message/reasoning_content",
            json!("h"),
        ),
        (
            "T81",
            message(json!([{"type": "thinking", "thinking": "h", "signature": "s"}, text("a")]), "end_turn"),
            "/choices/0/message/thinking_blocks/0/signature",
            json!("s"),
        ),
        ("T82", message(json!([call]), "tool_use"), "/choices/0/message/content", Value::Null),
        (
            "T82",
            message(json!([call]), "tool_use"),
            "/choices/0/message/tool_calls/0",
            json!({"id": "t", "type": "function", "function": {"name": "f", "arguments": "{\"b\":1,\"a\":2}"}}),
        ),
        ("T82", message(json!([]), "end_turn"), "/choices/0/message/content", json!("")),
        ("id", message(json!([]), "end_turn"), "/id", json!("chatcmpl-1")),
    ];
    for (id, given, pointer, expected) in rows {
        let completion = replied(given.clone());
        let found = completion.pointer(pointer).cloned().unwrap_or(Value::Null);
        assert_eq!(found, *expected, "{id} at {pointer} of {completion}");
    }
}

fn run(events: &[Value]) -> Vec<Piece> {
    let mut stream = ChatStream::new(head(), context());
    let mut pieces = Vec::new();
    for event in events {
        stream.event(&event.to_string(), &mut |piece| pieces.push(piece));
    }
    stream.end(&mut |piece| pieces.push(piece));
    assert!(stream.is_over());
    pieces
}

fn start() -> Value {
    json!({"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "claude",
        "stop_reason": null, "usage": {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 1}}})
}

fn ending(reason: &str) -> [Value; 2] {
    [
        json!({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": null}, "usage": {"output_tokens": 9}}),
        json!({"type": "message_stop"}),
    ]
}

#[test]
fn t83_to_t88_a_stream() {
    let mut events = vec![
        start(),
        json!({"type": "ping"}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "sig"}}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}}),
        json!({"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Hi"}}),
        json!({"type": "content_block_stop", "index": 1}),
        json!({"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "id": "t0", "name": "f", "input": {}}}),
        json!({"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": ""}}),
        json!({"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "{\"a\":1}"}}),
        json!({"type": "content_block_stop", "index": 2}),
        json!({"type": "content_block_start", "index": 3, "content_block": {"type": "tool_use", "id": "t1", "name": "g", "input": {}}}),
        json!({"type": "content_block_stop", "index": 3}),
        json!({"type": "hologram_start"}),
    ];
    events.extend(ending("tool_use"));
    let mut out = Vec::new();
    run(&events).iter().for_each(|piece| piece.write(&mut out));
    let frame = |rest: Value| {
        let mut chunk =
            json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m"});
        for (name, value) in rest.as_object().expect("an object") {
            chunk[name] = value.clone();
        }
        format!("data: {chunk}\n\n")
    };
    let delta =
        |delta: Value| frame(json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]}));
    let expected = [
        delta(json!({"role": "assistant", "content": ""})),
        ": ping\n\n".to_owned(),
        delta(json!({"reasoning_content": "hm"})),
        delta(json!({"thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "sig"}]})),
        delta(json!({"content": "Hi"})),
        delta(
            json!({"tool_calls": [{"index": 0, "id": "t0", "type": "function", "function": {"name": "f", "arguments": ""}}]}),
        ),
        delta(json!({"tool_calls": [{"index": 0, "function": {"arguments": "{\"a\":1}"}}]})),
        delta(
            json!({"tool_calls": [{"index": 1, "id": "t1", "type": "function", "function": {"name": "g", "arguments": ""}}]}),
        ),
        delta(json!({"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]})),
        frame(json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})),
        frame(
            json!({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16, "prompt_tokens_details": {"cached_tokens": 4}}}),
        ),
        "data: [DONE]\n\n".to_owned(),
    ];
    assert_eq!(String::from_utf8(out).expect("text"), expected.concat());
}

#[test]
fn errors_end_a_stream_without_its_mark() {
    let error = json!({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}});
    for (events, message) in [
        (vec![start(), error.clone(), ending("end_turn")[0].clone()], "busy"),
        (vec![start()], "the answer broke off before its end"),
        (vec![start(), json!("not an event")], "the server sent an event"),
    ] {
        let pieces = run(&events);
        let Some(Piece::Error(last)) = pieces.last() else { panic!("{pieces:?}") };
        assert!(last.message.contains(message), "{last}");
        assert!(!pieces.contains(&Piece::Done));
    }
    let Some(Piece::Error(busy)) = run(&[start(), error]).pop() else { panic!("an error") };
    let mut out = Vec::new();
    Piece::Error(busy).write(&mut out);
    assert_eq!(out, b"data: {\"error\":{\"message\":\"busy\",\"type\":\"server_error\",\"param\":null,\"code\":\"overloaded\"}}\n\n");
}

fn message() -> impl Strategy<Value = Value> {
    let block = prop_oneof![
        "\\PC{1,12}".prop_map(|piece| text(&piece)),
        ("\\PC{1,12}", "[a-z]{1,6}").prop_map(
            |(thinking, signature)| json!({"type": "thinking", "thinking": thinking, "signature": signature})
        ),
        ("[a-z]{1,6}", "[a-z]{1,6}", any::<i32>())
            .prop_map(|(id, name, x)| json!({"type": "tool_use", "id": id, "name": name, "input": {"x": x}})),
    ];
    let reason = prop::sample::select(vec!["end_turn", "max_tokens", "tool_use", "refusal"]);
    (prop::collection::vec(block, 0..6), reason).prop_map(|(content, reason)| {
        json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "content": content, "stop_reason": reason, "stop_sequence": null,
            "usage": {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 9}})
    })
}

/// The events a server would send for a message, text and arguments cut into pieces.
fn unfold(message: &Value, size: usize) -> Vec<Value> {
    let pieces = |whole: String| {
        let characters: Vec<char> = whole.chars().collect();
        characters.chunks(size).map(|chunk| chunk.iter().collect::<String>()).collect::<Vec<_>>()
    };
    let mut events = vec![start()];
    for (index, block) in message["content"].as_array().expect("blocks").iter().enumerate() {
        let mut opening = block.clone();
        let (kind, field, whole) = match block["type"].as_str().expect("a type") {
            "text" => ("text_delta", "text", block["text"].as_str().unwrap_or_default().to_owned()),
            "thinking" => {
                ("thinking_delta", "thinking", block["thinking"].as_str().unwrap_or_default().to_owned())
            }
            _ => ("input_json_delta", "partial_json", block["input"].to_string()),
        };
        match block["type"].as_str().expect("a type") {
            "tool_use" => opening["input"] = json!({}),
            kind => opening[kind] = json!(""),
        }
        if opening.get("signature").is_some() {
            opening["signature"] = json!("");
        }
        events.push(json!({"type": "content_block_start", "index": index, "content_block": opening}));
        for piece in pieces(whole) {
            events.push(
                json!({"type": "content_block_delta", "index": index, "delta": {"type": kind, field: piece}}),
            );
        }
        if let Some(signature) = block.get("signature") {
            events.push(json!({"type": "content_block_delta", "index": index, "delta": {"type": "signature_delta", "signature": signature}}));
        }
        events.push(json!({"type": "content_block_stop", "index": index}));
    }
    events.extend(ending(message["stop_reason"].as_str().expect("a reason")));
    events
}

proptest! {
    #[test]
    fn stream_equals_whole(message in message(), size in 1usize..6) {
        let mut aggregator = ChatAggregator::new();
        for piece in run(&unfold(&message, size)) {
            match piece {
                Piece::Chunk(chunk) => aggregator.push(chunk),
                Piece::Ping | Piece::Done => {}
                Piece::Error(error) => return Err(TestCaseError::fail(error.to_string())),
            }
        }
        let streamed = aggregator.finish().expect("complete");
        let whole: ChatCompletion = serde_json::from_value(replied(message)).expect("our own answer");
        prop_assert_eq!(streamed, whole);
    }

    /// There and back: a message seen through OpenAI's dialect says the same.
    #[test]
    fn there_and_back(message in message()) {
        let completion: ChatCompletion = serde_json::from_value(replied(message.clone())).expect("our own answer");
        let context = messages_on_chat::ReplyContext { model: "claude".to_owned(), ..Default::default() };
        let back = messages_on_chat::reply::translate(completion, &context).expect("it ended");
        let back = serde_json::to_value(back).expect("JSON");
        let said = |message: &Value, kind: &str, field: &str| -> Vec<Value> {
            let blocks = message["content"].as_array().expect("blocks").iter();
            blocks.filter(|block| block["type"] == kind).map(|block| block[field].clone()).collect()
        };
        let joined = |values: Vec<Value>| values.iter().filter_map(Value::as_str).collect::<String>();
        for kind in ["text", "thinking"] {
            prop_assert_eq!(joined(said(&back, kind, kind)), joined(said(&message, kind, kind)));
        }
        for field in ["id", "name", "input"] {
            prop_assert_eq!(said(&back, "tool_use", field), said(&message, "tool_use", field));
        }
        for field in ["input_tokens", "cache_read_input_tokens", "output_tokens"] {
            prop_assert_eq!(&back["usage"][field], &message["usage"][field]);
        }
    }

    #[test]
    fn hostile_servers_do_no_harm(events in prop::collection::vec(prop_oneof![
        "\\PC{0,60}",
        Just(r#"{"type":"content_block_delta","index":9,"delta":{"type":"text_delta","text":"x"}}"#.to_owned()),
        Just(r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"a"}}"#.to_owned()),
        Just(r#"{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{"}}"#.to_owned()),
        Just(r#"{"type":"message_delta","delta":null,"usage":null}"#.to_owned()),
        Just(r#"{"type":"message_delta","usage":{"input_tokens":18446744073709551615,"cache_read_input_tokens":9,"output_tokens":1}}"#.to_owned()),
        Just(r#"{"type":"error"}"#.to_owned()),
        Just(r#"{"type":"message_stop"}"#.to_owned()),
    ], 0..12)) {
        let mut stream = ChatStream::new(head(), context());
        let mut ends = 0;
        let mut count = |piece| ends += usize::from(matches!(piece, Piece::Done | Piece::Error(_)));
        for event in &events {
            stream.event(event, &mut count);
        }
        stream.end(&mut count);
        prop_assert_eq!(ends, 1);
    }
}
