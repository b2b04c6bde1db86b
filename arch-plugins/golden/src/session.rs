//! One sequence driven directly, without an engine.

use candle_core::Tensor;
use layers::batch::{Batch, BatchRow, Cancel, Decoder, ImageSpan};
use layers::sequences::SequenceState;
use layers::trace::Trace;

/// What is fed at once.
#[derive(Clone, Copy)]
pub struct Tokens<'a> {
    /// Token ids.
    pub ids: &'a [u32],
    /// All images of the sequence; those that do not overlap `ids` are left out.
    pub images: &'a [ImageSpan],
}

impl<'a> From<&'a [u32]> for Tokens<'a> {
    fn from(ids: &'a [u32]) -> Self {
        Self { ids, images: &[] }
    }
}

impl<'a> From<&'a Vec<u32>> for Tokens<'a> {
    fn from(ids: &'a Vec<u32>) -> Self {
        Self { ids, images: &[] }
    }
}

/// A sequence of a decoder.
pub struct Session<'d, D: Decoder> {
    decoder: &'d D,
    /// Its state, for tests that want to look at it or spoil it.
    pub state: D::State,
}

impl<'d, D: Decoder> Session<'d, D> {
    /// An empty sequence.
    pub fn new(decoder: &'d D) -> Self {
        Self { decoder, state: decoder.new_state() }
    }

    /// A second sequence that goes on from here.
    pub fn fork(&self) -> Self {
        let state = self.state.fork(self.state.len()).expect("a sequence forks where it stands");
        Self { decoder: self.decoder, state }
    }

    /// Feeds tokens; logits of every one of them.
    pub fn all<'a>(&mut self, tokens: impl Into<Tokens<'a>>) -> Vec<Vec<f32>> {
        let tokens = tokens.into();
        self.feed(tokens, (0..tokens.ids.len() as u32).collect(), &Trace::off())
    }

    /// Feeds tokens; logits of the last.
    pub fn last<'a>(&mut self, tokens: impl Into<Tokens<'a>>) -> Vec<f32> {
        let tokens = tokens.into();
        let rows = self.feed(tokens, vec![tokens.ids.len() as u32 - 1], &Trace::off());
        rows.into_iter().next().expect("one row was asked for")
    }

    /// Feeds tokens and keeps every intermediate.
    pub fn traced<'a>(&mut self, tokens: impl Into<Tokens<'a>>) -> Vec<(String, Tensor)> {
        let (tokens, trace) = (tokens.into(), Trace::on());
        self.feed(tokens, vec![tokens.ids.len() as u32 - 1], &trace);
        trace.into_taps()
    }

    fn feed(&mut self, tokens: Tokens<'_>, logits_of: Vec<u32>, trace: &Trace) -> Vec<Vec<f32>> {
        let position = self.state.len();
        let end = position + tokens.ids.len();
        let overlaps = |image: &&ImageSpan| {
            let count = image.embeddings.dim(0).expect("rows of embeddings");
            image.position < end && image.position + count > position
        };
        let images = tokens.images.iter().filter(overlaps).cloned().collect();
        let row = BatchRow { state: &mut self.state, offset: 0, len: tokens.ids.len(), position, images };
        let mut batch = Batch { tokens: tokens.ids, rows: vec![row], logits_of, cancel: Cancel::never() };
        let logits = self.decoder.forward(&mut batch, trace).expect("the step succeeds");
        logits.to_vec2().expect("logits are f32 rows")
    }
}
