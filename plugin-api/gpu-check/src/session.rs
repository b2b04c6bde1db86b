//! One sequence of a loaded model, driven without an engine.

use std::sync::atomic::AtomicU32;

use anyhow::{Result, anyhow};
use plugin_loader::{ImageSpan, Model, Row, SequenceId, StepOutput, Want};

/// A sequence. It ends with [`Session::end`]: dropping it leaves the sequence with the model.
pub struct Session<'m> {
    model: &'m mut Model,
    sequence: SequenceId,
    position: u32,
    output: StepOutput,
}

impl<'m> Session<'m> {
    /// An empty one.
    pub fn new(model: &'m mut Model) -> Result<Self> {
        let sequence = model.sequence_new()?;
        Ok(Self { model, sequence, position: 0, output: StepOutput::default() })
    }

    /// Feeds tokens; logits of the last.
    pub fn last(&mut self, tokens: &[u32], images: &[ImageSpan]) -> Result<Vec<f32>> {
        self.feed(tokens, images, Want::LAST)
    }

    /// Feeds tokens; logits of every one, row by row.
    pub fn all(&mut self, tokens: &[u32], images: &[ImageSpan]) -> Result<Vec<f32>> {
        self.feed(tokens, images, Want::ALL)
    }

    fn feed(&mut self, tokens: &[u32], images: &[ImageSpan], want: Want) -> Result<Vec<f32>> {
        let end = self.position + tokens.len() as u32;
        let overlaps =
            |image: &&ImageSpan| image.position < end && image.position + image.token_count > self.position;
        let images: Vec<ImageSpan> = images.iter().filter(overlaps).copied().collect();
        let row = Row {
            sequence: self.sequence,
            position: self.position,
            tokens: 0..tokens.len() as u32,
            want,
            images: 0..images.len() as u32,
        };
        self.model.step(&[row], tokens, &images, &AtomicU32::new(0), &mut self.output)?;
        if let Some(error) = self.output.error(0) {
            return Err(anyhow!("the row failed: {error}"));
        }
        self.position = end;
        Ok(self.output.logits(0).to_vec())
    }

    /// Gives the sequence back.
    pub fn end(self) {
        self.model.sequence_free(self.sequence);
    }
}

/// Index of the largest logit.
pub fn likeliest(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(index, _)| index as u32)
}
