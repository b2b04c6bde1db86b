//! The streamed answer, piece by piece.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::answer::{assistant, chat_completion};
use super::{ChatCompletion, Choice, FinishReason};
use crate::openai::lenient;
use crate::openai::message::ThinkingBlock;
use crate::openai::usage::{ChoiceLogprobs, Timings, Usage};

/// One piece of a streamed answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatCompletionChunk {
    /// The same in every chunk of an answer.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub id: String,
    /// `chat.completion.chunk`.
    #[serde(default = "chat_completion_chunk")]
    pub object: String,
    /// Seconds since 1970; the same in every chunk.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub created: u64,
    /// The model, as the client named it.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub model: String,
    /// What is new; empty in the chunk that carries the usage.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub choices: Vec<ChunkChoice>,
    /// What it cost, in the last chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Which build answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_fingerprint: Option<String>,
    /// How long it took, in the last chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

fn chat_completion_chunk() -> String {
    "chat.completion.chunk".to_owned()
}

/// What is new in one choice.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ChunkChoice {
    /// Which of the `n`.
    #[serde(default)]
    pub index: u32,
    /// The new piece.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub delta: Delta,
    /// How sure the model was of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<ChoiceLogprobs>,
    /// Why it ended, in its last chunk; `null` before.
    #[serde(default)]
    pub finish_reason: Option<FinishReason>,
    /// The stop string (or token) that ended it.
    #[serde(default, alias = "matched_stop", skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<Value>,
}

/// A piece of a message.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// `assistant`, in the first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// More text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// More thought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Another spelling of `reasoning_content`, read only.
    #[serde(default, skip_serializing, deserialize_with = "lenient::text_or_nothing")]
    pub reasoning: Option<String>,
    /// More of a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// A signed thought of an Anthropic server, once it is complete.
    #[serde(default, deserialize_with = "lenient::or_default", skip_serializing_if = "Vec::is_empty")]
    pub thinking_blocks: Vec<ThinkingBlock>,
    /// More of tool calls.
    #[serde(default, deserialize_with = "lenient::or_default", skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

/// A piece of a tool call. Id and name come whole, in the first piece.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCallDelta {
    /// Which call of the turn.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub index: u32,
    /// Correlates call and result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// Name or more arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionCallDelta>,
}

/// A piece of a function call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionCallDelta {
    /// The function called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the arguments' JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
}

impl ToolCallDelta {
    /// The first piece of a call.
    pub fn open(index: u32, id: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            index,
            id: Some(id.into()),
            r#type: Some("function".to_owned()),
            function: Some(FunctionCallDelta { name: Some(name.into()), arguments: Some(String::new()) }),
        }
    }

    /// More arguments of a call.
    pub fn arguments(index: u32, fragment: impl Into<String>) -> Self {
        let function = Some(FunctionCallDelta { name: None, arguments: Some(fragment.into()) });
        Self { index, function, ..Self::default() }
    }
}

impl Delta {
    /// The first piece of an answer.
    pub fn opening() -> Self {
        Self { role: Some(assistant()), content: Some(String::new()), ..Self::default() }
    }

    /// More text.
    pub fn text(text: impl Into<String>) -> Self {
        Self { content: Some(text.into()), ..Self::default() }
    }

    /// More thought.
    pub fn thought(text: impl Into<String>) -> Self {
        Self { reasoning_content: Some(text.into()), ..Self::default() }
    }

    /// A piece of a tool call.
    pub fn tool_call(call: ToolCallDelta) -> Self {
        Self { tool_calls: vec![call], ..Self::default() }
    }

    /// The thought in it, under either name.
    pub fn reasoning_text(&self) -> Option<&str> {
        self.reasoning_content.as_deref().or(self.reasoning.as_deref())
    }
}

/// What all chunks of one answer share; makes chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkHead {
    /// `chatcmpl-…`.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model, as the client named it.
    pub model: String,
}

impl ChunkHead {
    /// A chunk without choices.
    pub fn empty(&self) -> ChatCompletionChunk {
        ChatCompletionChunk {
            id: self.id.clone(),
            object: chat_completion_chunk(),
            created: self.created,
            model: self.model.clone(),
            choices: Vec::new(),
            usage: None,
            system_fingerprint: None,
            timings: None,
        }
    }

    /// A chunk with a piece of choice `index`.
    pub fn delta(&self, index: u32, delta: Delta) -> ChatCompletionChunk {
        ChatCompletionChunk {
            choices: vec![ChunkChoice { index, delta, ..ChunkChoice::default() }],
            ..self.empty()
        }
    }

    /// The chunk that ends choice `index`.
    pub fn finish(
        &self,
        index: u32,
        reason: FinishReason,
        stop_reason: Option<Value>,
    ) -> ChatCompletionChunk {
        let choice =
            ChunkChoice { index, finish_reason: Some(reason), stop_reason, ..ChunkChoice::default() };
        ChatCompletionChunk { choices: vec![choice], ..self.empty() }
    }

    /// The chunk that carries the usage, after all choices have ended.
    pub fn usage(&self, usage: Usage, timings: Option<Timings>) -> ChatCompletionChunk {
        ChatCompletionChunk { usage: Some(usage), timings, ..self.empty() }
    }

    /// A whole answer.
    pub fn completion(&self, choices: Vec<Choice>, usage: Option<Usage>) -> ChatCompletion {
        ChatCompletion {
            id: self.id.clone(),
            object: chat_completion(),
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
            system_fingerprint: None,
            timings: None,
        }
    }
}
