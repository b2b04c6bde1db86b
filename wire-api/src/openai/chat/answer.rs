//! The whole answer.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::openai::lenient;
use crate::openai::message::ThinkingBlock;
use crate::openai::tools::{FunctionCall, WireToolCall};
use crate::openai::usage::{ChoiceLogprobs, Timings, Usage};

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// End of turn or a stop string.
    Stop,
    /// The token limit or the context.
    Length,
    /// The model called tools.
    ToolCalls,
    /// The answer was withheld.
    ContentFilter,
    /// The older spelling of `ToolCalls`.
    FunctionCall,
    /// A word of another server that stands for no proper end (`abort`, `error`).
    #[serde(other)]
    Abnormal,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatCompletion {
    /// `chatcmpl-…`.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub id: String,
    /// `chat.completion`.
    #[serde(default = "chat_completion")]
    pub object: String,
    /// Seconds since 1970.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub created: u64,
    /// The model, as the client named it.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub model: String,
    /// As many answers as were asked for.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub choices: Vec<Choice>,
    /// What it cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Which build answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_fingerprint: Option<String>,
    /// How long it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

pub(super) fn chat_completion() -> String {
    "chat.completion".to_owned()
}

/// One answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Which of the `n`.
    #[serde(default)]
    pub index: u32,
    /// What the model said.
    pub message: ResponseMessage,
    /// How sure it was.
    #[serde(default)]
    pub logprobs: Option<ChoiceLogprobs>,
    /// Why it ended.
    #[serde(default)]
    pub finish_reason: Option<FinishReason>,
    /// The stop string (or token) that ended it.
    #[serde(default, alias = "matched_stop", skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<Value>,
}

/// What a model said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResponseMessage {
    /// `assistant`.
    #[serde(default = "assistant")]
    pub role: String,
    /// Text; `null` where it only called tools.
    #[serde(default)]
    pub content: Option<String>,
    /// Why it will not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// What it thought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Another spelling of `reasoning_content`, read only.
    #[serde(default, skip_serializing, deserialize_with = "lenient::text_or_nothing")]
    pub reasoning: Option<String>,
    /// Signed thoughts of an Anthropic server, for the client to send back.
    #[serde(default, deserialize_with = "lenient::or_default", skip_serializing_if = "Vec::is_empty")]
    pub thinking_blocks: Vec<ThinkingBlock>,
    /// Tools it called.
    #[serde(default, deserialize_with = "lenient::or_default", skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<WireToolCall>,
    /// The form before `tool_calls`, read only.
    #[serde(default, skip_serializing)]
    pub function_call: Option<FunctionCall>,
}

pub(super) fn assistant() -> String {
    "assistant".to_owned()
}

impl Default for ResponseMessage {
    fn default() -> Self {
        Self {
            role: assistant(),
            content: None,
            refusal: None,
            reasoning_content: None,
            reasoning: None,
            thinking_blocks: Vec::new(),
            tool_calls: Vec::new(),
            function_call: None,
        }
    }
}

impl ResponseMessage {
    /// The thought in it, under either name.
    pub fn reasoning_text(&self) -> Option<&str> {
        self.reasoning_content.as_deref().or(self.reasoning.as_deref())
    }
}
