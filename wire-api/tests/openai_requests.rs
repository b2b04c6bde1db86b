//! Requests of the OpenAI endpoints: what is accepted, how it is normalised, what is refused and
//! under which name.

use serde_json::{Value, json};
use wire_api::openai::chat::{ChatRequest, ReasoningEffort, ResponseFormat};
use wire_api::openai::completions::{CompletionRequest, Prompt};
use wire_api::openai::content::{Content, ContentPart};
use wire_api::openai::embeddings::{EmbeddingRequest, EncodingFormat, Vector};
use wire_api::openai::message::Message;
use wire_api::openai::tools::{ToolArguments, ToolChoice};
use wire_api::{ApiError, Dialect};

fn chat_with(extra: Value) -> Result<ChatRequest, ApiError> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    for (name, value) in extra.as_object().expect("cases are objects") {
        body[name] = value.clone();
    }
    ChatRequest::parse(body.to_string().as_bytes())
}

fn messages(messages: Value) -> Result<Vec<Message>, ApiError> {
    chat_with(json!({ "messages": messages })).map(|request| request.messages)
}

#[test]
fn every_parameter_arrives() {
    let request = chat_with(json!({
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": -7, "stop": ["a", "b"],
        "max_tokens": 10, "n": 2, "logprobs": true, "top_logprobs": 3, "logit_bias": {"12": -100, "3": 1.5},
        "presence_penalty": 0.1, "frequency_penalty": -0.2, "repetition_penalty": 1.1, "ignore_eos": true,
        "stream": true, "stream_options": {"include_usage": true, "include_obfuscation": false}, "user": "u",
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": "required", "parallel_tool_calls": false, "chat_template_kwargs": {"x": 1},
        "enable_thinking": false, "reasoning_effort": "low", "response_format": {"type": "text"},
    }))
    .expect("all of them are known");
    let parameters = &request.parameters;
    assert_eq!(parameters.temperature, Some(0.5));
    assert_eq!((parameters.top_p, parameters.top_k, parameters.min_p), (Some(0.9), Some(40), Some(0.05)));
    assert_eq!((parameters.seed, parameters.max_tokens, parameters.n), (Some(-7), Some(10), 2));
    assert_eq!(parameters.stop, ["a", "b"]);
    assert!(parameters.logprobs && parameters.ignore_eos);
    assert_eq!(parameters.top_logprobs, 3);
    assert_eq!(parameters.logit_bias, [(3, 1.5), (12, -100.0)]);
    assert_eq!((parameters.presence_penalty, parameters.frequency_penalty), (Some(0.1), Some(-0.2)));
    assert_eq!(parameters.repetition_penalty, Some(1.1));
    assert!(request.stream && request.include_usage);
    assert_eq!(request.labels.user.as_deref(), Some("u"));
    assert_eq!(request.tools[0].name, "f");
    assert_eq!(request.tool_choice, Some(ToolChoice::Required));
    assert_eq!(request.parallel_tool_calls, Some(false));
    assert_eq!(request.template.kwargs["x"], 1);
    assert_eq!(request.template.enable_thinking, Some(false));
    assert_eq!(request.template.reasoning_effort, Some(ReasoningEffort::Low));
    assert_eq!(request.response_format, ResponseFormat::Text);

    let again = ChatRequest::parse(&request.to_body()).expect("our own wire form is readable");
    assert_eq!(again, request);
}

