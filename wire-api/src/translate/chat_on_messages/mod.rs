//! Clients of OpenAI chat on servers that speak the Anthropic dialect.

pub mod reply;
pub mod request;
pub mod stream;

use crate::translate::identity::ToolNames;

/// What the way back needs to know of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplyContext {
    /// The model, as the client named it.
    pub model: String,
    /// Names of tools that had to be changed.
    pub tool_names: ToolNames,
    /// The client wants chunks.
    pub stream: bool,
    /// The client wants the usage at the end of its stream.
    pub include_usage: bool,
}
