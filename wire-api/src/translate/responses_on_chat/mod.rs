//! Clients of OpenAI responses on servers that speak OpenAI chat.

pub mod events;
pub mod reply;
pub mod request;
pub mod stream;

use std::collections::HashMap;

use serde_json::{Map, Value};

/// What the way back needs to know of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReplyContext {
    /// The model, as the client named it.
    pub model: String,
    /// The tools as the client knows them.
    pub tools: ToolTable,
    /// The client wants an event stream.
    pub stream: bool,
    /// Thoughts are shown as their own summary; otherwise as text.
    pub wants_summary: bool,
    /// Thoughts are also given in a form the client can send back.
    pub wants_encrypted_reasoning: bool,
    /// Fields of the request that the answer repeats.
    pub echo: Map<String, Value>,
}

/// A tool as the client of this dialect knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolIdentity {
    /// The namespace it is in.
    pub namespace: Option<String>,
    /// Its name there.
    pub name: String,
    /// It takes free text instead of JSON.
    pub custom: bool,
}

/// Tools by the name they have on the wire to the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolTable(HashMap<String, ToolIdentity>);

impl ToolTable {
    /// Remembers a tool.
    pub(crate) fn insert(&mut self, wire_name: String, identity: ToolIdentity) {
        self.0.insert(wire_name, identity);
    }

    /// The tool behind a name of the server; an unknown name is a plain function.
    pub fn get(&self, wire_name: &str) -> ToolIdentity {
        let plain = || ToolIdentity { namespace: None, name: wire_name.to_owned(), custom: false };
        self.0.get(wire_name).cloned().unwrap_or_else(plain)
    }

    /// Whether a tool of this name was offered.
    pub fn contains(&self, wire_name: &str) -> bool {
        self.0.contains_key(wire_name)
    }
}
