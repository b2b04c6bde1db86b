//! The whole answer: an OpenAI completion into an Anthropic message.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::ReplyContext;
use crate::anthropic::reply::{
    CacheCreation, Message, MessageUsage, OutputTokensDetails, ReplyBlock, StopReason, no_applied_edits,
};
use crate::error::{ApiError, ErrorKind};
use crate::openai::chat::{ChatCompletion, Choice, FinishReason};
use crate::openai::usage::Usage;
use crate::translate::{arguments, identity};

/// Writes a completion as a message.
///
/// # Errors
///
/// 502 if the completion has no answer or did not end properly: that must not pass for an answer.
pub fn translate(completion: ChatCompletion, context: &ReplyContext) -> Result<Message, ApiError> {
    let mut message = Message::new(identity::message_id(&completion.id), &context.model);
    message.usage = completion.usage.as_ref().map(usage).unwrap_or_default();
    message.context_management = context.context_management.then(no_applied_edits);
    if context.prewarm {
        message.usage.output_tokens = 0;
        message.stop_reason = Some(StopReason::MaxTokens);
        return Ok(message);
    }
    let choice = completion
        .choices
        .into_iter()
        .next()
        .ok_or_else(|| ApiError::new(ErrorKind::BadGateway, "the server answered without an answer"))?;
    let refused = choice.message.refusal.is_some() && choice.message.content.is_none();
    message.content = content(&choice, &message.id, context);
    let called = message.content.iter().any(|block| matches!(block, ReplyBlock::ToolUse { .. }));
    let ending = ending(choice.finish_reason, choice.stop_reason.as_ref(), called, refused)?;
    message.stop_reason = Some(ending.0);
    message.stop_sequence = ending.1;
    Ok(message)
}

/// Thought, text, calls, in this order.
fn content(choice: &Choice, message_id: &str, context: &ReplyContext) -> Vec<ReplyBlock> {
    let said = &choice.message;
    let mut blocks = Vec::new();
    if let Some(thought) =
        said.reasoning_text().filter(|thought| !thought.is_empty() && !context.hide_thinking)
    {
        let mut signer = Signer::default();
        signer.extend(thought);
        blocks.push(ReplyBlock::Thinking { thinking: thought.to_owned(), signature: signer.finish() });
    }
    for text in [&said.content, &said.refusal].into_iter().flatten().filter(|text| !text.is_empty()) {
        blocks.push(ReplyBlock::Text { text: text.clone() });
    }
    let older = said.function_call.iter().map(|function| ("", function));
    let calls = said.tool_calls.iter().map(|call| (call.id.as_str(), &call.function));
    let cut_off = choice.finish_reason == Some(FinishReason::Length);
    let mut calls: Vec<ReplyBlock> = calls
        .chain(older)
        .enumerate()
        .filter_map(|(index, (id, function))| {
            Some(ReplyBlock::ToolUse {
                id: identity::tool_use_id(id, &format!("{message_id}/{index}")),
                name: context.tool_names.restore(&function.name).to_owned(),
                input: arguments::recover(&function.arguments, cut_off)?,
            })
        })
        .collect();
    if context.single_tool_call {
        calls.truncate(1);
    }
    blocks.append(&mut calls);
    blocks
}

/// Why a message ended, from why the completion did.
///
/// `called` tells that a call is in the message; a server that says `tool_calls` without one (all
/// of them were beyond repair) has ended its turn.
pub(super) fn ending(
    reason: Option<FinishReason>,
    matched: Option<&Value>,
    called: bool,
    refused: bool,
) -> Result<(StopReason, Option<String>), ApiError> {
    match reason {
        None | Some(FinishReason::Abnormal) => {
            let message = "the server ended the answer abnormally";
            Err(ApiError::new(ErrorKind::BadGateway, message).with_code("stream_interrupted"))
        }
        Some(FinishReason::ContentFilter) => Ok((StopReason::Refusal, None)),
        Some(FinishReason::Length) => Ok((StopReason::MaxTokens, None)),
        Some(_) if refused => Ok((StopReason::Refusal, None)),
        Some(_) if called => Ok((StopReason::ToolUse, None)),
        Some(FinishReason::Stop) => match matched.and_then(Value::as_str) {
            Some(text) => Ok((StopReason::StopSequence, Some(text.to_owned()))),
            None => Ok((StopReason::EndTurn, None)),
        },
        Some(FinishReason::ToolCalls | FinishReason::FunctionCall) => Ok((StopReason::EndTurn, None)),
    }
}

/// Token counts; cached and written prompt tokens are counted apart in this dialect.
pub fn usage(usage: &Usage) -> MessageUsage {
    let cached = usage.cached_tokens();
    let written = usage.cache_write_tokens();
    MessageUsage {
        input_tokens: usage.prompt_tokens.saturating_sub(cached).saturating_sub(written),
        cache_creation_input_tokens: written,
        cache_read_input_tokens: cached,
        cache_creation: CacheCreation { ephemeral_5m_input_tokens: written, ephemeral_1h_input_tokens: 0 },
        output_tokens: usage.completion_tokens,
        output_tokens_details: usage
            .reasoning_tokens()
            .map(|thinking_tokens| OutputTokensDetails { thinking_tokens }),
        ..MessageUsage::default()
    }
}

/// Makes the signature of a thought: a hash of it. It proves nothing and need not: clients only
/// want it to be there when they send the thought back.
#[derive(Debug, Default)]
pub(super) struct Signer(Sha256);

impl Signer {
    pub(super) fn extend(&mut self, piece: &str) {
        self.0.update(piece.as_bytes());
    }

    pub(super) fn finish(&mut self) -> String {
        let digest = self.0.finalize_reset();
        format!("cortex:v1:{}", STANDARD.encode(&digest[..24]))
    }
}
