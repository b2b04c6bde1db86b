//! The whole answer: an Anthropic message into an OpenAI completion.

use serde_json::Value;

use super::ReplyContext;
use crate::anthropic::reply::{Message, MessageUsage, ReplyBlock, StopReason};
use crate::openai::chat::{ChatCompletion, Choice, ChunkHead, FinishReason, ResponseMessage};
use crate::openai::message::ThinkingBlock;
use crate::openai::tools::{ToolArguments, WireToolCall};
use crate::openai::usage::{CompletionTokensDetails, PromptTokensDetails, Usage};
use crate::translate::identity;

/// Writes a message as a completion; `created` is in seconds since 1970.
pub fn translate(message: Message, created: u64, context: &ReplyContext) -> ChatCompletion {
    let head = ChunkHead { id: identity::completion_id(&message.id), created, model: context.model.clone() };
    let usage = usage(&message.usage);
    let finish_reason = Some(finish_reason(message.stop_reason));
    let mut said = ResponseMessage::default();
    let mut text = String::new();
    let mut reasoning = String::new();
    for block in message.content {
        match block {
            ReplyBlock::Text { text: piece } => text.push_str(&piece),
            ReplyBlock::Thinking { thinking, signature } => {
                reasoning.push_str(&thinking);
                if !signature.is_empty() {
                    said.thinking_blocks.push(ThinkingBlock::new(thinking, signature));
                }
            }
            ReplyBlock::ToolUse { id, name, input } => {
                let name = context.tool_names.restore(&name);
                said.tool_calls.push(WireToolCall::new(id, name, ToolArguments::Object(input).to_text()));
            }
            ReplyBlock::RedactedThinking { .. } | ReplyBlock::Other => {}
        }
    }
    said.reasoning_content = (!reasoning.is_empty()).then_some(reasoning);
    said.content = (!text.is_empty() || said.tool_calls.is_empty()).then_some(text);
    let stop_reason = message.stop_sequence.map(Value::String);
    let choice = Choice { message: said, finish_reason, stop_reason, ..Choice::default() };
    head.completion(vec![choice], Some(usage))
}

/// Why a completion ended, from why the message did.
pub(super) fn finish_reason(reason: Option<StopReason>) -> FinishReason {
    match reason {
        Some(StopReason::MaxTokens | StopReason::ModelContextWindowExceeded) => FinishReason::Length,
        Some(StopReason::ToolUse) => FinishReason::ToolCalls,
        Some(StopReason::Refusal) => FinishReason::ContentFilter,
        Some(
            StopReason::EndTurn | StopReason::StopSequence | StopReason::PauseTurn | StopReason::Unknown,
        )
        | None => FinishReason::Stop,
    }
}

/// Token counts; cached and written prompt tokens are part of the prompt in this dialect.
pub fn usage(usage: &MessageUsage) -> Usage {
    // Counts come from another server: a mad one must not stop the stream.
    let prompt_tokens = usage
        .input_tokens
        .saturating_add(usage.cache_read_input_tokens)
        .saturating_add(usage.cache_creation_input_tokens);
    Usage {
        prompt_tokens,
        completion_tokens: usage.output_tokens,
        total_tokens: prompt_tokens.saturating_add(usage.output_tokens),
        prompt_tokens_details: Some(PromptTokensDetails {
            cached_tokens: usage.cache_read_input_tokens,
            cache_write_tokens: usage.cache_creation_input_tokens,
        }),
        completion_tokens_details: usage
            .output_tokens_details
            .map(|details| CompletionTokensDetails { reasoning_tokens: details.thinking_tokens }),
    }
}
