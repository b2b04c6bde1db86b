//! Clients of OpenAI chat on servers that speak the Anthropic dialect.

pub mod reply;
pub mod request;
pub mod stream;

use crate::translate::identity::ToolNames;

/// What a server of the other dialect can take, where servers differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerTraits {
    /// `max_tokens` where the client gives none; the dialect demands one.
    pub default_max_tokens: u32,
    /// System messages may stand between turns; otherwise all of them go to the top.
    pub mid_system: bool,
    /// Thinking is steered by effort; otherwise by a budget of tokens.
    pub adaptive_thinking: bool,
    /// A conversation that does not begin with the user gets a first turn; otherwise it is refused.
    pub lenient: bool,
}

impl Default for ServerTraits {
    fn default() -> Self {
        Self { default_max_tokens: 4096, mid_system: false, adaptive_thinking: true, lenient: false }
    }
}

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
