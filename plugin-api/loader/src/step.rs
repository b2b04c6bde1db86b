//! One forward pass over one batch, as the host sees it.

use std::ops::Range;

use plugin_abi::arch::{self, RowResult, Want};
use plugin_abi::{Code, Failure};

use crate::error::{ErrorKind, PluginError};
use crate::model::{ImageId, SequenceId};

/// One sequence's part of a step. A sequence occurs at most once in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The sequence to advance.
    pub sequence: SequenceId,
    /// Tokens it holds before this step, as the host believes.
    pub position: u32,
    /// Which of the step's tokens to feed; at least one.
    pub tokens: Range<u32>,
    /// What comes back.
    pub want: Want,
    /// Which of the step's images overlap these tokens.
    pub images: Range<u32>,
}

/// An encoded image's place in a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageSpan {
    /// From `Model::image_encode`.
    pub image: ImageId,
    /// Position of its first token in the sequence.
    pub position: u32,
    /// Number of its tokens.
    pub token_count: u32,
}

/// Results of a step. Reused from step to step, so that a step allocates nothing once it has grown.
#[derive(Debug, Default)]
pub struct StepOutput {
    vocab: usize,
    rows: Vec<arch::Row>,
    spans: Vec<arch::ImageSpan>,
    results: Vec<RowResult>,
    logits: Vec<f32>,
    tokens: Vec<u32>,
    messages: String,
}

impl StepOutput {
    /// Logits of a row of the step, row-major `[n, vocab]`: one row for [`Want::LAST`], one per token for
    /// [`Want::ALL`], none otherwise, for a failed row, and on ranks other than 0.
    pub fn logits(&self, row: usize) -> &[f32] {
        let Some(place) = self.place(row) else { return &[] };
        let start = place.output as usize * self.vocab;
        self.logits.get(start..start + logits_rows(place.want, place.token_count) * self.vocab).unwrap_or(&[])
    }

    /// As [`StepOutput::logits`], to be changed in place by a sampler.
    pub fn logits_mut(&mut self, row: usize) -> &mut [f32] {
        let Some(place) = self.place(row).copied() else { return &mut [] };
        let start = place.output as usize * self.vocab;
        let length = logits_rows(place.want, place.token_count) * self.vocab;
        self.logits.get_mut(start..start + length).unwrap_or(&mut [])
    }

    /// Exchanges the memory for logits with the host's own, so that a host can keep them without a copy. After
    /// a step it holds the rows that asked for any, in order, failed ones included.
    pub fn exchange_logits(&mut self, logits: &mut Vec<f32>) {
        std::mem::swap(&mut self.logits, logits);
    }

    /// The likeliest next token of a row that asked for [`Want::TOKEN`].
    pub fn token(&self, row: usize) -> Option<u32> {
        let place = self.place(row)?;
        if place.want == Want::TOKEN { self.tokens.get(place.output as usize).copied() } else { None }
    }

    /// Why a row failed alone; its sequence is then as it was before the step.
    pub fn error(&self, row: usize) -> Option<PluginError> {
        let code = self.results.get(row)?.code;
        if code == Code::OK {
            return None;
        }
        // The sentences of failed rows come one a line, in the rows' order.
        let earlier = self.results[..row].iter().filter(|result| result.code != Code::OK).count();
        let message = self.messages.lines().nth(earlier).filter(|line| !line.is_empty());
        Some(PluginError::new(
            ErrorKind::of(code),
            message.unwrap_or("the row failed; the reason did not fit"),
        ))
    }

    /// Number of rows of the last step.
    pub fn len(&self) -> usize {
        self.results.len()
    }

    /// Whether there was no row.
    pub fn is_empty(&self) -> bool {
        self.results.is_empty()
    }

    /// The place of a row that succeeded.
    fn place(&self, row: usize) -> Option<&arch::Row> {
        if self.results.get(row)?.code == Code::OK { self.rows.get(row) } else { None }
    }

    /// Lays out memory for the rows' results, which refer to `fed` tokens. `writes` is false on ranks other than
    /// 0. A row that refers to more will be refused by the plugin: no memory is laid out for it.
    pub(crate) fn prepare(
        &mut self,
        rows: &[Row],
        images: &[ImageSpan],
        fed: usize,
        vocab: usize,
        writes: bool,
    ) {
        self.vocab = vocab;
        let (mut logits, mut tokens) = (0u32, 0u32);
        self.rows.clear();
        for row in rows {
            let token_count = row.tokens.end.saturating_sub(row.tokens.start);
            let output = if row.want == Want::TOKEN { tokens } else { logits };
            if row.want == Want::TOKEN {
                tokens += 1;
            } else if row.tokens.end as usize <= fed {
                logits = logits.saturating_add(logits_rows(row.want, token_count) as u32);
            }
            self.rows.push(arch::Row {
                sequence: row.sequence.0,
                position: row.position,
                token_offset: row.tokens.start,
                token_count,
                want: row.want,
                output,
                image_offset: row.images.start,
                image_count: row.images.end.saturating_sub(row.images.start),
                reserved: 0,
            });
        }
        self.spans.clear();
        self.spans.extend(images.iter().map(|span| arch::ImageSpan {
            image: span.image.0,
            position: span.position,
            token_count: span.token_count,
        }));
        self.results.clear();
        self.results.resize(rows.len(), RowResult { code: Code::OK, reserved: 0 });
        self.logits.resize(if writes { logits as usize * vocab } else { 0 }, 0.0);
        self.tokens.clear();
        self.tokens.resize(if writes { tokens as usize } else { 0 }, 0);
        self.messages.clear();
    }

    /// The step's inputs and the memory for its results, lent to the plugin.
    pub(crate) fn lend(&mut self) -> Lent<'_> {
        Lent {
            rows: &self.rows,
            spans: &self.spans,
            results: &mut self.results,
            logits: &mut self.logits,
            tokens: &mut self.tokens,
        }
    }

    pub(crate) fn keep_messages(&mut self, failure: &Failure) {
        if failure.message_len != 0 {
            self.messages.push_str(&failure.text());
        }
    }

    /// Nothing of this step is to be read.
    pub(crate) fn forget(&mut self) {
        self.rows.clear();
        self.results.clear();
        self.logits.clear();
        self.tokens.clear();
    }
}

/// What [`StepOutput::lend`] hands out.
pub(crate) struct Lent<'a> {
    pub(crate) rows: &'a [arch::Row],
    pub(crate) spans: &'a [arch::ImageSpan],
    pub(crate) results: &'a mut [RowResult],
    pub(crate) logits: &'a mut [f32],
    pub(crate) tokens: &'a mut [u32],
}

/// Rows of logits that come back for so many tokens.
fn logits_rows(want: Want, token_count: u32) -> usize {
    match want {
        Want::LAST => 1,
        Want::ALL => token_count as usize,
        _ => 0,
    }
}
