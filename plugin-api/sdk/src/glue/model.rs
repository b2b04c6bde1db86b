//! A loaded model with its types erased, and the sequences and images that belong to it.

use std::sync::atomic::AtomicU32;

use plugin_abi::arch::{EncodedImage, ModelInfo, ModelStats, Row, RowResult, Step, Want};
use plugin_abi::{Code, Failure};

use super::budget::Budget;
use super::slab::Slab;
use crate::arch::{Batch, BatchRow, Encoded, ImageView, Model, RowImage};
use crate::error::{Error, Result};

/// The lent memory of a step's results, as slices.
pub struct Outputs<'a> {
    pub(crate) rows: &'a mut [RowResult],
    pub(crate) logits: &'a mut [f32],
    pub(crate) tokens: &'a mut [u32],
}

/// The verbs of one model, types erased.
pub trait ErasedModel {
    #[doc(hidden)]
    fn info(&self) -> ModelInfo;
    #[doc(hidden)]
    fn sequence_new(&mut self) -> Result<u64>;
    #[doc(hidden)]
    fn sequence_free(&mut self, id: u64);
    #[doc(hidden)]
    fn fork(&mut self, id: u64, length: usize) -> Result<u64>;
    #[doc(hidden)]
    fn trim(&mut self, id: u64, length: usize) -> Result<()>;
    #[doc(hidden)]
    fn sequence_bytes(&self, id: u64) -> u64;
    #[doc(hidden)]
    fn step(&mut self, step: &StepView<'_>, outputs: Outputs<'_>, failure: &mut Failure) -> Result<()>;
    #[doc(hidden)]
    fn image_measure(&self, width: usize, height: usize) -> Result<usize>;
    #[doc(hidden)]
    fn image_encode(&mut self, image: ImageView<'_>) -> Result<EncodedImage>;
    #[doc(hidden)]
    fn image_free(&mut self, id: u64);
    #[doc(hidden)]
    fn stats(&self) -> ModelStats;
}

/// A step's inputs, as slices.
pub struct StepView<'a> {
    pub(crate) rows: &'a [Row],
    pub(crate) tokens: &'a [u32],
    pub(crate) images: &'a [plugin_abi::arch::ImageSpan],
    pub(crate) cancel: Option<&'a AtomicU32>,
}

impl StepView<'_> {
    /// # Safety
    /// The host's slices and cancel word must be valid for `'a`.
    pub(crate) unsafe fn new<'a>(step: &Step) -> StepView<'a> {
        // SAFETY: the caller passes on the host's promise.
        unsafe {
            StepView {
                rows: step.rows.as_slice(),
                tokens: step.tokens.as_slice(),
                images: step.images.as_slice(),
                cancel: step.cancel.cast::<AtomicU32>().as_ref(),
            }
        }
    }
}

/// A model and what belongs to it.
pub(crate) struct Sequences<M: Model> {
    model: M,
    sequences: Slab<M::Sequence>,
    images: Slab<Encoded<M::Image>>,
    /// Logits of rows that want only a token.
    scratch: Vec<f32>,
    budget: Budget,
}

impl<M: Model> Sequences<M> {
    pub(crate) fn new(model: M, budget: Budget) -> Self {
        Self { model, sequences: Slab::new(), images: Slab::new(), scratch: Vec::new(), budget }
    }

    /// Bytes all sequences hold; not asked when there is no budget.
    fn used(&self) -> u64 {
        if !self.budget.is_limited() {
            return 0;
        }
        self.sequences.iter().map(|sequence| self.model.bytes(sequence)).sum()
    }

    fn find(&self, id: u64) -> Result<&M::Sequence> {
        self.sequences.get(id).ok_or_else(|| no_sequence(id))
    }

    fn check_length(&self, id: u64, length: usize) -> Result<()> {
        let held = self.model.length(self.find(id)?);
        if length > held {
            return Err(Error::InvalidInput(format!("the sequence holds {held} tokens, not {length}")));
        }
        if length != held && !self.model.info().fork_any_length {
            return Err(Error::Unsupported(format!(
                "this architecture's state cannot be cut back from {held} to {length} tokens; \
                 fork where the sequence stands"
            )));
        }
        Ok(())
    }

