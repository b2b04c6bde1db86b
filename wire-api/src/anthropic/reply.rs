//! The answer: a whole message.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A whole message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `msg_…`.
    #[serde(default)]
    pub id: String,
    /// `message`.
    #[serde(rename = "type", default = "message")]
    pub r#type: String,
    /// `assistant`.
    #[serde(default = "assistant")]
    pub role: String,
    /// The model, as the client named it.
    #[serde(default)]
    pub model: String,
    /// What was said; empty is a legal answer.
    #[serde(default)]
    pub content: Vec<ReplyBlock>,
    /// Why it ended; `null` while it has not.
    #[serde(default)]
    pub stop_reason: Option<StopReason>,
    /// The stop sequence that ended it.
    #[serde(default)]
    pub stop_sequence: Option<String>,
    /// What it cost.
    #[serde(default)]
    pub usage: MessageUsage,
    /// What was applied, if the client sent `context_management`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_management: Option<Value>,
}

fn message() -> String {
    "message".to_owned()
}

fn assistant() -> String {
    "assistant".to_owned()
}

impl Message {
    /// An empty message.
    pub fn new(id: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            r#type: message(),
            role: assistant(),
            model: model.into(),
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            usage: MessageUsage::default(),
            context_management: None,
        }
    }
}

/// What a client that sent `context_management` is told: nothing was edited.
pub(crate) fn no_applied_edits() -> Value {
    json!({"applied_edits": []})
}

/// A block of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ReplyBlock {
    /// A thought.
    Thinking {
        /// The thought.
        thinking: String,
        /// Opaque; clients send it back.
        #[serde(default)]
        signature: String,
    },
    /// A thought only its author can read.
    RedactedThinking {
        /// The sealed thought.
        #[serde(default)]
        data: String,
    },
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// A call.
    ToolUse {
        /// Correlates call and result.
        id: String,
        /// The tool.
        name: String,
        /// Its arguments.
        #[serde(default)]
        input: Map<String, Value>,
    },
    /// A block of the vendor's own that other dialects have no word for.
    #[serde(other)]
    Other,
}

/// Why a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model had said what it wanted.
    EndTurn,
    /// The limit.
    MaxTokens,
    /// A stop sequence.
    StopSequence,
    /// The model called a tool.
    ToolUse,
    /// The vendor's server paused a long turn.
    PauseTurn,
    /// The model will not answer.
    Refusal,
    /// The context is full.
    ModelContextWindowExceeded,
    /// A word this version does not know; an end all the same.
    #[serde(other)]
    Unknown,
}

/// Token counts. All fields are always written: clients have broken on missing ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MessageUsage {
    /// Prompt tokens that were computed.
    pub input_tokens: u64,
    /// Prompt tokens newly written to the cache.
    #[serde(deserialize_with = "crate::openai::lenient::or_default")]
    pub cache_creation_input_tokens: u64,
    /// Prompt tokens that came from the cache.
    #[serde(deserialize_with = "crate::openai::lenient::or_default")]
    pub cache_read_input_tokens: u64,
    /// How the written ones divide by lifetime.
    #[serde(deserialize_with = "crate::openai::lenient::or_default")]
    pub cache_creation: CacheCreation,
    /// Tokens generated, thoughts included.
    pub output_tokens: u64,
    /// How they divide, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_tokens_details: Option<OutputTokensDetails>,
    /// `standard`.
    #[serde(deserialize_with = "crate::openai::lenient::or_default")]
    pub service_tier: String,
}

impl Default for MessageUsage {
    fn default() -> Self {
        Self {
            input_tokens: 0,
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: 0,
            cache_creation: CacheCreation::default(),
            output_tokens: 0,
            output_tokens_details: None,
            service_tier: "standard".to_owned(),
        }
    }
}

/// Tokens written to the cache, by lifetime.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheCreation {
    /// For five minutes.
    pub ephemeral_5m_input_tokens: u64,
    /// For an hour.
    pub ephemeral_1h_input_tokens: u64,
}

/// How generated tokens divide.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OutputTokensDetails {
    /// Tokens of thought.
    pub thinking_tokens: u64,
}
