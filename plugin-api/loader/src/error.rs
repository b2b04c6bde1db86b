//! What a plugin says when it could not do what it was asked.

use plugin_abi::{Code, Failure};
use serde::{Deserialize, Serialize};

/// The kinds of failure that cross the boundary; each has one meaning and one reaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// This row or request is wrong; fail that sequence alone.
    InvalidInput,
    /// This plugin cannot serve this; refuse the load.
    Unsupported,
    /// No room now; fail or requeue, and shrink admission.
    OutOfMemory,
    /// The device is gone; replace the worker.
    DeviceLost,
    /// A bug or a panic; fail the batch. The model may refuse every later call.
    Internal,
    /// Given up because the host asked for it.
    Cancelled,
}

impl ErrorKind {
    pub(crate) fn of(code: Code) -> Self {
        match code {
            Code::INVALID_INPUT => Self::InvalidInput,
            Code::UNSUPPORTED => Self::Unsupported,
            Code::OUT_OF_MEMORY => Self::OutOfMemory,
            Code::DEVICE_LOST => Self::DeviceLost,
            Code::CANCELLED => Self::Cancelled,
            _ => Self::Internal,
        }
    }

    /// Whether the same request may succeed later, here or elsewhere.
    pub fn retryable(self) -> bool {
        matches!(self, Self::OutOfMemory | Self::DeviceLost)
    }
}

/// A plugin could not do what it was asked. `message` is the plugin's own sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PluginError {
    /// What kind of failure, and so what to do about it.
    pub kind: ErrorKind,
    /// One sentence: the fact, and the remedy where there is one.
    pub message: String,
    /// For [`ErrorKind::OutOfMemory`]: bytes that were missing; 0 when unknown.
    pub need_bytes: u64,
}

impl PluginError {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), need_bytes: 0 }
    }

    pub(crate) fn read(code: Code, failure: &Failure) -> Self {
        let text = failure.text();
        let message = if text.is_empty() { "the plugin gave no reason".to_owned() } else { text };
        Self { kind: ErrorKind::of(code), message, need_bytes: failure.need_bytes }
    }
}

/// `Ok` when a verb returned [`Code::OK`], otherwise what it left in `failure`.
pub(crate) fn check(code: Code, failure: &Failure) -> Result<(), PluginError> {
    if code == Code::OK { Ok(()) } else { Err(PluginError::read(code, failure)) }
}