    /// Takes the row's sequence out of the slab if the row is sound.
    fn admit(&mut self, row: &Row, step: &StepView<'_>, used: &mut u64) -> Result<M::Sequence> {
        let info = self.model.info();
        if row.want.0 > Want::TOKEN.0 {
            return Err(Error::InvalidInput(format!(
                "this plugin does not know what want {} is",
                row.want.0
            )));
        }
        let tokens = slice(step.tokens, row.token_offset, row.token_count)
            .ok_or_else(|| Error::InvalidInput("the row's tokens lie outside the step's".into()))?;
        if tokens.is_empty() {
            return Err(Error::InvalidInput("a row must feed at least one token".into()));
        }
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= info.vocab_size) {
            return Err(Error::InvalidInput(format!(
                "token id {token} is outside the vocabulary of {}",
                info.vocab_size
            )));
        }
        let spans = slice(step.images, row.image_offset, row.image_count)
            .ok_or_else(|| Error::InvalidInput("the row's images lie outside the step's".into()))?;
        for span in spans {
            let known = self
                .images
                .get(span.image)
                .ok_or_else(|| Error::InvalidInput(format!("image {:#x} does not exist", span.image)))?;
            if known.tokens != span.token_count as usize {
                return Err(Error::InvalidInput(format!(
                    "the image takes {} tokens, not {}",
                    known.tokens, span.token_count
                )));
            }
        }
        let held = self.model.length(self.find(row.sequence)?);
        if held != row.position as usize {
            return Err(Error::InvalidInput(format!(
                "the sequence holds {held} tokens, the host believes {}",
                row.position
            )));
        }
        if held + tokens.len() > info.max_context {
            return Err(Error::InvalidInput(format!(
                "{} tokens exceed the context of {}",
                held + tokens.len(),
                info.max_context
            )));
        }
        if self.budget.is_limited() {
            let bytes = self.model.bytes(self.find(row.sequence)?);
            self.budget.take(used, self.budget.growth(bytes, held + tokens.len()))?;
        }
        self.sequences.take(row.sequence).ok_or_else(|| no_sequence(row.sequence))
    }
}

fn no_sequence(id: u64) -> Error {
    Error::InvalidInput(format!("sequence {id:#x} does not exist, or occurs twice in the step"))
}

fn slice<T>(items: &[T], offset: u32, count: u32) -> Option<&[T]> {
    items.get(offset as usize..(offset as usize).checked_add(count as usize)?)
}

/// Rows of logits a row asks for.
fn logits_rows(row: &Row) -> usize {
    match row.want {
        Want::LAST => 1,
        Want::ALL => row.token_count as usize,
        _ => 0,
    }
}

/// Hands each row its own part of the lent logits; rows must ask in ascending order.
struct Lender<'a> {
    rest: &'a mut [f32],
    offset: usize,
    vocab: usize,
}

impl<'a> Lender<'a> {
    fn lend(&mut self, row: &Row) -> Result<&'a mut [f32]> {
        let rows = logits_rows(row);
        if rows == 0 || (self.rest.is_empty() && self.offset == 0) {
            return Ok(&mut []); // nothing wanted, or a rank that writes nothing
        }
        let start = (row.output as usize * self.vocab).checked_sub(self.offset);
        let length = rows * self.vocab;
        match start {
            Some(start) if start + length <= self.rest.len() => {
                let rest = std::mem::take(&mut self.rest);
                let (mine, rest) = rest[start..].split_at_mut(length);
                self.offset += start + length;
                self.rest = rest;
                Ok(mine)
            }
            _ => Err(Error::InvalidInput(
                "the rows' logits overlap, descend, or reach beyond the lent memory".into(),
            )),
        }
    }
}

impl<M: Model> ErasedModel for Sequences<M> {
    fn info(&self) -> ModelInfo {
        let info = self.model.info();
        ModelInfo {
            handle: 0,
            vocab_size: info.vocab_size as u32,
            max_context: info.max_context as u32,
            image_token: info.image_token.unwrap_or(u32::MAX),
            fork_any_length: u32::from(info.fork_any_length),
            max_row_tokens: 0,
            reserved: 0,
            weight_bytes: info.weight_bytes,
        }
    }

    fn sequence_new(&mut self) -> Result<u64> {
        let sequence = self.model.sequence()?;
        Ok(self.sequences.insert(sequence))
    }

    fn sequence_free(&mut self, id: u64) {
        self.sequences.remove(id);
    }

    fn fork(&mut self, id: u64, length: usize) -> Result<u64> {
        self.check_length(id, length)?;
        let mut used = self.used();
        let sequence = self.sequences.get(id).ok_or_else(|| no_sequence(id))?;
        self.budget.take(&mut used, self.budget.growth(0, length))?;
        let forked = self.model.fork(sequence, length)?;
        Ok(self.sequences.insert(forked))
    }

    fn trim(&mut self, id: u64, length: usize) -> Result<()> {
        self.check_length(id, length)?;
        let sequence = self.sequences.get_mut(id).ok_or_else(|| no_sequence(id))?;
        self.model.trim(sequence, length)
    }

    fn sequence_bytes(&self, id: u64) -> u64 {
        self.sequences.get(id).map_or(0, |sequence| self.model.bytes(sequence))
    }

