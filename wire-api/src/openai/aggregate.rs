//! The fold of a stream into the whole answer.
//!
//! A non-streaming answer is made here and nowhere else, so it cannot differ from what a streaming
//! client would have seen.

use std::collections::BTreeMap;

use crate::error::{ApiError, ErrorKind};
use crate::openai::chat::{
    ChatCompletion, ChatCompletionChunk, Choice, ChunkChoice, ChunkHead, ToolCallDelta,
};
use crate::openai::completions::{Completion, CompletionChoice, CompletionLogprobs};
use crate::openai::tools::WireToolCall;
use crate::openai::usage::ChoiceLogprobs;

/// Folds chat chunks: [`push`](Self::push) each, then [`finish`](Self::finish).
#[derive(Debug, Default)]
pub struct ChatAggregator {
    head: Option<ChatCompletionChunk>,
    choices: BTreeMap<u32, ChoiceInProgress>,
}

#[derive(Debug, Default)]
struct ChoiceInProgress {
    choice: Choice,
    calls: ToolCallsInProgress,
}

impl ChatAggregator {
    /// An empty fold.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a chunk.
    pub fn push(&mut self, chunk: ChatCompletionChunk) {
        let ChatCompletionChunk { choices, .. } = chunk;
        for choice in choices {
            let index = choice.index;
            self.choices.entry(index).or_default().push(choice);
        }
        let rest = ChatCompletionChunk { choices: Vec::new(), ..chunk };
        match &mut self.head {
            None => self.head = Some(rest),
            Some(head) => {
                head.usage = rest.usage.or(head.usage.take());
                head.timings = rest.timings.or(head.timings.take());
                head.system_fingerprint = rest.system_fingerprint.or(head.system_fingerprint.take());
            }
        }
    }

    /// Whether something came and every choice that began has ended.
    pub fn is_complete(&self) -> bool {
        !self.choices.is_empty()
            && self.choices.values().all(|in_progress| in_progress.choice.finish_reason.is_some())
    }

    /// The whole answer.
    ///
    /// # Errors
    ///
    /// 502 if the stream broke off: a cut answer must not pass for a whole one.
    pub fn finish(self) -> Result<ChatCompletion, ApiError> {
        if !self.is_complete() {
            return Err(broken_off());
        }
        let head = self.head.ok_or_else(broken_off)?;
        let choices =
            self.choices.into_iter().map(|(index, in_progress)| in_progress.finish(index)).collect();
        let template = ChunkHead { id: head.id, created: head.created, model: head.model };
        let mut completion = template.completion(choices, head.usage);
        completion.timings = head.timings;
        completion.system_fingerprint = head.system_fingerprint;
        Ok(completion)
    }
}

fn broken_off() -> ApiError {
    ApiError::new(ErrorKind::BadGateway, "the answer broke off before its end")
        .with_code("stream_interrupted")
}

impl ChoiceInProgress {
    fn push(&mut self, piece: ChunkChoice) {
        let message = &mut self.choice.message;
        let delta = piece.delta;
        append(&mut message.reasoning_content, delta.reasoning_content.or(delta.reasoning));
        append(&mut message.content, delta.content);
        append(&mut message.refusal, delta.refusal);
        message.thinking_blocks.extend(delta.thinking_blocks);
        for call in delta.tool_calls {
            self.calls.push(call);
        }
        append_logprobs(&mut self.choice.logprobs, piece.logprobs);
        self.choice.finish_reason = piece.finish_reason.or(self.choice.finish_reason);
        self.choice.stop_reason = piece.stop_reason.or(self.choice.stop_reason.take());
    }

    fn finish(self, index: u32) -> Choice {
        let mut choice = self.choice;
        choice.index = index;
        let message = &mut choice.message;
        message.tool_calls = self.calls.finish();
        if message.reasoning_content.as_deref() == Some("") {
            message.reasoning_content = None;
        }
        // `null` says "only tool calls" (or a refusal); an empty text is an empty answer.
        let said_otherwise = !message.tool_calls.is_empty() || message.refusal.is_some();
        match message.content.as_deref() {
            Some("") if said_otherwise => message.content = None,
            None if !said_otherwise => message.content = Some(String::new()),
            _ => {}
        }
        choice
    }
}

