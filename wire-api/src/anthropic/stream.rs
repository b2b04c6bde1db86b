//! The events of a streamed message, written and read.
//!
//! Writing borrows everything: a delta is put on the wire without being copied first. Reading uses
//! one flat type for all events, because only a few fields of each matter and a tagged enum would
//! buffer every event before looking at it.

use serde::{Deserialize, Serialize};

use super::reply::{Message, MessageUsage, StopReason};
use crate::error::ApiError;
use crate::sse::encode;

/// An event to be written.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event<'a> {
    /// The first: a message without content.
    MessageStart {
        /// The empty message.
        message: &'a Message,
    },
    /// A sign of life.
    Ping,
    /// A block begins.
    ContentBlockStart {
        /// Counts blocks from 0 without gaps.
        index: u32,
        /// The block, still empty.
        content_block: EmptyBlock<'a>,
    },
    /// A block grows.
    ContentBlockDelta {
        /// Which.
        index: u32,
        /// By what.
        delta: BlockDelta<'a>,
    },
    /// A block ends.
    ContentBlockStop {
        /// Which.
        index: u32,
    },
    /// How it ended and what it cost.
    MessageDelta {
        /// How it ended.
        delta: MessageEnd<'a>,
        /// What it cost, all in all.
        usage: &'a MessageUsage,
        /// What was applied, if the client asked.
        #[serde(skip_serializing_if = "Option::is_none")]
        context_management: Option<&'a serde_json::Value>,
    },
    /// The last.
    MessageStop,
}

/// A block at its beginning.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EmptyBlock<'a> {
    /// A thought.
    Thinking {
        /// Empty.
        thinking: &'a str,
        /// Empty.
        signature: &'a str,
    },
    /// Text.
    Text {
        /// Empty.
        text: &'a str,
    },
    /// A call.
    ToolUse {
        /// Correlates call and result.
        id: &'a str,
        /// The tool.
        name: &'a str,
        /// Empty; the arguments follow as pieces of JSON.
        input: Empty,
    },
}

/// `{}`.
#[derive(Debug, Serialize)]
pub struct Empty {}

/// A piece of a block.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum BlockDelta<'a> {
    /// More thought.
    ThinkingDelta {
        /// The piece.
        thinking: &'a str,
    },
    /// The signature of a thought, before it ends.
    SignatureDelta {
        /// Opaque.
        signature: &'a str,
    },
    /// More text.
    TextDelta {
        /// The piece.
        text: &'a str,
    },
    /// More of the arguments.
    InputJsonDelta {
        /// The piece.
        partial_json: &'a str,
    },
}

/// How a message ended.
#[derive(Debug, Serialize)]
pub struct MessageEnd<'a> {
    /// Why.
    pub stop_reason: Option<StopReason>,
    /// The stop sequence that ended it.
    pub stop_sequence: Option<&'a str>,
}

impl Event<'_> {
    /// The name of the frame, equal to the `type` inside.
    pub fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::Ping => "ping",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
        }
    }

    /// Appends the frame.
    pub fn write(&self, out: &mut Vec<u8>) {
        encode::json_event(out, self.name(), self);
    }
}

/// Appends an error frame; nothing may follow it.
pub fn write_error(out: &mut Vec<u8>, error: &ApiError, request_id: Option<&str>) {
    encode::json_event(out, "error", &error.anthropic_body(request_id));
}

/// An event as it was read: the fields of all kinds, most of them absent.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct IncomingEvent {
    /// Which kind.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of a block.
    pub index: u32,
    /// In `message_start`.
    pub message: Option<Message>,
    /// In `content_block_start`.
    pub content_block: Option<super::reply::ReplyBlock>,
    /// In `content_block_delta` and `message_delta`.
    pub delta: Option<IncomingDelta>,
    /// In `message_delta`; cumulative, fields may be missing.
    pub usage: Option<IncomingUsage>,
}

/// A delta as it was read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct IncomingDelta {
    /// Which kind; empty in `message_delta`.
    #[serde(rename = "type")]
    pub kind: String,
    /// More text.
    pub text: Option<String>,
    /// More thought.
    pub thinking: Option<String>,
    /// More of the arguments.
    pub partial_json: Option<String>,
    /// Of a thought.
    pub signature: Option<String>,
    /// How the message ended.
    pub stop_reason: Option<StopReason>,
    /// The stop sequence that ended it.
    pub stop_sequence: Option<String>,
}

/// Counts as they were read; what is missing keeps its earlier value.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct IncomingUsage {
    /// Prompt tokens computed.
    pub input_tokens: Option<u64>,
    /// Prompt tokens written to the cache.
    pub cache_creation_input_tokens: Option<u64>,
    /// Prompt tokens from the cache.
    pub cache_read_input_tokens: Option<u64>,
    /// Tokens generated.
    pub output_tokens: Option<u64>,
    /// How they divide.
    pub output_tokens_details: Option<super::reply::OutputTokensDetails>,
}
