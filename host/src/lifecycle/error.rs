//! Why a model cannot be had.

use thiserror::Error;
use wire_api::node::ModelId;
use wire_api::node::models::Failure;

use super::memory::bytes;

/// A command or a request for a model was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LifecycleError {
    /// Nothing goes by this name here.
    #[error("the model {0:?} is not loaded here")]
    NotFound(String),
    /// It is loaded, but with other settings.
    #[error("the model {model} is loaded with another {setting}; unload it first")]
    Conflict {
        /// Which.
        model: ModelId,
        /// What differs.
        setting: &'static str,
    },
    /// The command was planned on an older residency than this node's.
    #[error("the command was planned on residency {planned}, this node's is {actual}")]
    StaleRevision {
        /// What the command says.
        planned: u64,
        /// What is true.
        actual: u64,
    },
    /// The command carries a fence that is not the newest, or a lease that is no longer held.
    #[error("the command's lease is no longer held: its fence is {given}, the newest is {newest}")]
    StaleFence {
        /// What the command says.
        given: u64,
        /// The newest that was granted.
        newest: u64,
    },
    /// Another planner holds a lease.
    #[error("{owner} holds a lease of this node's memory for {expires_in_ms} ms more")]
    Leased {
        /// Who.
        owner: String,
        /// For how long.
        expires_in_ms: u64,
    },
    /// It has work in flight, and the command said to leave it then.
    #[error("the model {model} has {inflight} requests in flight")]
    Busy {
        /// Which.
        model: ModelId,
        /// How many.
        inflight: u32,
    },
    /// The command itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// It could not be loaded, or is not there at the moment.
    #[error("the model {model} is not available: {}", failure.message)]
    Unavailable {
        /// Which.
        model: ModelId,
        /// Why.
        failure: Failure,
    },
}

impl LifecycleError {
    /// Whether the same command may succeed later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Busy { .. }
            | Self::StaleRevision { .. }
            | Self::StaleFence { .. }
            | Self::Leased { .. } => true,
            Self::Unavailable { failure, .. } => failure.retryable,
            Self::NotFound(_) | Self::Conflict { .. } | Self::Invalid(_) => false,
        }
    }
}

/// Stable codes of [`Failure`].
pub mod code {
    /// The id stands for nothing that can be found.
    pub const NOT_RESOLVED: &str = "model_not_found";
    /// No plugin serves the architecture on the device.
    pub const NO_PLUGIN: &str = "no_plugin";
    /// A device that was asked for is not there.
    pub const NO_DEVICE: &str = "no_device";
    /// The model does not fit.
    pub const OUT_OF_MEMORY: &str = "out_of_memory";
    /// The plugin cannot serve this checkpoint.
    pub const UNSUPPORTED: &str = "unsupported";
    /// The files or options are wrong.
    pub const INVALID: &str = "invalid_model";
    /// The worker ended, hung or misbehaved.
    pub const WORKER: &str = "worker_failed";
    /// The model loaded but did not generate.
    pub const WARM_UP: &str = "warm_up_failed";
    /// The model is being unloaded.
    pub const UNLOADING: &str = "unloading";
}

/// A failure that has happened once.
pub(super) fn failure(code: &str, message: impl Into<String>, retryable: bool) -> Failure {
    Failure {
        code: code.to_owned(),
        message: message.into(),
        retryable,
        attempts: 1,
        next_attempt_in_ms: None,
    }
}

/// A refusal for want of memory, with the missing amount.
pub(super) fn does_not_fit(what: &str, need: u64, room: u64) -> Failure {
    failure(
        code::OUT_OF_MEMORY,
        format!(
            "{what} needs {}, there is room for {}: {} are missing",
            bytes(need),
            bytes(room),
            bytes(need.saturating_sub(room))
        ),
        true,
    )
}
