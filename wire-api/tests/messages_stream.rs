//! OpenAI chunks into Anthropic events: the state machine and what must always hold.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use wire_api::openai::aggregate::ChatAggregator;
use wire_api::openai::chat::{ChatCompletionChunk, ChunkHead, Delta, FinishReason, ToolCallDelta};
use wire_api::openai::usage::Usage;
use wire_api::sse::{SseDecoder, SseItem};
use wire_api::translate::messages_on_chat::stream::MessagesStream;
use wire_api::translate::messages_on_chat::{ReplyContext, reply};

fn head() -> ChunkHead {
    ChunkHead { id: "chatcmpl-1".to_owned(), created: 1, model: "upstream".to_owned() }
}

fn context() -> ReplyContext {
    ReplyContext { model: "claude-x".to_owned(), ..ReplyContext::default() }
}

fn events_of(bytes: &[u8]) -> Vec<Value> {
    let mut decoder = SseDecoder::new();
    decoder.feed(bytes).expect("small");
    let mut events = Vec::new();
    while let Some(item) = decoder.next_item() {
        let SseItem::Event { name, data } = item else { panic!("no comments here") };
        let event: Value = serde_json::from_str(data).expect("every frame holds JSON");
        assert_eq!(event["type"].as_str(), name, "name and type are the same");
        events.push(event);
    }
    assert_eq!(decoder.finish(), None, "every frame is complete");
    events
}

fn run_with(chunks: &[ChatCompletionChunk], context: ReplyContext) -> Vec<Value> {
    let mut stream = MessagesStream::new("msg_1", 3, context);
    let mut out = Vec::new();
    stream.start(&mut out);
    for chunk in chunks {
        stream.data(&serde_json::to_string(chunk).expect("JSON"), &mut out);
    }
    stream.data("[DONE]", &mut out);
    stream.end(&mut out);
    assert!(stream.is_over());
    events_of(&out)
}

fn run(chunks: &[ChatCompletionChunk]) -> Vec<Value> {
    run_with(chunks, context())
}

/// The message the events add up to, checked against every rule on the way.
fn fold(events: &[Value]) -> Result<Value, String> {
    let mut message = Value::Null;
    let mut open: Option<(u64, Value, String)> = None;
    let mut blocks: Vec<Value> = Vec::new();
    let mut stopped = false;
    for event in events {
        let kind = event["type"].as_str().unwrap_or_default();
        let rule = |holds: bool, rule: &str| if holds { Ok(()) } else { Err(format!("{rule}: {event}")) };
        rule(!stopped, "T50 nothing follows message_stop")?;
        rule(kind == "message_start" || kind == "ping" || !message.is_null(), "T50 message_start is first")?;
        match kind {
            "ping" => {}
            "message_start" => {
                rule(message.is_null(), "T50 one message_start")?;
                rule(event["message"]["content"] == json!([]), "it starts empty")?;
                message = event["message"].clone();
            }
            "content_block_start" => {
                rule(open.is_none(), "T52 one block at a time")?;
                rule(event["index"] == json!(blocks.len()), "T51 indices count without gaps")?;
                let block = event["content_block"].clone();
                rule(block["type"] != "tool_use" || block["input"] == json!({}), "T55 input starts empty")?;
                open = Some((blocks.len() as u64, block, String::new()));
            }
            "content_block_delta" => {
                let Some((index, block, text)) = &mut open else {
                    return Err(format!("T53 no open block: {event}"));
                };
                rule(event["index"] == json!(*index), "T53 delta of the open block")?;
                let delta = &event["delta"];
                let (piece, fits) = match delta["type"].as_str() {
                    Some("text_delta") => (&delta["text"], "text"),
                    Some("thinking_delta") => (&delta["thinking"], "thinking"),
                    Some("input_json_delta") => (&delta["partial_json"], "tool_use"),
                    Some("signature_delta") => {
                        block["signature"] = delta["signature"].clone();
                        (&Value::Null, "thinking")
                    }
                    _ => return Err(format!("unknown delta: {event}")),
                };
                rule(block["type"] == fits, "T53 deltas fit their block")?;
                text.push_str(piece.as_str().unwrap_or_default());
            }
            "content_block_stop" => {
                let Some((index, mut block, text)) = open.take() else {
                    return Err(format!("T52 nothing to stop: {event}"));
                };
                rule(event["index"] == json!(index), "T52 stops what is open")?;
                match block["type"].as_str() {
                    Some("text") => block["text"] = json!(text),
                    Some("thinking") => block["thinking"] = json!(text),
                    _ => {
                        block["input"] = match serde_json::from_str(&text) {
                            Ok(input) => input,
                            Err(_) => json!({ "unparsed": text }),
                        }
                    }
                }
                rule(block["type"] != "text" || !text.is_empty(), "T56 no empty text block")?;
                rule(block["type"] != "thinking" || block["signature"] != json!(""), "thoughts are signed")?;
                blocks.push(block);
            }
            "message_delta" => {
                rule(open.is_none(), "T52 every block has its stop")?;
                rule(
                    event["usage"]["output_tokens"].as_u64() >= message["usage"]["output_tokens"].as_u64(),
                    "T57 usage grows",
                )?;
                message["usage"] = event["usage"].clone();
                message["stop_reason"] = event["delta"]["stop_reason"].clone();
                message["stop_sequence"] = event["delta"]["stop_sequence"].clone();
            }
            "message_stop" => {
                rule(!message["stop_reason"].is_null(), "T50 it ended with a reason")?;
                stopped = true;
            }
            other => return Err(format!("unexpected {other}")),
        }
    }
    if !stopped {
        return Err("T50 message_stop is last".to_owned());
    }
    message["content"] = json!(blocks);
    Ok(message)
}

