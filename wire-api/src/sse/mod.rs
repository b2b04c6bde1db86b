//! Server-sent events: how every stream in this house is framed.
//!
//! [`encode`] writes frames into a buffer the caller owns; [`SseDecoder`] reads them back from
//! chunks cut anywhere, as a network cuts them. Neither knows what the data means, so one pair
//! serves OpenAI's bare `data:` frames, Anthropic's named events and the node API's progress.

mod decode;
pub mod encode;

pub use decode::{SseDecoder, SseError, SseItem};

/// Payload of the frame that ends an OpenAI stream.
pub const DONE: &str = "[DONE]";