#[test]
fn spellings_are_normalised() {
    let read = |extra| chat_with(extra).expect("accepted");
    assert_eq!(read(json!({"stop": "x"})).parameters.stop, ["x"]);
    assert_eq!(read(json!({"stop": []})).parameters.stop, [""; 0]);
    assert_eq!(read(json!({"max_completion_tokens": 3})).parameters.max_tokens, Some(3));
    assert_eq!(read(json!({"max_completion_tokens": 3, "max_tokens": 9})).parameters.max_tokens, Some(3));
    assert_eq!(read(json!({"max_tokens": 3.0})).parameters.max_tokens, Some(3));
    assert_eq!(read(json!({"top_k": -1})).parameters.top_k, Some(0));
    assert_eq!(read(json!({"temperature": 1})).parameters.temperature, Some(1.0));
    assert_eq!(read(json!({"temperature": null, "stop": null, "n": null})).parameters, Default::default());
    let thinking = read(json!({"chat_template_kwargs": {"enable_thinking": true, "y": 2}})).template;
    assert_eq!((thinking.enable_thinking, thinking.kwargs.len()), (Some(true), 1));
    assert_eq!(read(json!({"reasoning_effort": "none"})).template.thinking(), Some(false));
    assert_eq!(read(json!({})).template.thinking(), None);
    assert!(read(json!({})).template.add_generation_prompt);
    assert_eq!(read(json!({"tools": [], "tool_choice": "auto"})).tool_choice, None);
    let named = json!({"functions": [{"name": "f"}], "function_call": {"name": "f"}});
    assert_eq!(read(named).tool_choice, Some(ToolChoice::Function("f".to_owned())));
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    let cases = [
        ("temperature", json!(-0.1)),
        ("temperature", json!(2.1)),
        ("temperature", json!("hot")),
        ("temperature", json!(true)),
        ("top_p", json!(1.01)),
        ("top_p", json!(-0.01)),
        ("top_k", json!(-2)),
        ("top_k", json!(1.5)),
        ("min_p", json!(2)),
        ("seed", json!("x")),
        ("seed", json!(1.0e300)),
        ("stop", json!(7)),
        ("stop", json!([7])),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(5_000_000_000u64)),
        ("max_completion_tokens", json!(0)),
        ("n", json!(0)),
        ("n", json!(129)),
        ("logprobs", json!(3)),
        ("top_logprobs", json!(2)),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!([])),
        ("presence_penalty", json!(2.5)),
        ("frequency_penalty", json!(-2.5)),
        ("repetition_penalty", json!(0)),
        ("ignore_eos", json!("yes")),
        ("stream", json!(1)),
        ("stream_options", json!(true)),
        ("tools", json!({})),
        ("tool_choice", json!("sometimes")),
        ("tool_choice", json!("required")),
        ("parallel_tool_calls", json!(1)),
        ("chat_template_kwargs", json!([])),
        ("enable_thinking", json!("no")),
        ("reasoning_effort", json!("heroic")),
        ("continue_final_message", json!(true)),
    ];
    for (name, value) in cases {
        let error = chat_with(json!({ name: value })).expect_err(&format!("{name}: {value}"));
        assert_eq!(error.param.as_deref(), Some(name), "{error}");
        assert_eq!(error.status(Dialect::OpenAi), 400);
        assert!(error.openai_body()["error"]["message"].as_str().is_some_and(|text| text.contains(name)));
    }
    let nested = [
        (json!({"logit_bias": {"5": 101}}), "logit_bias.5"),
        (json!({"stop": ["a", ""]}), "stop.1"),
        (json!({"stream_options": {"include_usage": 1}}), "stream_options.include_usage"),
        (json!({"tools": [{"type": "mcp"}]}), "tools.0.type"),
        (json!({"tools": [{"function": {}}]}), "tools.0.function.name"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"chat_template_kwargs": {"enable_thinking": 3}}), "chat_template_kwargs.enable_thinking"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
    ];
    for (extra, path) in nested {
        let error = chat_with(extra.clone()).expect_err(path);
        assert_eq!(error.param.as_deref(), Some(path), "{extra}: {error}");
    }
}

#[test]
fn what_would_change_the_answer_is_refused_by_name() {
    let cases = [
        ("temprature", json!(1), Some("temperature")),
        ("max_token", json!(1), Some("max_tokens")),
        ("presence_penality", json!(1), Some("presence_penalty")),
        ("repeat_penalty", json!(1.1), None),
        ("guided_json", json!({}), None),
        ("store", json!(true), None),
        ("min_tokens", json!(5), None),
        ("modalities", json!(["text", "audio"]), None),
        ("verbosity", json!("low"), None),
        ("web_search_options", json!({}), None),
        ("stop_token_ids", json!([5]), None),
        ("xyzzy", json!(1), None),
    ];
    for (name, value, near) in cases {
        let error = chat_with(json!({ name: value })).expect_err(name);
        assert_eq!(error.param.as_deref(), Some(name), "{error}");
        if let Some(near) = near {
            assert!(error.message.contains(near), "{error}");
        }
    }
}

#[test]
fn what_cannot_change_the_answer_is_tolerated() {
    let request = chat_with(json!({
        "metadata": {"a": "b"}, "user": "u", "store": false, "service_tier": "auto", "prompt_cache_key": "k",
        "safety_identifier": "s", "prediction": {"type": "content", "content": "x"}, "modalities": ["text"],
        "verbosity": "medium", "audio": null, "best_of": 1, "skip_special_tokens": true, "xyzzy": null,
    }))
    .expect("harmless");
    assert!(request.extra.is_empty());
    assert_eq!(request.labels.prompt_cache_key.as_deref(), Some("k"));
}

