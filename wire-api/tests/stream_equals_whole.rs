//! A whole answer, cut into chunks anywhere and folded again, is the same answer.

use proptest::prelude::*;
use wire_api::openai::aggregate::{ChatAggregator, CompletionAggregator};
use wire_api::openai::chat::{
    ChatCompletion, ChatCompletionChunk, Choice, ChunkHead, Delta, FinishReason, ResponseMessage,
    ToolCallDelta,
};
use wire_api::openai::completions::{Completion, CompletionChoice};
use wire_api::openai::tools::WireToolCall;
use wire_api::openai::usage::{ChoiceLogprobs, TokenLogprob, Usage};

fn head() -> ChunkHead {
    ChunkHead { id: "chatcmpl-1".to_owned(), created: 7, model: "m".to_owned() }
}

fn message() -> impl Strategy<Value = (ResponseMessage, FinishReason)> {
    let calls = prop::collection::vec(("[a-z]{1,8}", "[ -~]{0,40}"), 0..4);
    (".{0,40}", prop::option::of(".{1,40}"), calls).prop_map(|(text, reasoning_content, calls)| {
        let calls = calls.into_iter().enumerate();
        let tool_calls: Vec<_> = calls
            .map(|(index, (name, arguments))| WireToolCall::new(format!("c{index}"), name, arguments))
            .collect();
        let content = (!text.is_empty() || tool_calls.is_empty()).then_some(text);
        let reason = if tool_calls.is_empty() { FinishReason::Stop } else { FinishReason::ToolCalls };
        (ResponseMessage { content, reasoning_content, tool_calls, ..ResponseMessage::default() }, reason)
    })
}

fn completion() -> impl Strategy<Value = ChatCompletion> {
    prop::collection::vec((message(), any::<bool>()), 1..4).prop_map(|messages| {
        let choose =
            |(index, ((message, reason), sure)): (usize, ((ResponseMessage, FinishReason), bool))| Choice {
                index: index as u32,
                logprobs: sure.then(|| ChoiceLogprobs {
                    content: Some(
                        message
                            .content
                            .iter()
                            .map(|text| TokenLogprob::new(text.as_bytes(), -0.5, vec![]))
                            .collect(),
                    ),
                }),
                message,
                finish_reason: Some(reason),
                stop_reason: None,
            };
        head()
            .completion(messages.into_iter().enumerate().map(choose).collect(), Some(Usage::new(5, 2, 9, 1)))
    })
}

/// Pieces of at most `size` characters.
fn pieces(text: &str, size: usize) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    characters.chunks(size).map(|chunk| chunk.iter().collect()).collect()
}

fn cut(choice: &Choice, size: usize) -> Vec<ChatCompletionChunk> {
    let head = head();
    let index = choice.index;
    let message = &choice.message;
    let mut chunks = vec![head.delta(index, Delta::opening())];
    for piece in pieces(message.reasoning_content.as_deref().unwrap_or(""), size) {
        chunks.push(head.delta(index, Delta::thought(piece)));
    }
    for piece in pieces(message.content.as_deref().unwrap_or(""), size) {
        chunks.push(head.delta(index, Delta::text(piece)));
    }
    for (number, call) in message.tool_calls.iter().enumerate() {
        let number = number as u32;
        chunks.push(
            head.delta(index, Delta::tool_call(ToolCallDelta::open(number, &call.id, &call.function.name))),
        );
        for piece in pieces(&call.function.arguments, size) {
            chunks.push(head.delta(index, Delta::tool_call(ToolCallDelta::arguments(number, piece))));
        }
    }
    let mut last = head.finish(index, choice.finish_reason.expect("it ended"), None);
    last.choices[0].logprobs = choice.logprobs.clone();
    chunks.push(last);
    chunks
}