fn folded(events: &[Value]) -> Value {
    fold(events).unwrap_or_else(|broken| panic!("{broken}"))
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
    head().usage(Usage::new(10, 4, 6, 0), None)
}

fn kinds(message: &Value) -> Vec<&str> {
    message["content"].as_array().expect("blocks").iter().filter_map(|block| block["type"].as_str()).collect()
}

#[test]
fn a_plain_answer() {
    let events = run(&[
        head().delta(0, Delta::opening()),
        text("Hel"),
        text("lo"),
        finish(FinishReason::Stop),
        usage(),
    ]);
    let names: Vec<_> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(
        names,
        [
            "message_start",
            "ping",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    let message = folded(&events);
    assert_eq!(message["content"], json!([{"type": "text", "text": "Hello"}]));
    assert_eq!(message["stop_reason"], "end_turn");
    assert_eq!(
        (&message["usage"]["input_tokens"], &message["usage"]["cache_read_input_tokens"]),
        (&json!(6), &json!(4))
    );
    assert_eq!(events[0]["message"]["usage"]["input_tokens"], 3, "the estimate comes first");
}

#[test]
fn frames_are_exact() {
    let mut stream = MessagesStream::new("msg_1", 3, context());
    let mut out = Vec::new();
    stream.start(&mut out);
    out.clear();
    stream.chunk(&text("a"), &mut out);
    assert_eq!(
        String::from_utf8(out).expect("text"),
        "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n\
         event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"a\"}}\n\n"
    );
}

#[test]
fn t54_text_after_a_call_opens_a_new_block() {
    let message = folded(&run(&[
        thought("hm"),
        text("let me"),
        open(0, "c0", "f"),
        arguments(0, "{\"a\""),
        arguments(0, ":1}"),
        text("done"),
        finish(FinishReason::ToolCalls),
        usage(),
    ]));
    assert_eq!(kinds(&message), ["thinking", "text", "tool_use", "text"]);
    assert_eq!(
        message["content"][2],
        json!({"type": "tool_use", "id": "c0", "name": "f", "input": {"a": 1}})
    );
    assert_eq!(message["stop_reason"], "tool_use");
}

#[test]
fn interleaved_calls_are_set_apart() {
    let message = folded(&run(&[
        open(0, "c0", "f"),
        open(1, "c1", "g"),
        arguments(1, "{\"y\":"),
        arguments(0, "{\"x\":"),
        text("aside"),
        arguments(0, "1}"),
        arguments(1, "2}"),
        finish(FinishReason::ToolCalls),
    ]));
    assert_eq!(
        message["content"],
        json!([
            {"type": "tool_use", "id": "c0", "name": "f", "input": {"x": 1}},
            {"type": "tool_use", "id": "c1", "name": "g", "input": {"y": 2}},
            {"type": "text", "text": "aside"},
        ])
    );
}

#[test]
fn odd_servers_are_understood() {
    // No id at all, arguments in one piece at the end, and a call without arguments.
    let mut nameless = ToolCallDelta::open(0, "", "f");
    nameless.id = None;
    let message = folded(&run(&[
        head().delta(0, Delta::tool_call(nameless)),
        arguments(0, "{\"a\":1}"),
        open(1, "c1", "g"),
        finish(FinishReason::Stop),
    ]));
    assert!(message["content"][0]["id"].as_str().is_some_and(|id| id.starts_with("toolu_")), "{message}");
    assert_eq!(message["content"][1]["input"], json!({}));
    assert_eq!(message["stop_reason"], "tool_use");

    // Every call claims index 0.
    let message = folded(&run(&[
        open(0, "c0", "f"),
        arguments(0, "{}"),
        open(0, "c1", "g"),
        arguments(0, "{}"),
        finish(FinishReason::ToolCalls),
    ]));
    assert_eq!(kinds(&message), ["tool_use", "tool_use"]);

    // A call that never gets a name is none.
    let message = folded(&run(&[arguments(0, "{}"), text("x"), finish(FinishReason::Stop)]));
    assert_eq!(kinds(&message), ["text"]);
}

#[test]
fn stop_reasons() {
    let matched = head().finish(0, FinishReason::Stop, Some(json!("END")));
    let cases = [
        (vec![text("a"), finish(FinishReason::Length)], "max_tokens", Value::Null),
        (vec![text("a"), matched], "stop_sequence", json!("END")),
        (vec![text("a"), finish(FinishReason::ContentFilter)], "refusal", Value::Null),
        (vec![finish(FinishReason::Stop)], "end_turn", Value::Null),
    ];
    for (chunks, reason, sequence) in cases {
        let message = folded(&run(&chunks));
        assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!(reason), &sequence));
    }
}

