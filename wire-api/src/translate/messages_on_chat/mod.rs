//! Clients of the Anthropic dialect on servers that speak OpenAI chat.

pub mod reply;
pub mod request;
pub mod stream;
mod typed_tools;

use crate::translate::identity::ToolNames;

/// What the way back needs to know of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplyContext {
    /// The model, as the client named it.
    pub model: String,
    /// Names of tools that had to be changed.
    pub tool_names: ToolNames,
    /// The client wants an event stream.
    pub stream: bool,
    /// The client wants no thoughts shown.
    pub hide_thinking: bool,
    /// Only the first call of a turn may be passed on.
    pub single_tool_call: bool,
    /// The client asked for no tokens, to warm the cache: whatever is generated is thrown away.
    pub prewarm: bool,
    /// The client expects to see which edits of the context were applied.
    pub context_management: bool,
}