#[test]
fn lenient_reading_keeps_what_it_does_not_know() {
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "verbosity": "low", "xyzzy": 1});
    let request = ChatRequest::parse_lenient(body.to_string().as_bytes()).expect("lenient");
    let names: Vec<_> = request.extra.keys().map(String::as_str).collect();
    assert_eq!(names.len(), 2);
    assert!(names.contains(&"verbosity") && names.contains(&"xyzzy"));
}

#[test]
fn content_comes_in_many_shapes() {
    let read = messages(json!([
        {"role": "developer", "content": "rules"},
        {"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}]},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": 2}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": null},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "ok"}]},
        {"role": "assistant", "content": "", "reasoning_content": "hm", "refusal": null, "tool_calls": null},
        {"role": "assistant", "reasoning": "hm"},
        {"role": "user", "content": ["plain", {"type": "input_text", "text": "x"}]},
    ]))
    .expect("clients send all of these");
    assert_eq!(read[0], Message::system("rules"));
    let Message::User { content, .. } = &read[1] else { panic!("a user message") };
    assert_eq!(content.images().count(), 1);
    let uri = content.images().next().and_then(|image| image.data_uri()).expect("a data URI");
    assert_eq!((uri.media_type, uri.decode()), ("image/png", Ok(vec![0, 0, 0])));
    let Message::Assistant(called) = &read[2] else { panic!("an assistant message") };
    assert_eq!(called.content, None);
    let ToolArguments::Object(arguments) = &called.tool_calls[0].arguments else { panic!("an object") };
    assert_eq!(arguments.keys().collect::<Vec<_>>(), ["b", "a"], "key order is part of the prompt");
    assert_eq!(called.tool_calls[0].arguments.to_text(), r#"{"b":1,"a":2}"#);
    assert_eq!(read[3].content(), Some(&Content::Text(String::new())));
    let Message::Assistant(thought) = &read[5] else { panic!("an assistant message") };
    assert_eq!(thought.reasoning_content.as_deref(), Some("hm"));
    let Message::Assistant(thought) = &read[6] else { panic!("an assistant message") };
    assert_eq!(thought.reasoning_content.as_deref(), Some("hm"));
    assert_eq!(thought.content, Some(Content::Text(String::new())));
    assert_eq!(read[7].content().map(|content| content.text("|")), Some("plain|x".to_owned()));
}

#[test]
fn arguments_that_are_no_object_are_kept_as_written() {
    for (text, expected) in [
        ("", ToolArguments::Object(Default::default())),
        ("{}", ToolArguments::Object(Default::default())),
        ("{\"a\":", ToolArguments::Text("{\"a\":".to_owned())),
        ("[1]", ToolArguments::Text("[1]".to_owned())),
    ] {
        assert_eq!(ToolArguments::parse(text), expected, "{text:?}");
    }
}

#[test]
fn broken_conversations_are_refused_with_their_path() {
    let cases = [
        (json!([]), "messages"),
        (json!({}), "messages"),
        (json!([1]), "messages.0"),
        (json!([{"content": "x"}]), "messages.0.role"),
        (json!([{"role": "user"}]), "messages.0.content"),
        (json!([{"role": "wizard", "content": "x"}]), "messages.0.role"),
        (json!([{"role": "user", "content": 1}]), "messages.0.content"),
        (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages.0.content.0.text"),
        (json!([{"role": "user", "content": [{"type": "input_audio"}]}]), "messages.0.content.0.type"),
        (
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}]),
            "messages.0.content.0.image_url.url",
        ),
        (json!([{"role": "assistant", "tool_calls": [{"id": "x"}]}]), "messages.0.tool_calls.0.function"),
        (
            json!([{"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": 3}}]}]),
            "messages.0.tool_calls.0.function.arguments",
        ),
    ];
    for (bad, path) in cases {
        let error = messages(bad.clone()).expect_err(path);
        assert_eq!(error.param.as_deref(), Some(path), "{bad}: {error}");
    }
    for body in ["", "[]", "3", "{\"model\": \"m\"", "{\"messages\": []}"] {
        let error = ChatRequest::parse(body.as_bytes()).expect_err(body);
        assert_eq!(error.status(Dialect::OpenAi), 400);
    }
}