proptest! {
    #[test]
    fn folding_undoes_cutting(whole in completion(), size in 1usize..9, over_the_wire: bool) {
        let mut aggregator = ChatAggregator::new();
        let mut streams: Vec<_> = whole.choices.iter().map(|choice| cut(choice, size).into_iter()).collect();
        // Choices are interleaved, as a batch produces them.
        loop {
            let mut silent = true;
            for stream in &mut streams {
                if let Some(chunk) = stream.next() {
                    silent = false;
                    let chunk = if over_the_wire {
                        let text = serde_json::to_string(&chunk).expect("JSON");
                        serde_json::from_str(&text).expect("our own chunk")
                    } else {
                        chunk
                    };
                    aggregator.push(chunk);
                }
            }
            if silent {
                break;
            }
        }
        aggregator.push(head().usage(whole.usage.clone().expect("counted"), None));
        prop_assert_eq!(aggregator.finish().expect("complete"), whole);
    }

    #[test]
    fn a_whole_answer_survives_the_wire(whole in completion()) {
        let text = serde_json::to_string(&whole).expect("JSON");
        let back: ChatCompletion = serde_json::from_str(&text).expect("our own answer");
        prop_assert_eq!(back, whole);
    }
}

#[test]
fn a_stream_that_broke_off_is_an_error() {
    assert!(ChatAggregator::new().finish().is_err());
    let mut aggregator = ChatAggregator::new();
    aggregator.push(head().delta(0, Delta::text("half an ans")));
    assert!(!aggregator.is_complete());
    assert_eq!(aggregator.finish().expect_err("cut").code, "stream_interrupted");
}

#[test]
fn calls_that_all_claim_index_zero_stay_apart() {
    let mut aggregator = ChatAggregator::new();
    for (id, arguments) in [("a", "{\"x\":1}"), ("b", "{}")] {
        let mut call = ToolCallDelta::open(0, id, "f");
        call.function.as_mut().expect("it opens").arguments = Some(arguments.to_owned());
        aggregator.push(head().delta(0, Delta::tool_call(call)));
    }
    aggregator.push(head().finish(0, FinishReason::ToolCalls, None));
    let calls = aggregator.finish().expect("complete").choices.remove(0).message.tool_calls;
    assert_eq!(calls, [WireToolCall::new("a", "f", "{\"x\":1}"), WireToolCall::new("b", "f", "{}")]);
}

#[test]
fn what_other_servers_write_is_read() {
    let cases = [
        r#"{"choices":[{"delta":{"role":"assistant","content":null,"tool_calls":null,"reasoning":"hm"},"finish_reason":null}]}"#,
        r#"{"id":null,"model":null,"choices":null,"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3,"prompt_tokens_details":null}}"#,
        r#"{"choices":[{"delta":null,"finish_reason":"abort"}]}"#,
        r#"{"choices":[{"index":0,"delta":{"reasoning":{"x":1},"tool_calls":[{"function":{"name":"f","arguments":null}}]},"matched_stop":7}]}"#,
    ];
    for case in cases {
        serde_json::from_str::<ChatCompletionChunk>(case).unwrap_or_else(|error| panic!("{case}: {error}"));
    }
    let chunk: ChatCompletionChunk = serde_json::from_str(cases[0]).expect("read above");
    assert_eq!(chunk.choices[0].delta.reasoning_text(), Some("hm"));
    let chunk: ChatCompletionChunk = serde_json::from_str(cases[2]).expect("read above");
    assert_eq!(chunk.choices[0].finish_reason, Some(FinishReason::Abnormal));
}

#[test]
fn completions_fold_too() {
    let piece = |index, text: &str, finish_reason| Completion {
        id: "cmpl-1".to_owned(),
        choices: vec![CompletionChoice { index, text: text.to_owned(), finish_reason, ..Default::default() }],
        ..Completion::default()
    };
    let mut aggregator = CompletionAggregator::new();
    for chunk in [piece(1, "x", None), piece(0, "a", None), piece(0, "b", Some(FinishReason::Stop))] {
        aggregator.push(chunk);
    }
    aggregator.push(piece(1, "y", Some(FinishReason::Length)));
    aggregator.push(Completion { usage: Some(Usage::new(1, 0, 4, 0)), ..Completion::default() });
    let whole = aggregator.finish().expect("complete");
    let texts: Vec<_> = whole.choices.iter().map(|choice| choice.text.as_str()).collect();
    assert_eq!(texts, ["ab", "xy"]);
    assert_eq!(whole.usage.map(|usage| usage.total_tokens), Some(5));
}
