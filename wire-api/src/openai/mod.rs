//! The OpenAI dialect: chat completions, completions, embeddings, models.
//!
//! Requests are read once into a canonical form in which every later stage finds one spelling of
//! everything: `stop` is a list, `max_completion_tokens` is `max_tokens`, tool call arguments are
//! objects, `developer` is `system`. Answers and chunks are plain serde types in both directions,
//! because a neuron writes them and cortex reads them.
//!
//! Reading refuses by name whatever would change the answer and is not honoured, and drops in
//! silence only what cannot change it.

pub mod aggregate;
pub mod chat;
pub mod completions;
pub mod content;
pub mod embeddings;
pub(crate) mod lenient;
pub mod message;
pub mod models;
pub mod parameters;
pub mod responses;
pub mod tools;
pub mod usage;
