//! What neuron and cortex say over HTTP, and nothing about how they carry it.
//!
//! Both daemons and every client meet here: the OpenAI and Anthropic dialects, the node API that
//! cortex uses to command a neuron, the error envelope, server-sent events, and the translators
//! between dialects. A contract kept in one crate cannot drift between its two ends.
//!
//! Everything is a pure function of its arguments: no sockets, clocks, files, tasks or randomness.
//! Identifiers and timestamps are therefore always handed in by the caller.
//!
//! * [`openai`] – requests (read tolerantly, refused by name), answers and stream chunks.
//! * [`anthropic`] – messages, stream events, token counting, models.
//! * [`translate`] – one dialect into another, in both directions, streaming and not.
//! * [`node`] – the node API of a neuron.
//! * [`sse`] – server-sent events, encoded and decoded.
//! * [`error`] – [`ApiError`], rendered in the caller's dialect.
//! * [`mod@peek`] – what a router needs from a body, without building a tree of it.
//! * [`size`] – amounts of memory as people write them.
//! * [`rate_limits`] – headers that tell a client what it may still ask for.

pub mod anthropic;
pub mod error;
mod fields;
pub mod node;
pub mod openai;
pub mod peek;
pub mod rate_limits;
pub mod size;
pub mod sse;
pub mod translate;

pub use error::{ApiError, Dialect, ErrorKind};
pub use openai::chat::ChatRequest;
pub use openai::parameters::GenerationParameters;
pub use peek::{RequestPeek, peek};
