//! An Anthropic client on an OpenAI server: requests and whole answers, row by row.

use serde_json::{Value, json};
use wire_api::anthropic::messages::MessagesRequest;
use wire_api::openai::chat::{ChatCompletion, ChatRequest};
use wire_api::translate::messages_on_chat::{ReplyContext, reply, request};
use wire_api::translate::{ChatServer, Translated};
use wire_api::{ApiError, Dialect};

type Outcome = Result<Translated<ChatRequest, ReplyContext>, ApiError>;

fn translate_for(extra: Value, server: ChatServer) -> Outcome {
    let mut body =
        json!({"model": "claude-x", "max_tokens": 4096, "messages": [{"role": "user", "content": "hi"}]});
    for (name, value) in extra.as_object().expect("cases are objects") {
        body[name] = value.clone();
    }
    request::translate(MessagesRequest::parse(body.to_string().as_bytes())?, server)
}

fn translate(extra: Value) -> Outcome {
    translate_for(extra, ChatServer::default())
}

/// One row: an id, what the client adds, where to look in the chat request, what stands there.
type Row = (&'static str, Value, &'static str, Value);

fn check(rows: &[Row], server: ChatServer) {
    for (id, extra, pointer, expected) in rows {
        let translated = translate_for(extra.clone(), server).unwrap_or_else(|error| panic!("{id}: {error}"));
        let body: Value = serde_json::from_slice(&translated.request.to_body()).expect("JSON");
        let found = body.pointer(pointer).cloned().unwrap_or(Value::Null);
        assert_eq!(found, *expected, "{id} at {pointer} of {body}");
        let neuron_reads = ChatRequest::parse(body.to_string().as_bytes());
        assert!(neuron_reads.is_ok(), "{id}: {:?} of {body}", neuron_reads.err());
    }
}

fn with_messages(messages: Value) -> Value {
    json!({ "messages": messages })
}

/// A history in which `t1` and `t2` were called, followed by a user turn.
fn answered(content: Value) -> Value {
    with_messages(json!([
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": [
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"b": 1, "a": [2]}},
            {"type": "tool_use", "id": "t2", "name": "g", "input": {}},
        ]},
        {"role": "user", "content": content},
    ]))
}

fn result(content: Value) -> Value {
    json!([{"type": "tool_result", "tool_use_id": "t1", "content": content}])
}

const PIXEL: &str = "iVBORw0KGgo=";

fn image() -> Value {
    json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}})
}

fn image_part() -> Value {
    json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{PIXEL}")}})
}

fn custom(name: &str) -> Value {
    json!({"name": name, "input_schema": {"type": "object", "properties": {"z": {}, "a": {}}}})
}