#[test]
fn allowed_tools_narrow_the_list() {
    let request = chat_with(json!({
        "tools": [{"type": "function", "function": {"name": "a"}}, {"type": "function", "function": {"name": "b"}}],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "b"}}]}},
    }))
    .expect("accepted");
    assert_eq!(request.tools.len(), 1);
    assert_eq!((request.tools[0].name.as_str(), request.tool_choice), ("b", Some(ToolChoice::Required)));
}

#[test]
fn a_model_is_asked_only_for_what_it_can() {
    use wire_api::openai::chat::Capabilities;
    let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}]});
    let request = chat_with(image).expect("well formed");
    let error = request.check_capabilities(Capabilities::default()).expect_err("it is blind");
    assert_eq!(error.param.as_deref(), Some("messages.0.content.0"));
    assert!(request.check_capabilities(Capabilities { images: true, ..Default::default() }).is_ok());
    let request = chat_with(json!({"response_format": {"type": "json_object"}})).expect("well formed");
    let error = request.check_capabilities(Capabilities::default()).expect_err("no grammar");
    assert_eq!(error.param.as_deref(), Some("response_format"));
}

#[test]
fn completions_take_every_shape_of_prompt() {
    let read = |prompt: Value| {
        CompletionRequest::parse(
            json!({"model": "m", "prompt": prompt, "logprobs": 0}).to_string().as_bytes(),
        )
    };
    assert_eq!(read(json!("a")).expect("text").prompts, [Prompt::Text("a".to_owned())]);
    assert_eq!(read(json!(["a", "b"])).expect("texts").prompts.len(), 2);
    assert_eq!(read(json!([1, 2])).expect("tokens").prompts, [Prompt::Tokens(vec![1, 2])]);
    assert_eq!(read(json!([[1], "b", [2]])).expect("mixed").prompts.len(), 3);
    assert!(read(json!("a")).expect("text").parameters.logprobs, "0 asks for the token's own");
    for (prompt, path) in [
        (json!([]), "prompt"),
        (json!(null), "prompt"),
        (json!([[]]), "prompt.0"),
        (json!([1, "a"]), "prompt.1"),
        (json!([-1]), "prompt.0"),
        (json!({}), "prompt"),
    ] {
        assert_eq!(read(prompt).expect_err(path).param.as_deref(), Some(path));
    }
    for (name, value) in
        [("echo", json!(true)), ("suffix", json!("x")), ("best_of", json!(2)), ("logprobs", json!(true))]
    {
        let body = json!({"model": "m", "prompt": "a", name: value});
        let error = CompletionRequest::parse(body.to_string().as_bytes()).expect_err(name);
        assert_eq!(error.param.as_deref(), Some(name));
    }
    let whole = json!({"model": "m", "prompt": ["a", [1]], "max_tokens": 2, "logprobs": 2, "stream": true, "stream_options": {"include_usage": true}});
    let request = CompletionRequest::parse(whole.to_string().as_bytes()).expect("accepted");
    let again = CompletionRequest::parse(request.to_body().to_string().as_bytes()).expect("our own form");
    assert_eq!(again, request);
}

#[test]
fn embeddings_are_read_and_written() {
    let body = json!({"model": "m", "input": ["a", "b"], "encoding_format": "base64", "user": "u"});
    let request = EmbeddingRequest::parse(body.to_string().as_bytes()).expect("accepted");
    assert_eq!((request.input.len(), request.encoding_format), (2, EncodingFormat::Base64));
    let vector = vec![1.0, -0.5, 3.25];
    for format in [EncodingFormat::Float, EncodingFormat::Base64] {
        assert_eq!(Vector::encode(vector.clone(), format).values(), Some(vector.clone()));
    }
    assert_eq!(Vector::encode(vec![1.0], EncodingFormat::Base64), Vector::Base64("AACAPw==".to_owned()));
    let error = EmbeddingRequest::parse(br#"{"model":"m","input":[]}"#).expect_err("nothing to embed");
    assert_eq!(error.param.as_deref(), Some("input"));
}

#[test]
fn parts_keep_their_order_and_shape() {
    let body = json!([{"role": "user", "content": [
        {"type": "image_url", "image_url": "data:image/png;base64,AA=="}, {"type": "text", "text": "a"},
    ]}]);
    let read = messages(body).expect("accepted");
    let Some(Content::Parts(parts)) = read[0].content() else { panic!("parts") };
    assert!(matches!(parts[0], ContentPart::Image(_)));
    let written = serde_json::to_value(&read[0]).expect("JSON");
    assert_eq!(
        written,
        json!({"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
            {"type": "text", "text": "a"},
        ]})
    );
}
