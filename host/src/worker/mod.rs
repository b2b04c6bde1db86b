//! The worker process and the link to it.

pub mod message;