#[test]
fn fields() {
    let tools = json!([custom("f"), custom("g")]);
    let with_choice = |choice: Value| json!({"tools": tools, "tool_choice": choice});
    check(
        &[
            ("T1", json!({"max_tokens": 7}), "/max_tokens", json!(7)),
            ("T1", json!({"max_tokens": 0}), "/max_tokens", json!(1)),
            ("T23", json!({"tools": []}), "/tools", Value::Null),
            ("T25", with_choice(json!({"type": "auto"})), "/tool_choice", json!("auto")),
            ("T25", with_choice(json!({"type": "any"})), "/tool_choice", json!("required")),
            ("T25", with_choice(json!({"type": "none"})), "/tool_choice", json!("none")),
            (
                "T25",
                with_choice(json!({"type": "tool", "name": "g"})),
                "/tool_choice",
                json!({"type": "function", "function": {"name": "g"}}),
            ),
            (
                "T26",
                with_choice(json!({"type": "auto", "disable_parallel_tool_use": true})),
                "/parallel_tool_calls",
                json!(false),
            ),
            ("T26", with_choice(json!({"type": "auto"})), "/parallel_tool_calls", Value::Null),
            ("T27", json!({"stop_sequences": ["a", " "]}), "/stop", json!(["a", " "])),
            ("T27", json!({"stop_sequences": []}), "/stop", Value::Null),
            ("T28", json!({"temperature": 0.5}), "/temperature", json!(0.5)),
            ("T28", json!({"top_p": 0.25}), "/top_p", json!(0.25)),
            ("T28", json!({"top_k": 5}), "/top_k", json!(5)),
            (
                "T29",
                json!({"thinking": {"type": "enabled", "budget_tokens": 1024}}),
                "/reasoning_effort",
                json!("low"),
            ),
            (
                "T29",
                json!({"thinking": {"type": "enabled", "budget_tokens": 2048}}),
                "/chat_template_kwargs",
                json!({"enable_thinking": true}),
            ),
            ("T30", json!({"thinking": {"type": "adaptive"}}), "/reasoning_effort", json!("medium")),
            (
                "T30",
                json!({"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}),
                "/reasoning_effort",
                json!("high"),
            ),
            (
                "T30",
                json!({"thinking": {"type": "adaptive"}}),
                "/chat_template_kwargs/enable_thinking",
                json!(true),
            ),
            ("T31", json!({"thinking": {"type": "disabled"}}), "/reasoning_effort", json!("none")),
            (
                "T31",
                json!({"thinking": {"type": "disabled"}}),
                "/chat_template_kwargs/enable_thinking",
                json!(false),
            ),
            (
                "T31",
                json!({"thinking": {"type": "between_tools"}}),
                "/chat_template_kwargs/enable_thinking",
                json!(true),
            ),
            ("T32", json!({"output_config": {"effort": "low"}}), "/reasoning_effort", json!("low")),
            (
                "T33",
                json!({"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}}),
                "/response_format",
                json!({"type": "json_schema", "json_schema": {"name": "response", "schema": {"type": "object"}, "strict": true}}),
            ),
            (
                "T34",
                json!({"metadata": {"user_id": "{\"session_id\":\"s1\"}"}}),
                "/prompt_cache_key",
                json!("s1"),
            ),
            ("T34", json!({"metadata": {"user_id": "u"}}), "/user", json!("u")),
            (
                "T35",
                json!({"service_tier": "auto", "inference_geo": "eu", "fallbacks": []}),
                "/service_tier",
                Value::Null,
            ),
            ("T38", json!({}), "/stream", json!(true)),
            ("T38", json!({"stream": false}), "/stream_options/include_usage", json!(true)),
        ],
        ChatServer::default(),
    );
}

#[test]
fn instructions() {
    let turns = json!([{"role": "user", "content": "hi"}, {"role": "system", "content": [{"type": "text", "text": "new rules"}]}, {"role": "user", "content": "go"}]);
    check(
        &[
            ("T2", json!({"system": "be"}), "/messages/0", json!({"role": "system", "content": "be"})),
            ("T2", json!({"system": ""}), "/messages/0/role", json!("user")),
            (
                "T3",
                json!({"system": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": ""}, {"type": "text", "text": "b"}]}),
                "/messages/0/content",
                json!("a\nb"),
            ),
            (
                "T3",
                json!({"system": [{"type": "text", "text": "x-anthropic-billing-header: cc_version=1"}, {"type": "text", "text": "b"}]}),
                "/messages/0/content",
                json!("b"),
            ),
            (
                "T3",
                json!({"system": [{"type": "text", "text": "x-anthropic-billing-header: cc_version=1"}]}),
                "/messages/0/role",
                json!("user"),
            ),
            (
                "T4",
                with_messages(turns.clone()),
                "/messages/1",
                json!({"role": "user", "content": "<system-reminder>\nnew rules\n</system-reminder>"}),
            ),
        ],
        ChatServer::default(),
    );
    check(
        &[("T4", with_messages(turns), "/messages/1", json!({"role": "system", "content": "new rules"}))],
        ChatServer { mid_system: true, ..ChatServer::default() },
    );
}

#[test]
fn user_turns() {
    let user = |content: Value| with_messages(json!([{"role": "user", "content": content}]));
    let text = |text: &str| json!({"type": "text", "text": text});
    check(
        &[
            ("T5", user(json!("hi")), "/messages/0/content", json!("hi")),
            ("T6", user(json!([text("a")])), "/messages/0/content", json!("a")),
            ("T6", user(json!([text("a"), text("b")])), "/messages/0/content", json!([text("a"), text("b")])),
            (
                "T7",
                user(json!([image(), text("see")])),
                "/messages/0/content",
                json!([image_part(), text("see")]),
            ),
            (
                "T7",
                user(json!([{"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}])),
                "/messages/0/content/0/image_url/url",
                json!("https://x/y.png"),
            ),
            (
                "T8",
                user(
                    json!([{"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "body"}}]),
                ),
                "/messages/0/content",
                json!("<document title=\"T\">\nbody\n</document>"),
            ),
            (
                "T8",
                user(
                    json!([{"type": "document", "source": {"type": "content", "content": [text("x"), image()]}}]),
                ),
                "/messages/0/content",
                json!([text("x"), image_part()]),
            ),
            (
                "T9",
                user(json!([{"type": "search_result", "title": "t", "source": "s", "content": [text("c")]}])),
                "/messages/0/content",
                json!("t\ns\nc"),
            ),
        ],
        ChatServer::default(),
    );
    check(
        &[("T6", user(json!([text("a"), text("b")])), "/messages/0/content", json!("a\nb"))],
        ChatServer { text_parts: false, ..ChatServer::default() },
    );
    let pdf = json!([{"type": "document", "title": "r.pdf", "source": {"type": "base64", "media_type": "application/pdf", "data": "AA=="}}]);
    check(
        &[(
            "T8",
            user(pdf.clone()),
            "/messages/0/content/0",
            json!({"type": "file", "file": {"filename": "r.pdf", "file_data": "data:application/pdf;base64,AA=="}}),
        )],
        ChatServer { files: true, ..ChatServer::default() },
    );
    assert_eq!(translate(user(pdf)).expect_err("no files").param.as_deref(), Some("messages.0.content.0"));
}

#[test]
fn tool_results() {
    let text = |text: &str| json!({"type": "text", "text": text});
    let tool = |content: &str| json!({"role": "tool", "tool_call_id": "t1", "content": content});
    let failed = |content: Value| json!([{"type": "tool_result", "tool_use_id": "t1", "content": content, "is_error": true}]);
    let mixed = json!([
        text("before"),
        {"type": "tool_result", "tool_use_id": "t2", "content": "2"},
        {"type": "tool_result", "tool_use_id": "t1", "content": "1"},
        text("after"),
    ]);
    check(
        &[
            ("T10", answered(result(json!("ok"))), "/messages/2", tool("ok")),
            ("T10", answered(result(json!([text("a"), text("b")]))), "/messages/2", tool("a\nb")),
            ("T10", answered(result(json!([]))), "/messages/2", tool("")),
            ("T10", answered(json!([{"type": "tool_result", "tool_use_id": "t1"}])), "/messages/2", tool("")),
            ("T10", answered(mixed.clone()), "/messages/2/tool_call_id", json!("t2")),
            ("T10", answered(mixed.clone()), "/messages/3/tool_call_id", json!("t1")),
            (
                "T10",
                answered(mixed),
                "/messages/4",
                json!({"role": "user", "content": [text("before"), text("after")]}),
            ),
            ("T11", answered(failed(json!("no such file"))), "/messages/2", tool("Error: no such file")),
            ("T11", answered(failed(json!("ERROR 3"))), "/messages/2", tool("ERROR 3")),
            ("T11", answered(failed(json!([]))), "/messages/2", tool("Error: ")),
            (
                "T12",
                answered(result(json!([text("shot"), image()]))),
                "/messages/2",
                tool("shot\n[image 1 attached below]"),
            ),
            (
                "T12",
                answered(result(json!([text("shot"), image()]))),
                "/messages/3",
                json!({"role": "user", "content": [image_part()]}),
            ),
            (
                "T13",
                answered(result(json!([{"type": "tool_reference", "tool_name": "h"}]))),
                "/messages/2",
                tool("tool: h"),
            ),
        ],
        ChatServer::default(),
    );
    check(
        &[(
            "T12",
            answered(result(json!([text("shot"), image()]))),
            "/messages/2/content",
            json!([text("shot"), image_part()]),
        )],
        ChatServer { tool_images: true, ..ChatServer::default() },
    );
    let orphan = with_messages(
        json!([{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t9", "content": "x"}]}]),
    );
    let error = translate(orphan.clone()).expect_err("T14");
    assert!(error.message.contains("unexpected tool_use_id"), "{error}");
    check(
        &[("T14", orphan, "/messages/0", json!({"role": "user", "content": "x"}))],
        ChatServer { lenient: true, ..ChatServer::default() },
    );
}

#[test]
fn assistant_turns() {
    let assistant = |content: Value| {
        with_messages(
            json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": content}, {"role": "user", "content": "b"}]),
        )
    };
    let text = |text: &str| json!({"type": "text", "text": text});
    check(
        &[
            ("T15", assistant(json!([text("a"), text("b")])), "/messages/1/content", json!("ab")),
            ("T15", assistant(json!([])), "/messages/1/content", json!("")),
            ("T15", answered(result(json!("ok"))), "/messages/1/content", Value::Null),
            (
                "T16",
                answered(result(json!("ok"))),
                "/messages/1/tool_calls/0",
                json!({"id": "t1", "type": "function", "function": {"name": "f", "arguments": "{\"b\":1,\"a\":[2]}"}}),
            ),
            (
                "T16",
                answered(result(json!("ok"))),
                "/messages/1/tool_calls/1/function/arguments",
                json!("{}"),
            ),
            (
                "T17",
                assistant(
                    json!([{"type": "thinking", "thinking": "x", "signature": "s"}, {"type": "thinking", "thinking": "y"}, text("a")]),
                ),
                "/messages/1/reasoning_content",
                json!("xy"),
            ),
            (
                "T18",
                assistant(json!([{"type": "redacted_thinking", "data": "?"}, text("a")])),
                "/messages/1",
                json!({"role": "assistant", "content": "a"}),
            ),
            (
                "T19",
                assistant(
                    json!([{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "q"}}]),
                ),
                "/messages/1/content",
                json!("[server_tool_use] {\"query\":\"q\"}"),
            ),
        ],
        ChatServer::default(),
    );
    let prefill =
        with_messages(json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "{"}]));
    check(
        &[
            ("T20", prefill.clone(), "/continue_final_message", json!(true)),
            ("T20", prefill.clone(), "/add_generation_prompt", json!(false)),
        ],
        ChatServer::default(),
    );
    let refused = translate_for(prefill, ChatServer { prefill: false, ..ChatServer::default() });
    assert_eq!(refused.expect_err("T20").param.as_deref(), Some("messages.1.role"));
}

#[test]
fn tools() {
    let long = "n".repeat(70);
    let with_tool = |tool: Value| json!({ "tools": [tool] });
    check(
        &[
            (
                "T21",
                with_tool(
                    json!({"type": "custom", "name": "f", "description": "d", "strict": true, "input_schema": {"type": "object", "properties": {"z": {}, "a": {}}}, "cache_control": {}, "defer_loading": true}),
                ),
                "/tools/0",
                json!({"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"z": {}, "a": {}}}, "strict": true}}),
            ),
            (
                "T21",
                with_tool(json!({"name": "f"})),
                "/tools/0/function/parameters",
                json!({"type": "object", "properties": {}}),
            ),
            (
                "T21",
                with_tool(json!({"name": "f", "description": "d", "input_examples": [{"a": 1}]})),
                "/tools/0/function/description",
                json!("d\n\nExamples of input:\n{\"a\":1}"),
            ),
            (
                "T22",
                with_tool(json!({"type": "bash_20250124", "name": "bash"})),
                "/tools/0/function/parameters/properties/command/type",
                json!("string"),
            ),
            (
                "T22",
                with_tool(json!({"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"})),
                "/tools/0/function/name",
                json!("str_replace_based_edit_tool"),
            ),
            (
                "T22",
                with_tool(json!({"type": "web_search_20250305", "name": "web_search"})),
                "/tools",
                Value::Null,
            ),
        ],
        ChatServer::default(),
    );
    let translated = translate(with_tool(custom(&long))).expect("T24");
    let name = &translated.request.tools[0].name;
    assert_eq!((name.len(), translated.reply.tool_names.restore(name)), (64, long.as_str()), "T24");
    let keys: Vec<_> = translated.request.tools[0].parameters.as_ref().expect("a schema")["properties"]
        .as_object()
        .expect("an object")
        .keys()
        .cloned()
        .collect();
    assert_eq!(keys, ["z", "a"], "T21: order is part of the prompt");
    let dropped = translate(with_tool(json!({"type": "web_search_20250305", "name": "web_search"})))
        .expect("T22")
        .dropped;
    assert_eq!(dropped, ["tools.web_search_20250305"]);
}

#[test]
fn refusals_name_the_path() {
    let cases: &[(&str, Value, &str)] = &[
        ("T1", json!({"max_tokens": null}), "max_tokens"),
        ("T1", json!({"max_tokens": -1}), "max_tokens"),
        (
            "T7",
            with_messages(
                json!([{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}]),
            ),
            "messages.0.content.0.source.type",
        ),
        (
            "T9",
            with_messages(
                json!([{"role": "user", "content": [{"type": "container_upload", "file_id": "f"}]}]),
            ),
            "messages.0.content.0.type",
        ),
        (
            "G1",
            with_messages(
                json!([{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "hologram"}]}]),
            ),
            "messages.0.content.1.type",
        ),
        (
            "G1",
            with_messages(
                json!([{"role": "user", "content": [{"type": "tool_use", "id": "x", "name": "f", "input": {}}]}]),
            ),
            "messages.0.content.0.type",
        ),
        (
            "T22",
            json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}], "tool_choice": {"type": "tool", "name": "web_search"}}),
            "tools.0.type",
        ),
        ("T25", json!({"tool_choice": {"type": "auto"}}), "tool_choice"),
        (
            "T25",
            json!({"tools": [custom("f")], "tool_choice": {"type": "tool", "name": "g"}}),
            "tool_choice.name",
        ),
        ("T29", json!({"thinking": {"type": "enabled", "budget_tokens": 1023}}), "thinking.budget_tokens"),
        ("T29", json!({"thinking": {"type": "enabled", "budget_tokens": 4096}}), "thinking.budget_tokens"),
        ("T35", json!({"mcp_servers": [{"url": "x"}]}), "mcp_servers"),
        ("-", with_messages(json!([])), "messages"),
        ("-", with_messages(json!([{"role": "user", "content": 5}])), "messages.0.content"),
        ("-", json!({"temperature": 3}), "temperature"),
    ];
    for (id, extra, path) in cases {
        let error = translate(extra.clone()).expect_err(id);
        assert_eq!(error.param.as_deref(), Some(*path), "{id}: {error}");
        assert_eq!(error.status(Dialect::Anthropic), 400);
    }
    let error = translate(json!({"max_tokens": null})).expect_err("T1");
    assert_eq!(error.anthropic_body(None)["error"]["message"], "max_tokens: Field required");
}

#[test]
fn t35_t36_what_is_lost_is_told() {
    let translated = translate(json!({
        "context_management": {"edits": []}, "inference_geo": "eu", "container": "c", "speed": "fast", "cache_control": {"type": "ephemeral"}, "service_tier": "auto",
    }))
    .expect("tolerated");
    assert!(translated.reply.context_management);
    let mut dropped = translated.dropped;
    dropped.sort();
    assert_eq!(dropped, ["container", "context_management", "inference_geo", "speed"]);
}

#[test]
fn t37_breakpoints_are_counted() {
    let body = json!({"model": "m", "max_tokens": 1, "system": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}]}]});
    let request = MessagesRequest::parse(body.to_string().as_bytes()).expect("well formed");
    assert_eq!(request.cache_breakpoints, 2);
}

#[test]
fn counting_tokens_needs_no_limit() {
    let body = br#"{"model":"m","messages":[{"role":"user","content":"hi"}],"thinking":{"type":"enabled","budget_tokens":9000}}"#;
    assert!(MessagesRequest::parse_count_tokens(body).is_ok());
    assert!(MessagesRequest::parse(body).is_err());
}

#[test]
fn a_request_survives_the_wire() {
    let body = json!({"model": "m", "max_tokens": 2000, "system": "s", "stream": true, "temperature": 0.5, "top_k": 3,
    "tools": [custom("f")], "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
    "stop_sequences": ["x"], "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
    "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": {}}}, "metadata": {"user_id": "u"},
    "messages": [
        {"role": "user", "content": [image(), {"type": "document", "title": "t", "source": {"type": "text", "media_type": "text/plain", "data": "d"}}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "h", "signature": "s"}, {"type": "tool_use", "id": "t1", "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "no", "is_error": true}]},
    ]});
    let request = MessagesRequest::parse(body.to_string().as_bytes()).expect("well formed");
    let again = MessagesRequest::parse(&request.to_body()).expect("our own form");
    assert_eq!(again, request);
}

fn completion(choice: Value, usage: Value) -> ChatCompletion {
    serde_json::from_value(json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "upstream", "choices": [choice], "usage": usage}))
        .expect("a completion")
}

fn context() -> ReplyContext {
    ReplyContext { model: "claude-x".to_owned(), ..ReplyContext::default() }
}

fn replied(choice: Value, context: &ReplyContext) -> Value {
    let usage = json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15});
    serde_json::to_value(reply::translate(completion(choice, usage), context).expect("an answer"))
        .expect("JSON")
}

