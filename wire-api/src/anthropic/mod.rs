//! The Anthropic dialect: messages, their stream, token counting, models.
//!
//! Requests are read leniently, as clients of this dialect expect: fields nobody here knows are
//! collected in [`messages::MessagesRequest::ignored`] rather than refused, unknown block types are
//! refused with their path. Every type that cortex sends to an upstream of this dialect is written
//! too.

pub mod block;
pub mod messages;
pub mod models;
pub mod reply;
pub mod stream;
pub mod tools;
