//! The streamed answer: Anthropic events into OpenAI chunks, one at a time.

use std::collections::BTreeMap;

use serde_json::Value;

use super::ReplyContext;
use super::reply::{finish_reason, usage};
use crate::anthropic::reply::{MessageUsage, ReplyBlock};
use crate::anthropic::stream::{IncomingDelta, IncomingEvent, IncomingUsage};
use crate::error::{ApiError, ErrorKind};
use crate::openai::chat::{ChatCompletionChunk, ChunkHead, Delta, ToolCallDelta};
use crate::openai::message::ThinkingBlock;
use crate::sse::encode;

/// What one event becomes.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// A chunk.
    Chunk(ChatCompletionChunk),
    /// A sign of life.
    Ping,
    /// The stream broke off; nothing follows.
    Error(ApiError),
    /// The proper end; nothing follows.
    Done,
}

impl Piece {
    /// Appends the frame an OpenAI client reads. After an error there is no end mark: clients take
    /// the mark for a proper end.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Chunk(chunk) => encode::json_data(out, chunk),
            Self::Ping => encode::comment(out, "ping"),
            Self::Error(error) => encode::json_data(out, &error.openai_body()),
            Self::Done => encode::done(out),
        }
    }
}

/// Turns events into chunks. Call [`event`](Self::event) for the data of each frame, then
/// [`end`](Self::end).
#[derive(Debug)]
pub struct ChatStream {
    head: ChunkHead,
    context: ReplyContext,
    usage: MessageUsage,
    /// Blocks being received, by their index.
    blocks: BTreeMap<u32, OpenBlock>,
    calls: u32,
    over: bool,
}

#[derive(Debug)]
enum OpenBlock {
    Text,
    Thinking {
        thought: String,
        signature: String,
    },
    /// A call: its number among the calls, and whether arguments have come.
    Call {
        number: u32,
        has_arguments: bool,
    },
}

impl ChatStream {
    /// A stream whose chunks share `head`.
    pub fn new(head: ChunkHead, context: ReplyContext) -> Self {
        let usage = MessageUsage::default();
        Self { head, context, usage, blocks: BTreeMap::new(), calls: 0, over: false }
    }

    /// Whether the last piece has been given.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Takes the data of an event; the pieces go to `emit`.
    pub fn event(&mut self, data: &str, emit: &mut dyn FnMut(Piece)) {
        if self.over {
            return;
        }
        let event: IncomingEvent = match serde_json::from_str(data) {
            Ok(event) => event,
            Err(error) => {
                let message = format!("the server sent an event that cannot be read: {error}");
                return self.fail(ApiError::new(ErrorKind::BadGateway, message), emit);
            }
        };
        match event.kind.as_str() {
            "ping" => emit(Piece::Ping),
            "message_start" => {
                if let Some(message) = event.message {
                    self.usage = message.usage;
                }
                emit(Piece::Chunk(self.head.delta(0, Delta::opening())));
            }
            "content_block_start" => {
                if let Some(block) = event.content_block {
                    self.open(event.index, block, emit);
                }
            }
            "content_block_delta" => {
                if let Some(delta) = event.delta {
                    self.grow(event.index, delta, emit);
                }
            }
            "content_block_stop" => self.close(event.index, emit),
            "message_delta" => self.message_delta(event.delta, event.usage, emit),
            "message_stop" => {
                if self.context.include_usage {
                    emit(Piece::Chunk(self.head.usage(usage(&self.usage), None)));
                }
                self.over = true;
                emit(Piece::Done);
            }
            "error" => {
                let unreadable = || {
                    ApiError::new(ErrorKind::BadGateway, "the server reported an error without saying which")
                };
                self.fail(ApiError::from_event(data).unwrap_or_else(unreadable), emit);
            }
            // Events of later versions of the dialect say nothing an older client could miss.
            _ => {}
        }
    }