fn call(id: &str, name: &str, arguments: &str) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

#[test]
fn answers() {
    let message =
        |message: Value, reason: &str| json!({"index": 0, "message": message, "finish_reason": reason});
    let rows: &[(&str, Value, &str, Value)] = &[
        (
            "T40",
            message(json!({"content": "hi"}), "stop"),
            "/content",
            json!([{"type": "text", "text": "hi"}]),
        ),
        ("T40", message(json!({"content": "hi"}), "stop"), "/model", json!("claude-x")),
        ("T40", message(json!({"content": "hi"}), "stop"), "/id", json!("msg_1")),
        ("T40", message(json!({"content": ""}), "stop"), "/content", json!([])),
        (
            "T40",
            message(
                json!({"content": "t", "reasoning_content": "r", "tool_calls": [call("c", "f", "{}")]}),
                "tool_calls",
            ),
            "/content/0/type",
            json!("thinking"),
        ),
        (
            "T40",
            message(
                json!({"content": "t", "reasoning_content": "r", "tool_calls": [call("c", "f", "{}")]}),
                "tool_calls",
            ),
            "/content/1/type",
            json!("text"),
        ),
        (
            "T40",
            message(json!({"content": "", "tool_calls": [call("c", "f", "{}")]}), "tool_calls"),
            "/content/0/type",
            json!("tool_use"),
        ),
        (
            "T41",
            message(json!({"content": "t", "reasoning": "r"}), "stop"),
            "/content/0/thinking",
            json!("r"),
        ),
        (
            "T42",
            message(json!({"tool_calls": [call("c-1", "f", "{\"b\":1,\"a\":2}")]}), "tool_calls"),
            "/content/0",
            json!({"type": "tool_use", "id": "c-1", "name": "f", "input": {"b": 1, "a": 2}}),
        ),
        (
            "T44",
            message(json!({"tool_calls": [call("c", "f", "")]}), "tool_calls"),
            "/content/0/input",
            json!({}),
        ),
        (
            "T45",
            message(json!({"tool_calls": [call("c", "f", "{\"a\":1,\"b\":\"unf")]}), "length"),
            "/content/0/input",
            json!({"a": 1}),
        ),
        (
            "T45",
            message(json!({"tool_calls": [call("c", "f", "nonsense")]}), "tool_calls"),
            "/content",
            json!([]),
        ),
        (
            "T45",
            message(json!({"tool_calls": [call("c", "f", "nonsense")]}), "tool_calls"),
            "/stop_reason",
            json!("end_turn"),
        ),
        (
            "T45",
            message(json!({"tool_calls": [call("c", "f", "nons")]}), "length"),
            "/stop_reason",
            json!("max_tokens"),
        ),
        (
            "T46",
            message(json!({"function_call": {"name": "f", "arguments": "{}"}}), "function_call"),
            "/content/0/name",
            json!("f"),
        ),
        ("T46", message(json!({"refusal": "no"}), "stop"), "/stop_reason", json!("refusal")),
        ("T46", message(json!({"refusal": "no"}), "stop"), "/content/0/text", json!("no")),
        ("stop", message(json!({"content": "x"}), "stop"), "/stop_reason", json!("end_turn")),
        ("stop", message(json!({"content": "x"}), "stop"), "/stop_sequence", Value::Null),
        ("stop", message(json!({"content": "x"}), "length"), "/stop_reason", json!("max_tokens")),
        ("stop", message(json!({"content": "x"}), "content_filter"), "/stop_reason", json!("refusal")),
        (
            "stop",
            message(json!({"tool_calls": [call("c", "f", "{}")]}), "stop"),
            "/stop_reason",
            json!("tool_use"),
        ),
        (
            "stop",
            json!({"message": {"content": "x"}, "finish_reason": "stop", "stop_reason": "END"}),
            "/stop_reason",
            json!("stop_sequence"),
        ),
        (
            "stop",
            json!({"message": {"content": "x"}, "finish_reason": "stop", "matched_stop": "END"}),
            "/stop_sequence",
            json!("END"),
        ),
        (
            "stop",
            json!({"message": {"content": "x"}, "finish_reason": "stop", "stop_reason": 151645}),
            "/stop_reason",
            json!("end_turn"),
        ),
    ];
    for (id, choice, pointer, expected) in rows {
        let message = replied(choice.clone(), &context());
        let found = message.pointer(pointer).cloned().unwrap_or(Value::Null);
        assert_eq!(found, *expected, "{id} at {pointer} of {message}");
    }
    let thought = replied(message(json!({"content": "t", "reasoning_content": "r"}), "stop"), &context());
    let signature = thought["content"][0]["signature"].as_str().expect("T41");
    assert!(signature.starts_with("cortex:v1:") && signature.len() > 20, "{signature}");
}

