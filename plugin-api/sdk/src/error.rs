//! The five ways a plugin can fail, each with one meaning and one reaction of the host.

use plugin_abi::{Code, Failure};

/// Result of anything a plugin author writes.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a plugin could not do what it was asked. The text is one sentence: the fact, and the remedy where
/// there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// This row or request is wrong. The host fails that sequence alone.
    InvalidInput(String),
    /// This plugin cannot serve this. The host refuses the load.
    Unsupported(String),
    /// No room now. The host fails or requeues, and shrinks admission.
    OutOfMemory {
        /// What was being allocated.
        message: String,
        /// Bytes that were missing; 0 when unknown.
        need_bytes: u64,
    },
    /// The device is gone. The host replaces the worker.
    DeviceLost(String),
    /// A bug. The host fails the batch and logs it with the plugin's name.
    Internal(String),
    /// Given up because the host asked for it.
    Cancelled,
}

impl Error {
    /// The code that stands for this kind at the boundary.
    pub fn code(&self) -> Code {
        match self {
            Self::InvalidInput(_) => Code::INVALID_INPUT,
            Self::Unsupported(_) => Code::UNSUPPORTED,
            Self::OutOfMemory { .. } => Code::OUT_OF_MEMORY,
            Self::DeviceLost(_) => Code::DEVICE_LOST,
            Self::Internal(_) => Code::INTERNAL,
            Self::Cancelled => Code::CANCELLED,
        }
    }

    /// Writes kind and text into the host's memory and returns the code.
    pub(crate) fn write(&self, failure: &mut Failure) -> Code {
        let need = if let Self::OutOfMemory { need_bytes, .. } = self { *need_bytes } else { 0 };
        failure.set(self.code(), self.message(), need);
        self.code()
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        match self {
            Self::InvalidInput(m) | Self::Unsupported(m) | Self::DeviceLost(m) | Self::Internal(m) => m,
            Self::OutOfMemory { message, .. } => message,
            Self::Cancelled => "cancelled by the host",
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for Error {}