fn append(whole: &mut Option<String>, piece: Option<String>) {
    match (whole.as_mut(), piece) {
        (Some(whole), Some(piece)) => whole.push_str(&piece),
        (None, piece) => *whole = piece,
        (Some(_), None) => {}
    }
}

fn append_logprobs(whole: &mut Option<ChoiceLogprobs>, piece: Option<ChoiceLogprobs>) {
    let Some(piece) = piece else { return };
    let whole = whole.get_or_insert_default();
    if let Some(content) = piece.content {
        whole.content.get_or_insert_default().extend(content);
    }
}

/// Tool calls being assembled from pieces, in the order they began.
#[derive(Debug, Default)]
pub(crate) struct ToolCallsInProgress {
    calls: Vec<(u32, WireToolCall)>,
}

impl ToolCallsInProgress {
    pub(crate) fn push(&mut self, piece: ToolCallDelta) {
        let position = self.calls.iter().rposition(|(index, call)| {
            // Some servers write index 0 for every call; a new id then begins a new call.
            *index == piece.index && !begins_another(&call.id, &call.function.name, &piece)
        });
        let position = position.unwrap_or_else(|| {
            self.calls.push((piece.index, WireToolCall::new("", "", "")));
            self.calls.len() - 1
        });
        let call = &mut self.calls[position].1;
        if let Some(id) = piece.id.filter(|_| call.id.is_empty()) {
            call.id = id;
        }
        let function = piece.function.unwrap_or_default();
        if let Some(name) = function.name {
            call.function.name = name;
        }
        if let Some(fragment) = function.arguments {
            call.function.arguments.push_str(&fragment);
        }
    }

    fn finish(mut self) -> Vec<WireToolCall> {
        self.calls.sort_by_key(|(index, _)| *index);
        self.calls.into_iter().map(|(_, call)| call).collect()
    }
}

/// Whether a piece with the index of a known call opens a call of its own.
pub(crate) fn begins_another(id: &str, name: &str, piece: &ToolCallDelta) -> bool {
    let new_id = piece.id.as_deref().filter(|new| !new.is_empty());
    let new_name = piece.function.as_ref().and_then(|function| function.name.as_deref());
    new_id.is_some_and(|new| !id.is_empty() && new != id)
        && new_name.is_some_and(|new| !new.is_empty())
        && !name.is_empty()
}

/// Folds completion chunks.
#[derive(Debug, Default)]
pub struct CompletionAggregator {
    whole: Option<Completion>,
    choices: BTreeMap<u32, CompletionChoice>,
}

impl CompletionAggregator {
    /// An empty fold.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a chunk.
    pub fn push(&mut self, mut chunk: Completion) {
        for piece in std::mem::take(&mut chunk.choices) {
            let choice = self
                .choices
                .entry(piece.index)
                .or_insert_with(|| CompletionChoice { index: piece.index, ..CompletionChoice::default() });
            choice.text.push_str(&piece.text);
            choice.finish_reason = piece.finish_reason.or(choice.finish_reason);
            choice.stop_reason = piece.stop_reason.or(choice.stop_reason.take());
            append_completion_logprobs(&mut choice.logprobs, piece.logprobs);
        }
        match &mut self.whole {
            None => self.whole = Some(chunk),
            Some(whole) => {
                whole.usage = chunk.usage.or(whole.usage.take());
                whole.timings = chunk.timings.or(whole.timings.take());
            }
        }
    }

    /// The whole answer.
    ///
    /// # Errors
    ///
    /// 502 if the stream broke off.
    pub fn finish(self) -> Result<Completion, ApiError> {
        let complete = self.choices.values().all(|choice| choice.finish_reason.is_some());
        let mut whole = self.whole.filter(|_| complete && !self.choices.is_empty()).ok_or_else(broken_off)?;
        whole.choices = self.choices.into_values().collect();
        Ok(whole)
    }
}

fn append_completion_logprobs(whole: &mut Option<CompletionLogprobs>, piece: Option<CompletionLogprobs>) {
    let Some(piece) = piece else { return };
    let whole = whole.get_or_insert_default();
    whole.tokens.extend(piece.tokens);
    whole.token_logprobs.extend(piece.token_logprobs);
    whole.text_offset.extend(piece.text_offset);
    if let Some(top) = piece.top_logprobs {
        whole.top_logprobs.get_or_insert_default().extend(top);
    }
}