#[test]
fn t58_a_broken_stream_ends_in_an_error_and_nothing_else() {
    let abnormal = finish(FinishReason::Abnormal);
    for chunks in
        [vec![], vec![text("half")], vec![text("half"), abnormal], vec![open(0, "c", "f"), arguments(0, "{")]]
    {
        let events = run(&chunks);
        let last = events.last().expect("something");
        assert_eq!(last["type"], "error", "{events:?}");
        assert!(
            events.iter().all(|event| event["type"] != "message_stop" && event["type"] != "message_delta")
        );
    }
    let mut stream = MessagesStream::new("msg_1", 0, context());
    let mut out = Vec::new();
    stream.start(&mut out);
    stream
        .data(r#"{"error":{"message":"worker died","type":"server_error","code":"unavailable"}}"#, &mut out);
    stream.chunk(&text("late"), &mut out);
    stream.ping(&mut out);
    stream.end(&mut out);
    let events = events_of(&out);
    assert_eq!(events.len(), 3, "{events:?}");
    assert_eq!(events[2]["error"], json!({"type": "api_error", "message": "worker died"}));
}

#[test]
fn context_shapes_the_stream() {
    let chunks = [
        thought("hm"),
        text("a"),
        open(0, "c0", "f"),
        arguments(0, "{}"),
        open(1, "c1", "g"),
        arguments(1, "{}"),
        finish(FinishReason::ToolCalls),
        usage(),
    ];
    let hidden = folded(&run_with(&chunks, ReplyContext { hide_thinking: true, ..context() }));
    assert_eq!(kinds(&hidden), ["text", "tool_use", "tool_use"]);
    let single = folded(&run_with(&chunks, ReplyContext { single_tool_call: true, ..context() }));
    assert_eq!(kinds(&single), ["thinking", "text", "tool_use"]);
    let warmed = folded(&run_with(&chunks, ReplyContext { prewarm: true, ..context() }));
    assert_eq!(
        (kinds(&warmed).len(), &warmed["stop_reason"], &warmed["usage"]["output_tokens"]),
        (0, &json!("max_tokens"), &json!(0))
    );
}

/// What a model does in one turn.
#[derive(Debug, Clone)]
enum Act {
    Think(String),
    Say(String),
    Call(String, Map<String, Value>),
}

fn act() -> impl Strategy<Value = Act> {
    let input = prop::collection::vec(("[a-z]{1,4}", "\\PC{0,8}"), 0..4);
    prop_oneof![
        "\\PC{0,12}".prop_map(Act::Think),
        "\\PC{0,12}".prop_map(Act::Say),
        ("[a-z]{1,6}", input).prop_map(|(name, input)| {
            Act::Call(name, input.into_iter().map(|(key, value)| (key, json!(value))).collect())
        }),
    ]
}

fn pieces(text: &str, size: usize) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    characters.chunks(size).map(|chunk| chunk.iter().collect()).collect()
}

/// The chunks of each act, cut into pieces.
fn lanes(acts: &[Act], size: usize) -> Vec<Vec<ChatCompletionChunk>> {
    let mut call_index = 0;
    let lane = |act: &Act| match act {
        Act::Think(words) => pieces(words, size).iter().map(|piece| thought(piece)).collect(),
        Act::Say(words) => pieces(words, size).iter().map(|piece| text(piece)).collect(),
        Act::Call(name, input) => {
            let index = call_index;
            call_index += 1;
            let json = Value::Object(input.clone()).to_string();
            let mut lane = vec![open(index, &format!("c{index}"), name)];
            lane.extend(pieces(&json, size).iter().map(|piece| arguments(index, piece)));
            lane
        }
    };
    acts.iter().map(lane).collect()
}

