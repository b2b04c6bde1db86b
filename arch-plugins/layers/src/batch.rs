//! What a decoder is handed for one step, and what a decoder is.

use std::sync::Arc;

use candle_core::Tensor;

use crate::comm::Communicator;
use crate::error::{Error, Result};
use crate::sequences::SequenceState;
use crate::trace::Trace;

/// The host's wish to give the step up, polled between layers.
///
/// With several ranks the wish is put to all of them, so that none waits for one that has stopped.
#[derive(Clone, Copy, Default)]
pub struct Cancel<'a> {
    wish: Option<&'a dyn Fn() -> bool>,
    comm: Option<&'a Arc<dyn Communicator>>,
}

impl<'a> Cancel<'a> {
    /// Nobody cancels.
    pub fn never() -> Self {
        Self::default()
    }

    /// `wish` says whether to stop; `comm` are the ranks that stop together.
    pub fn when(wish: &'a dyn Fn() -> bool, comm: &'a Arc<dyn Communicator>) -> Self {
        Self { wish: Some(wish), comm: Some(comm) }
    }

    /// `Err(Cancelled)` once the host wants to stop.
    pub fn check(&self) -> Result<()> {
        let Some(wish) = self.wish else { return Ok(()) };
        let stop = match self.comm {
            Some(comm) => comm.polled(wish())?,
            None => wish(),
        };
        if stop { Err(Error::Cancelled) } else { Ok(()) }
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

/// An image turned into embeddings.
#[derive(Debug, Clone)]
pub struct EncodedImage {
    /// `[tokens, hidden]`.
    pub embeddings: Tensor,
    /// Grid (t, h, w) in patches.
    pub grid: (usize, usize, usize),
}

/// A model without its plumbing.
pub trait Decoder: Send {
    /// What one sequence keeps between steps.
    type State: SequenceState;

    /// State of an empty sequence.
    fn new_state(&self) -> Self::State;

    /// One forward pass; commits every row's state. Gives f32 logits `[logits_of.len(), vocab]`; when none
    /// are wanted, anything.
    fn forward(&self, batch: &mut Batch<'_, Self::State>, trace: &Trace) -> Result<Tensor>;

    /// Tokens an image of this size takes, or [`Error::InvalidInput`] naming the limit it breaks.
    fn measure_image(&self, width: usize, height: usize) -> Result<usize> {
        let _ = (width, height);
        Err(Error::Unsupported("this model does not take images".into()))
    }

    /// Runs the vision tower over one image of 8-bit RGB, row-major.
    fn encode_image(&self, width: usize, height: usize, rgb: &[u8]) -> Result<EncodedImage> {
        let _ = (width, height, rgb);
        Err(Error::Unsupported("this model does not take images".into()))
    }
}