#[test]
fn abnormal_ends_are_errors() {
    for choice in [
        json!({"message": {"content": "x"}, "finish_reason": null}),
        json!({"message": {"content": "x"}, "finish_reason": "abort"}),
    ] {
        let error =
            reply::translate(completion(choice, Value::Null), &context()).expect_err("never a fake end_turn");
        assert_eq!(error.status(Dialect::Anthropic), 502);
    }
}

#[test]
fn t47_usage_is_always_complete() {
    let choice = json!({"message": {"content": "x"}, "finish_reason": "stop"});
    let counted = |usage| {
        let message = reply::translate(completion(choice.clone(), usage), &context()).expect("an answer");
        serde_json::to_value(message.usage).expect("JSON")
    };
    let usage = counted(json!({"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107,
        "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10}, "completion_tokens_details": {"reasoning_tokens": 3}}));
    assert_eq!(
        usage,
        json!({"input_tokens": 30, "cache_creation_input_tokens": 10, "cache_read_input_tokens": 60,
            "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 0},
            "output_tokens": 7, "output_tokens_details": {"thinking_tokens": 3}, "service_tier": "standard"})
    );
    let bare = counted(json!({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}));
    assert_eq!(
        (&bare["cache_read_input_tokens"], &bare["cache_creation_input_tokens"]),
        (&json!(0), &json!(0))
    );
    let odd = counted(
        json!({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "prompt_tokens_details": {"cached_tokens": 5}}),
    );
    assert_eq!(odd["input_tokens"], 0);
}

#[test]
fn context_of_the_request_shapes_the_answer() {
    let choice = json!({"message": {"content": "t", "reasoning_content": "r", "tool_calls": [call("a", "f", "{}"), call("b", "g", "{}")]}, "finish_reason": "tool_calls"});
    let one = replied(choice.clone(), &ReplyContext { single_tool_call: true, ..context() });
    assert_eq!(one["content"].as_array().map(Vec::len), Some(3), "T26");
    let hidden = replied(choice.clone(), &ReplyContext { hide_thinking: true, ..context() });
    assert_eq!(hidden["content"][0]["type"], "text", "T30");
    let warmed = replied(choice.clone(), &ReplyContext { prewarm: true, ..context() });
    assert_eq!(
        (&warmed["content"], &warmed["stop_reason"], &warmed["usage"]["output_tokens"]),
        (&json!([]), &json!("max_tokens"), &json!(0)),
        "T1"
    );
    let managed = replied(choice, &ReplyContext { context_management: true, ..context() });
    assert_eq!(managed["context_management"], json!({"applied_edits": []}), "T36");
}
