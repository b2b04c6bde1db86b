//! What a decoder is handed for one step.
use candle_core::Tensor;
use crate::error::{Error, Result};
use crate::trace::Trace;
use std::sync::atomic::{AtomicU32, Ordering};

/// The host's wish to give the step up, polled between layers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cancel<'a>(Option<&'a AtomicU32>);

impl<'a> Cancel<'a> {
    /// Nobody cancels.
    pub fn never() -> Self {
        Self(None)
    }
    /// Non-zero means stop.
    pub fn when(word: &'a AtomicU32) -> Self {
        Self(Some(word))
    }
    /// `Err(Cancelled)` once the host wants to stop.
    pub fn check(&self) -> Result<()> {
        match self.0 {
            Some(word) if word.load(Ordering::Relaxed) != 0 => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }
}

/// An encoded image's place in a sequence.
#[derive(Debug, Clone)]
pub struct ImageSpan {
    /// Position of its first token in the sequence.
    pub position: usize,
    /// `[tokens, hidden]`.
    pub embeddings: Tensor,
    /// Grid (t, h, w) in patches.
    pub grid: (usize, usize, usize),
}

/// One sequence's part of a step.
pub struct BatchRow<'a, S> {
    /// State as it was before the step.
    pub state: &'a mut S,
    /// First token in [`Batch::tokens`].
    pub offset: usize,
    /// Number of tokens.
    pub len: usize,
    /// Tokens the sequence holds before this step.
    pub position: usize,
    /// Images that overlap these tokens.
    pub images: Vec<ImageSpan>,
}

/// One step: tokens of several sequences side by side.
pub struct Batch<'a, S> {
    /// Tokens of all rows.
    pub tokens: &'a [u32],
    /// The sequences.
    pub rows: Vec<BatchRow<'a, S>>,
    /// Indices into `tokens` whose logits are wanted, ascending; may be empty.
    pub logits_of: Vec<u32>,
    /// Polled between layers.
    pub cancel: Cancel<'a>,
}

/// A model without its plumbing.
pub trait Decoder: Send {
    /// What one sequence keeps between steps.
    type State: crate::sequences::SequenceState;
    /// State of an empty sequence.
    fn new_state(&self) -> Self::State;
    /// One forward pass; commits every row's state. Returns f32 logits `[logits_of.len(), vocab]`
    /// (anything with zero rows when none are wanted).
    fn forward(&self, batch: &mut Batch<'_, Self::State>, trace: &Trace) -> Result<Tensor>;
}
