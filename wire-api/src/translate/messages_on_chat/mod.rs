//! Clients of the Anthropic dialect on servers that speak OpenAI chat.

pub mod reply;
pub mod request;
pub mod stream;
mod typed_tools;

use crate::translate::identity::ToolNames;

/// What a server of the other dialect can take, where servers differ. The default is what every
/// server takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerTraits {
    /// System messages may stand between turns; otherwise they become reminders of the user's.
    pub mid_system: bool,
    /// Content may be a list of text parts; otherwise texts are joined by a line break.
    pub text_parts: bool,
    /// Tool messages may hold images; otherwise images follow in a user message.
    pub tool_images: bool,
    /// Files may be sent; otherwise they are refused.
    pub files: bool,
    /// The last message may be the beginning of the answer.
    pub prefill: bool,
    /// Results of calls nobody made are passed on as text instead of being refused.
    pub lenient: bool,
}

impl Default for ServerTraits {
    fn default() -> Self {
        Self {
            mid_system: false,
            text_parts: true,
            tool_images: false,
            files: false,
            prefill: true,
            lenient: false,
        }
    }
}

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
