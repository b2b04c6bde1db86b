//! Bytes to a node and back, unbuffered.
//!
//! A body goes through as it came; nothing waits for the whole of an answer, nothing limits its
//! length, only silence ends it. A client that leaves drops the body, which drops the connection to
//! the node, which cancels the sequence there.

pub mod budget;
pub mod client;
pub mod continuation;
pub mod forward;
pub mod observe;
pub mod relay;
pub mod translate;
pub mod waiting;
pub mod wording;

/// The error of a body that broke off.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
