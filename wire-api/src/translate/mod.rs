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

/// Collects the names of dropped fields, each once.
#[derive(Debug, Default)]
pub(crate) struct Dropped(Vec<String>);

impl Dropped {
    pub(crate) fn add(&mut self, name: impl Into<String>) {
        let name = name.into();
        if !self.0.contains(&name) {
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
