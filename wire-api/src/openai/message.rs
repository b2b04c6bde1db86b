//! Messages of a conversation, one variant per role.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::ApiError;
use crate::fields::{Fields, join, mismatch, missing};
use crate::openai::content::Content;
use crate::openai::tools::ToolCall;

/// One turn. `developer` is read as `system`: templates know one of them.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "role", rename_all = "lowercase")]
pub enum Message {
    /// Instructions.
    System {
        /// What it says.
        content: Content,
        /// Who says it, where several do.
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// The person or program asking.
    User {
        /// What it says.
        content: Content,
        /// Who says it, where several do.
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// The model.
    Assistant(AssistantMessage),
    /// What a tool gave back.
    Tool {
        /// The call this answers.
        tool_call_id: String,
        /// What the tool said.
        content: Content,
        /// The tool, where the client says.
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
}

/// A turn of the model in the history.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct AssistantMessage {
    /// Absent when the turn only called tools; written as `null`.
    pub content: Option<Content>,
    /// What it thought, where the client sends it back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Tools it called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Signed thoughts of an Anthropic server, which wants them back as they were.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub thinking_blocks: Vec<ThinkingBlock>,
    /// Who says it, where several do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A thought with the signature of its author.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThinkingBlock {
    /// `thinking`.
    #[serde(rename = "type")]
    pub r#type: String,
    /// The thought.
    #[serde(default)]
    pub thinking: String,
    /// Opaque.
    #[serde(default)]
    pub signature: String,
}

impl ThinkingBlock {
    /// A signed thought.
    pub fn new(thinking: impl Into<String>, signature: impl Into<String>) -> Self {
        Self { r#type: "thinking".to_owned(), thinking: thinking.into(), signature: signature.into() }
    }
}

impl Message {
    /// A system message of one text.
    pub fn system(text: impl Into<String>) -> Self {
        Self::System { content: Content::Text(text.into()), name: None }
    }

    /// A user message of one text.
    pub fn user(text: impl Into<String>) -> Self {
        Self::User { content: Content::Text(text.into()), name: None }
    }

    /// An assistant message of one text.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self::Assistant(AssistantMessage { content: Some(Content::Text(text.into())), ..Default::default() })
    }

    /// The role as templates spell it.
    pub fn role(&self) -> &'static str {
        match self {
            Self::System { .. } => "system",
            Self::User { .. } => "user",
            Self::Assistant(_) => "assistant",
            Self::Tool { .. } => "tool",
        }
    }

    /// What it says, if it says anything.
    pub fn content(&self) -> Option<&Content> {
        match self {
            Self::System { content, .. } | Self::User { content, .. } | Self::Tool { content, .. } => {
                Some(content)
            }
            Self::Assistant(message) => message.content.as_ref(),
        }
    }

    pub(crate) fn read(path: &str, value: Value) -> Result<Self, ApiError> {
        let mut message = Fields::from_value(path, value)?;
        let role = message.required_string("role")?;
        let name = message.label("name");
        match role.as_str() {
            "system" | "developer" => Ok(Self::System { content: take_content(&mut message)?, name }),
            "user" => Ok(Self::User { content: take_content(&mut message)?, name }),
            "assistant" => Ok(Self::Assistant(AssistantMessage::read(message, name)?)),
            "tool" => {
                let tool_call_id = message.string("tool_call_id")?.unwrap_or_default();
                let content = optional_content(&mut message)?.unwrap_or_else(|| Content::Text(String::new()));
                Ok(Self::Tool { tool_call_id, content, name })
            }
            // The form before tools had ids: the function's name stands for one.
            "function" => {
                let name = name.ok_or_else(|| missing(&message.at("name")))?;
                let content = optional_content(&mut message)?.unwrap_or_else(|| Content::Text(String::new()));
                Ok(Self::Tool { tool_call_id: name.clone(), content, name: Some(name) })
            }
            other => {
                let message = format!("'{other}' is not one of system, developer, user, assistant, tool");
                Err(ApiError::invalid(join(path, "role"), message))
            }
        }
    }
}

impl AssistantMessage {
    fn read(mut message: Fields, name: Option<String>) -> Result<Self, ApiError> {
        let mut content = optional_content(&mut message)?;
        let reasoning_content = match message.string("reasoning_content")? {
            Some(text) => Some(text),
            // The spelling of some gateways; other shapes of the same key carry no text for us.
            None => message.label("reasoning"),
        };
        let path = message.at("tool_calls");
        let mut tool_calls = Vec::new();
        for (index, value) in message.list("tool_calls")?.unwrap_or_default().into_iter().enumerate() {
            tool_calls.push(ToolCall::read(&join(&path, index), value)?);
        }
        if let Some(mut function) = message.nested("function_call")? {
            let call = ToolCall::read_function(String::new(), &mut function)?;
            tool_calls.push(ToolCall { id: call.name.clone(), ..call });
        }
        let thinking_blocks = match message.take("thinking_blocks") {
            Some(Value::Array(blocks)) => {
                // Of no use to anybody but the server that signed them; odd ones are left out.
                blocks.into_iter().filter_map(|block| serde_json::from_value(block).ok()).collect()
            }
            _ => Vec::new(),
        };
        if content.is_none() {
            content = message.string("refusal")?.map(Content::Text);
        }
        if content.is_none() && tool_calls.is_empty() {
            // A turn that produced nothing (cut short, or only thought) is still a turn.
            content = Some(Content::Text(String::new()));
        }
        Ok(Self { content, reasoning_content, tool_calls, thinking_blocks, name })
    }
}

fn take_content(message: &mut Fields) -> Result<Content, ApiError> {
    optional_content(message)?.ok_or_else(|| missing(&message.at("content")))
}

fn optional_content(message: &mut Fields) -> Result<Option<Content>, ApiError> {
    let path = message.at("content");
    message.take("content").map(|value| Content::read(&path, value)).transpose()
}

/// Reads `messages`: at least one.
pub(crate) fn take_messages(request: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let path = request.at("messages");
    let items = match request.take("messages") {
        None => return Err(missing(&path)),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(mismatch(&path, "a list", &other)),
    };
    if items.is_empty() {
        return Err(ApiError::invalid(path, "at least one message is required"));
    }
    let read = |(index, value)| Message::read(&join(&path, index), value);
    items.into_iter().enumerate().map(read).collect()
}
