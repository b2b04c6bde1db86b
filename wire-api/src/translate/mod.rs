//! One dialect into another: a client of one is served by a server of another.
//!
//! Each folder is a pair, `CLIENT_on_SERVER`, with three files: `request` (client's words into
//! server's), `reply` (the whole answer back) and `stream` (the same, piece by piece). OpenAI chat
//! is the hub: what is not spoken directly goes through it, and a [`ChatRequest`] is what every
//! dialect is read into.
//!
//! Translation is honest: what would change the answer and has no word in the other dialect is
//! refused; what is merely lost is listed in [`Translated::dropped`] for a header and a metric.
//! Nothing here reads a clock or rolls a die; ids come from the caller or from what they stand for.
//!
//! [`ChatRequest`]: crate::openai::chat::ChatRequest

pub mod arguments;
pub mod chat_on_messages;
pub mod effort;
pub mod identity;
pub mod messages_on_chat;
pub mod responses_on_chat;

/// What a server that speaks OpenAI chat can take, where servers differ. The default is what every
/// server takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChatServer {
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

impl Default for ChatServer {
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

/// What a server that speaks the Anthropic dialect can take, where servers differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessagesServer {
    /// `max_tokens` where the client gives none; the dialect demands one.
    pub default_max_tokens: u32,
    /// System messages may stand between turns; otherwise all of them go to the top.
    pub mid_system: bool,
    /// Thinking is steered by effort; otherwise by a budget of tokens.
    pub adaptive_thinking: bool,
    /// A conversation that does not begin with the user gets a first turn; otherwise it is refused.
    pub lenient: bool,
}

impl Default for MessagesServer {
    fn default() -> Self {
        Self { default_max_tokens: 4096, mid_system: false, adaptive_thinking: true, lenient: false }
    }
}

/// A request in another dialect, and what it takes to answer in the first.
#[derive(Debug, Clone, PartialEq)]
pub struct Translated<Request, Reply> {
    /// The request for the server.
    pub request: Request,
    /// What the way back needs to know.
    pub reply: Reply,
    /// Fields of the client's request that the server will not see, each once.
    pub dropped: Vec<String>,
}

/// Most names of dropped fields that are told. A client that sends more is not speaking the dialect.
const DROPPED_MAXIMUM: usize = 64;

/// Collects the names of dropped fields, each once.
#[derive(Debug, Default)]
pub(crate) struct Dropped(Vec<String>);

impl Dropped {
    pub(crate) fn add(&mut self, name: impl Into<String>) {
        let name = name.into();
        if self.0.len() < DROPPED_MAXIMUM && !self.0.contains(&name) {
            self.0.push(name);
        }
    }

    pub(crate) fn add_if(&mut self, lost: bool, name: &str) {
        if lost {
            self.add(name);
        }
    }

    pub(crate) fn into_names(self) -> Vec<String> {
        self.0
    }
}