fn called(message: &Value) -> Vec<(Value, Value, Value)> {
    let blocks = message["content"].as_array().expect("blocks").iter();
    let mut calls: Vec<_> = blocks
        .filter(|block| block["type"] == "tool_use")
        .map(|block| (block["id"].clone(), block["name"].clone(), block["input"].clone()))
        .collect();
    calls.sort_by_key(|(id, _, _)| id.to_string());
    calls
}

fn said(message: &Value, kind: &str) -> String {
    let blocks = message["content"].as_array().expect("blocks").iter();
    blocks.filter(|block| block["type"] == kind).filter_map(|block| block[kind].as_str()).collect()
}

proptest! {
    /// T50–T57: whatever the order of pieces, the events obey every rule and lose nothing.
    #[test]
    fn the_rules_always_hold(acts in prop::collection::vec(act(), 0..6), size in 1usize..8, order in prop::collection::vec(any::<prop::sample::Index>(), 200)) {
        let mut lanes: Vec<_> = lanes(&acts, size).into_iter().map(Vec::into_iter).collect();
        let mut chunks = Vec::new();
        for pick in order {
            lanes.retain(|lane| lane.len() > 0);
            if lanes.is_empty() {
                break;
            }
            let at = pick.index(lanes.len());
            chunks.extend(lanes[at].next());
        }
        for lane in lanes {
            chunks.extend(lane);
        }
        chunks.push(finish(FinishReason::Stop));
        chunks.push(usage());
        let message = fold(&run(&chunks)).map_err(TestCaseError::fail)?;
        let mut calls = Vec::new();
        for act in &acts {
            if let Act::Call(name, input) = act {
                calls.push((json!(format!("c{}", calls.len())), json!(name), json!(input)));
            }
        }
        prop_assert_eq!(called(&message), calls);
        let spoken: usize = acts.iter().map(|act| match act { Act::Say(words) => words.chars().count(), _ => 0 }).sum();
        prop_assert_eq!(said(&message, "text").chars().count(), spoken);
    }

    /// In the usual order (thought, text, calls) the stream adds up to the whole answer.
    #[test]
    fn stream_equals_whole(
        thinking in "\\PC{0,20}", words in "\\PC{0,20}",
        calls in prop::collection::vec(("[a-z]{1,6}", prop::collection::vec(("[a-z]{1,4}", any::<i64>()), 0..3)), 0..3),
        size in 1usize..6,
    ) {
        let mut acts = vec![Act::Think(thinking), Act::Say(words)];
        acts.extend(calls.into_iter().map(|(name, input)| {
            Act::Call(name, input.into_iter().map(|(key, value)| (key, json!(value))).collect())
        }));
        let mut chunks: Vec<_> = lanes(&acts, size).concat();
        chunks.push(finish(FinishReason::Stop));
        chunks.push(usage());
        let mut aggregator = ChatAggregator::new();
        chunks.iter().cloned().for_each(|chunk| aggregator.push(chunk));
        let whole = reply::translate(aggregator.finish().expect("complete"), &context()).expect("an answer");
        let whole = serde_json::to_value(whole).expect("JSON");
        let streamed = fold(&run(&chunks)).map_err(TestCaseError::fail)?;
        prop_assert_eq!(streamed, whole);
    }

    /// Whatever a server sends, the events obey the rules or end in an error.
    #[test]
    fn hostile_servers_do_no_harm(payloads in prop::collection::vec(prop_oneof![
        "\\PC{0,60}",
        Just("[DONE]".to_owned()),
        Just(r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","function":{"arguments":"{"}}]}}]}"#.to_owned()),
        Just(r#"{"choices":[{"delta":{"tool_calls":[{"index":7,"function":{"name":"f"}}],"content":"x"}}]}"#.to_owned()),
        Just(r#"{"choices":[{"index":3,"delta":{"content":"x"},"finish_reason":"stop"}]}"#.to_owned()),
        Just(r#"{"choices":[{"delta":{"reasoning":"x","content":"y"},"finish_reason":"length"}]}"#.to_owned()),
        Just(r#"{"error":{}}"#.to_owned()),
    ], 0..12)) {
        let mut stream = MessagesStream::new("msg_1", 0, context());
        let mut out = Vec::new();
        for payload in &payloads {
            stream.data(payload, &mut out);
        }
        stream.end(&mut out);
        let events = events_of(&out);
        if events.last().is_some_and(|event| event["type"] != "error") {
            fold(&events).map_err(TestCaseError::fail)?;
        }
    }
}
