//! Why a layer could not do its work, in the five kinds that cross the plugin boundary.

/// What went wrong. The kind decides what the host does; the text names the thing and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the caller passed for this row is wrong.
    #[error("{0}")]
    InvalidInput(String),
    /// This file, shape or setting cannot be served.
    #[error("{0}")]
    Unsupported(String),
    /// There is no room now.
    #[error("{0}")]
    OutOfMemory(String),
    /// The device, or another rank of the same model, is gone.
    #[error("{0}")]
    DeviceLost(String),
    /// The host asked to stop; the sequences of the step are unusable.
    #[error("the step was cancelled")]
    Cancelled,
    /// A bug here or below.
    #[error("{0}")]
    Internal(String),
}

/// Result of a layer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The same error with a place in front of its text.
    pub fn within(self, place: impl std::fmt::Display) -> Self {
        match self {
            Self::InvalidInput(text) => Self::InvalidInput(format!("{place}: {text}")),
            Self::Unsupported(text) => Self::Unsupported(format!("{place}: {text}")),
            Self::OutOfMemory(text) => Self::OutOfMemory(format!("{place}: {text}")),
            Self::DeviceLost(text) => Self::DeviceLost(format!("{place}: {text}")),
            Self::Cancelled => Self::Cancelled,
            Self::Internal(text) => Self::Internal(format!("{place}: {text}")),
        }
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        #[cfg(feature = "cuda")]
        if let Some(known) = crate::device::failure::kind(&error) {
            return known;
        }
        Self::Internal(error.to_string())
    }
}