    fn step(&mut self, step: &StepView<'_>, outputs: Outputs<'_>, failure: &mut Failure) -> Result<()> {
        let vocab = self.model.info().vocab_size;
        let writes = !outputs.logits.is_empty() || !outputs.tokens.is_empty();
        let mut errors: Vec<Option<Error>> = Vec::with_capacity(step.rows.len());
        let mut taken: Vec<Option<M::Sequence>> = Vec::with_capacity(step.rows.len());
        let mut used = self.used();
        for row in step.rows {
            let admitted = self.admit(row, step, &mut used);
            errors.push(admitted.as_ref().err().cloned());
            taken.push(admitted.ok());
        }
        let chooses = self.model.chooses_tokens();
        let scratch_rows = |row: &&Row| row.want == Want::TOKEN && !chooses;
        let token_rows = step.rows.iter().filter(scratch_rows).count();
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(if writes { token_rows * vocab } else { 0 }, 0.0);

        let mut lender = Lender { rest: outputs.logits, offset: 0, vocab };
        let mut scratch_rows = scratch.chunks_exact_mut(vocab.max(1));
        let mut rows = Vec::with_capacity(step.rows.len());
        let mut admitted = Vec::with_capacity(step.rows.len());
        for (index, (row, sequence)) in step.rows.iter().zip(&mut taken).enumerate() {
            let Some(sequence) = sequence else { continue };
            let lent = match row.want {
                Want::TOKEN if !chooses => Ok(scratch_rows.next().unwrap_or(&mut [])),
                _ => lender.lend(row),
            };
            let logits = match lent {
                Ok(logits) => logits,
                Err(error) => {
                    errors[index] = Some(error);
                    continue;
                }
            };
            let spans = slice(step.images, row.image_offset, row.image_count).unwrap_or(&[]);
            let images = spans
                .iter()
                .filter_map(|span| {
                    Some(RowImage {
                        image: &self.images.get(span.image)?.image,
                        position: span.position as usize,
                        tokens: span.token_count as usize,
                    })
                })
                .collect();
            admitted.push(index);
            rows.push(BatchRow {
                sequence,
                position: row.position as usize,
                tokens: slice(step.tokens, row.token_offset, row.token_count).unwrap_or(&[]),
                want: if row.want == Want::TOKEN && !chooses { Want::LAST } else { row.want },
                images,
                logits,
                token: None,
                error: None,
            });
        }
        let mut batch = Batch { rows, cancel: step.cancel };
        let outcome = if batch.rows.is_empty() { Ok(()) } else { self.model.step(&mut batch) };
        for (row, &index) in batch.rows.iter_mut().zip(&admitted) {
            errors[index] = row.error.take();
            let wanted = &step.rows[index];
            if outcome.is_ok() && errors[index].is_none() && wanted.want == Want::TOKEN && writes {
                let token = if chooses { chosen(row.token) } else { likeliest(row.logits) };
                errors[index] = token.and_then(|token| store(token, outputs.tokens, wanted.output)).err();
            }
        }
        drop(batch);
        for (row, sequence) in step.rows.iter().zip(taken) {
            if let Some(sequence) = sequence {
                self.sequences.put_back(row.sequence, sequence);
            }
        }
        self.scratch = scratch;
        report(&errors, outputs.rows, failure);
        outcome
    }

    fn image_measure(&self, width: usize, height: usize) -> Result<usize> {
        self.model.measure_image(width, height)
    }

    fn image_encode(&mut self, image: ImageView<'_>) -> Result<EncodedImage> {
        let encoded = self.model.encode_image(image)?;
        let (token_count, bytes) = (encoded.tokens as u32, encoded.bytes);
        Ok(EncodedImage { image: self.images.insert(encoded), token_count, reserved: 0, bytes })
    }

    fn image_free(&mut self, id: u64) {
        self.images.remove(id);
    }

    fn stats(&self) -> ModelStats {
        ModelStats {
            sequences: self.sequences.iter().count() as u64,
            state_bytes: self.sequences.iter().map(|sequence| self.model.bytes(sequence)).sum(),
            images: self.images.iter().count() as u64,
            image_bytes: self.images.iter().map(|image| image.bytes).sum(),
            device_free_bytes: self.model.device_free_bytes(),
        }
    }
}

/// Index of the largest logit; the first of equals.
fn likeliest(logits: &[f32]) -> Result<u32> {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, &logit) in logits.iter().enumerate() {
        if logit > best.1 {
            best = (index, logit);
        }
    }
    if best.1 == f32::NEG_INFINITY {
        return Err(Error::Internal("no logit is a number".into()));
    }
    Ok(best.0 as u32)
}

/// What a model that chooses has chosen.
fn chosen(token: Option<u32>) -> Result<u32> {
    token.ok_or_else(|| Error::Internal("the model chooses tokens and chose none for a row".into()))
}

fn store(token: u32, tokens: &mut [u32], output: u32) -> Result<()> {
    let slot = tokens
        .get_mut(output as usize)
        .ok_or_else(|| Error::InvalidInput("the row's token lies beyond the lent memory".into()))?;
    *slot = token;
    Ok(())
}

/// Writes each row's code, and one line per failed row.
fn report(errors: &[Option<Error>], results: &mut [RowResult], failure: &mut Failure) {
    let mut lines = String::new();
    let mut first = None;
    for (error, result) in errors.iter().zip(results.iter_mut()) {
        result.code = error.as_ref().map_or(Code::OK, Error::code);
        if let Some(error) = error {
            lines.push_str(&error.message().replace('\n', " "));
            lines.push('\n');
            first.get_or_insert(result.code);
        }
    }
    if let Some(code) = first {
        failure.set(code, &lines, 0);
    }
}
