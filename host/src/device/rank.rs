//! One rank of a loaded model, seen from the thread that owns its device.
//!
//! The engine is written against [`Rank`]; a plugin behind the ABI is one implementation, the double in the
//! unit tests another.

use std::sync::atomic::AtomicU32;

pub use plugin_abi::arch::{EncodedImage, ImageSpan, ModelStats, Row, Want};
use thiserror::Error;

use crate::worker::message::{FailureCode, ImagePixels};
use crate::worker::protocol::ModelFacts;

/// Why a device could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// This row or request is wrong; nothing else is affected.
    #[error("{0}")]
    InvalidInput(String),
    /// This plugin cannot serve this.
    #[error("{0}")]
    Unsupported(String),
    /// No room now.
    #[error("{message}")]
    OutOfMemory {
        /// One sentence.
        message: String,
        /// Bytes that were missing; 0 when unknown.
        need_bytes: u64,
    },
    /// The device is gone; the worker must be replaced.
    #[error("{0}")]
    DeviceLost(String),
    /// A bug; after a panic the model is poisoned and the worker must be replaced.
    #[error("{0}")]
    Internal(String),
    /// Given up because the engine asked for it.
    #[error("cancelled")]
    Cancelled,
}

impl DeviceError {
    /// Kind, for messages.
    pub fn code(&self) -> FailureCode {
        match self {
            Self::InvalidInput(_) => FailureCode::InvalidInput,
            Self::Unsupported(_) => FailureCode::Unsupported,
            Self::OutOfMemory { .. } => FailureCode::OutOfMemory,
            Self::DeviceLost(_) => FailureCode::DeviceLost,
            Self::Internal(_) | Self::Cancelled => FailureCode::Internal,
        }
    }

    /// Bytes that were missing; 0 unless memory was the reason and the amount is known.
    pub fn need_bytes(&self) -> u64 {
        if let Self::OutOfMemory { need_bytes, .. } = self { *need_bytes } else { 0 }
    }

    /// Whether the model can be used after this error came out of a whole step.
    pub fn poisons(&self) -> bool {
        matches!(self, Self::DeviceLost(_) | Self::Internal(_))
    }
}

/// One forward pass as a rank sees it. Row and image ids are the rank's own.
#[derive(Debug)]
pub struct Step<'a> {
    /// The batch; a sequence occurs at most once.
    pub rows: &'a [Row],
    /// Tokens of all rows.
    pub tokens: &'a [u32],
    /// Images of all rows.
    pub images: &'a [ImageSpan],
    /// Turns non-zero when nobody wants the step any more.
    pub cancel: &'a AtomicU32,
}

/// Memory for the results of a step. On ranks other than 0 `logits` and `tokens` are empty.
#[derive(Debug)]
pub struct StepOutput<'a> {
    /// One per row, `Ok` on entry.
    pub rows: &'a mut [Result<(), DeviceError>],
    /// `[n, vocab_size]`, f32; as long as the rows ask for on entry and on return.
    pub logits: &'a mut Vec<f32>,
    /// For [`Want::TOKEN`].
    pub tokens: &'a mut [u32],
}

/// One rank of a loaded model. Every call comes from the thread that made it.
pub trait Rank {
    /// What the model turned out to be; `weight_bytes` are this rank's.
    fn facts(&self) -> ModelFacts;
    /// A sequence with no tokens.
    fn sequence_new(&mut self) -> Result<u64, DeviceError>;
    /// Drops a sequence.
    fn sequence_free(&mut self, sequence: u64);
    /// A second sequence that holds the first `length` tokens of this one.
    fn fork(&mut self, sequence: u64, length: u32) -> Result<u64, DeviceError>;
    /// Drops all tokens after the first `length`.
    fn trim(&mut self, sequence: u64, length: u32) -> Result<(), DeviceError>;
    /// One forward pass. An error fails the whole batch; a row alone fails through its own result.
    fn step(&mut self, step: &Step<'_>, output: &mut StepOutput<'_>) -> Result<(), DeviceError>;
    /// Tokens an image of this size will take.
    fn image_measure(&mut self, width: u32, height: u32) -> Result<u32, DeviceError>;
    /// Runs the vision tower.
    fn image_encode(&mut self, image: &ImagePixels) -> Result<EncodedImage, DeviceError>;
    /// Drops an encoded image.
    fn image_free(&mut self, image: u64);
    /// What the model holds right now.
    fn stats(&mut self) -> ModelStats;
}

/// Makes a rank on the thread that will own it.
pub type OpenRank = Box<dyn FnOnce() -> Result<Box<dyn Rank>, DeviceError> + Send>;