    fn open(&mut self, index: u32, block: ReplyBlock, emit: &mut dyn FnMut(Piece)) {
        let open = match block {
            ReplyBlock::Text { text } => {
                self.say(Delta::text(text), emit);
                OpenBlock::Text
            }
            ReplyBlock::Thinking { thinking, signature } => {
                self.say(Delta::thought(thinking.as_str()), emit);
                OpenBlock::Thinking { thought: thinking, signature }
            }
            ReplyBlock::ToolUse { id, name, input } => {
                let number = self.calls;
                self.calls += 1;
                let name = self.context.tool_names.restore(&name).to_owned();
                self.say(Delta::tool_call(ToolCallDelta::open(number, id, name)), emit);
                let has_arguments = !input.is_empty();
                if has_arguments {
                    let whole = Value::Object(input).to_string();
                    self.say(Delta::tool_call(ToolCallDelta::arguments(number, whole)), emit);
                }
                OpenBlock::Call { number, has_arguments }
            }
            ReplyBlock::RedactedThinking { .. } | ReplyBlock::Other => return,
        };
        self.blocks.insert(index, open);
    }

    fn grow(&mut self, index: u32, delta: IncomingDelta, emit: &mut dyn FnMut(Piece)) {
        let Some(block) = self.blocks.get_mut(&index) else { return };
        let piece = match block {
            OpenBlock::Text => delta.text.map(Delta::text),
            OpenBlock::Thinking { thought, signature } => {
                signature.push_str(delta.signature.as_deref().unwrap_or_default());
                delta.thinking.map(|piece| {
                    thought.push_str(&piece);
                    Delta::thought(piece)
                })
            }
            OpenBlock::Call { number, has_arguments } => {
                delta.partial_json.filter(|fragment| !fragment.is_empty()).map(|fragment| {
                    *has_arguments = true;
                    Delta::tool_call(ToolCallDelta::arguments(*number, fragment))
                })
            }
        };
        if let Some(piece) = piece {
            self.say(piece, emit);
        }
    }

    fn close(&mut self, index: u32, emit: &mut dyn FnMut(Piece)) {
        match self.blocks.remove(&index) {
            Some(OpenBlock::Call { number, has_arguments: false }) => {
                self.say(Delta::tool_call(ToolCallDelta::arguments(number, "{}")), emit);
            }
            Some(OpenBlock::Thinking { thought, signature }) if !signature.is_empty() => {
                let thinking_blocks = vec![ThinkingBlock::new(thought, signature)];
                self.say(Delta { thinking_blocks, ..Delta::default() }, emit);
            }
            _ => {}
        }
    }

    fn message_delta(
        &mut self,
        delta: Option<IncomingDelta>,
        counts: Option<IncomingUsage>,
        emit: &mut dyn FnMut(Piece),
    ) {
        if let Some(counts) = counts {
            let known = &mut self.usage;
            known.input_tokens = counts.input_tokens.unwrap_or(known.input_tokens);
            known.cache_creation_input_tokens =
                counts.cache_creation_input_tokens.unwrap_or(known.cache_creation_input_tokens);
            known.cache_read_input_tokens =
                counts.cache_read_input_tokens.unwrap_or(known.cache_read_input_tokens);
            known.output_tokens = counts.output_tokens.unwrap_or(known.output_tokens);
            known.output_tokens_details = counts.output_tokens_details.or(known.output_tokens_details);
        }
        let Some(delta) = delta else { return };
        if delta.stop_reason.is_some() {
            let matched = delta.stop_sequence.map(Value::String);
            emit(Piece::Chunk(self.head.finish(0, finish_reason(delta.stop_reason), matched)));
        }
    }

    /// Emits a delta unless it says nothing.
    fn say(&self, delta: Delta, emit: &mut dyn FnMut(Piece)) {
        let silent = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
        if silent(&delta.content)
            && silent(&delta.reasoning_content)
            && delta.tool_calls.is_empty()
            && delta.thinking_blocks.is_empty()
        {
            return;
        }
        emit(Piece::Chunk(self.head.delta(0, delta)));
    }

    /// The body has ended: an error if the message had not.
    pub fn end(&mut self, emit: &mut dyn FnMut(Piece)) {
        if !self.over {
            let message = "the answer broke off before its end";
            self.fail(ApiError::new(ErrorKind::BadGateway, message).with_code("stream_interrupted"), emit);
        }
    }

    /// Gives an error; nothing follows it.
    pub fn fail(&mut self, error: ApiError, emit: &mut dyn FnMut(Piece)) {
        if !self.over {
            self.over = true;
            emit(Piece::Error(error));
        }
    }
}
