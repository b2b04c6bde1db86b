//! A loaded model. Dropping it unloads it.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::AtomicU32;

use plugin_abi::arch::{self, ArchitecturesRef, ModelInfo, ModelStats, Step, StepResult};
use plugin_abi::{Failure, Handle, Slice, SliceMut};

use crate::error::{PluginError, check};
use crate::plugin::Plugin;
use crate::step::{ImageSpan, Row, StepOutput};

/// Names a sequence of one model. An id of a freed sequence names nothing, ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub(crate) u64);

impl SequenceId {
    /// The bare number, for logs and for ids that travel elsewhere.
    pub fn get(self) -> u64 {
        self.0
    }

    /// An id from its number. A number that names no sequence is refused by the plugin, call by call.
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }
}

/// Names an encoded image of one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageId(pub(crate) u64);

impl ImageId {
    /// The bare number, for logs and for ids that travel elsewhere.
    pub fn get(self) -> u64 {
        self.0
    }

    /// An id from its number. A number that names no image is refused by the plugin, call by call.
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }
}

/// An image turned into embeddings, which stay with the model until `image_free`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodedImage {
    /// Names it in an [`ImageSpan`].
    pub image: ImageId,
    /// Tokens it takes in a prompt.
    pub token_count: u32,
    /// Memory it holds.
    pub bytes: u64,
}

/// One rank of a loaded model. One thread uses it at a time; dropping it unloads it.
#[derive(Debug)]
pub struct Model {
    plugin: Plugin,
    verbs: Verbs,
    info: ModelInfo,
    writes: bool,
    /// The ABI allows one call at a time: a `Model` may move between threads but not be shared.
    not_shared: PhantomData<Cell<()>>,
}

struct Verbs(ArchitecturesRef);

impl std::fmt::Debug for Verbs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verbs")
    }
}

impl Model {
    pub(crate) fn new(plugin: Plugin, verbs: ArchitecturesRef, info: ModelInfo, writes: bool) -> Self {
        Self { plugin, verbs: Verbs(verbs), info, writes, not_shared: PhantomData }
    }

    fn handle(&self) -> Handle {
        Handle(self.info.handle)
    }

    /// The plugin this model came from.
    pub fn plugin(&self) -> Plugin {
        self.plugin
    }

    /// What the model turned out to be.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// A sequence with no tokens.
    ///
    /// # Errors
    /// `OutOfMemory` when there is no room for another.
    pub fn sequence_new(&mut self) -> Result<SequenceId, PluginError> {
        let (mut sequence, mut failure) = (0, Failure::NONE);
        // SAFETY: the handle is live; both pointers are valid for the call.
        let code = unsafe { (self.verbs.0.sequence_new())(self.handle(), &mut sequence, &mut failure) };
        check(code, &failure).map(|()| SequenceId(sequence))
    }

    /// Drops a sequence. An id that names none is ignored.
    pub fn sequence_free(&mut self, sequence: SequenceId) {
        // SAFETY: the handle is live.
        unsafe { (self.verbs.0.sequence_free())(self.handle(), sequence.0) };
    }

    /// A second sequence that holds the first `length` tokens of `sequence`.
    ///
    /// # Errors
    /// `InvalidInput` when the sequence is shorter, `Unsupported` when `length` is not where it stands and
    /// [`ModelInfo::fork_any_length`] is 0, `OutOfMemory`.
    pub fn fork(&mut self, sequence: SequenceId, length: u32) -> Result<SequenceId, PluginError> {
        let (mut forked, mut failure) = (0, Failure::NONE);
        // SAFETY: the handle is live; both pointers are valid for the call.
        let code =
            unsafe { (self.verbs.0.fork())(self.handle(), sequence.0, length, &mut forked, &mut failure) };
        check(code, &failure).map(|()| SequenceId(forked))
    }

    /// Drops all tokens of a sequence after the first `length`.
    ///
    /// # Errors
    /// As [`Model::fork`].
    pub fn trim(&mut self, sequence: SequenceId, length: u32) -> Result<(), PluginError> {
        let mut failure = Failure::NONE;
        // SAFETY: the handle is live; the pointer is valid for the call.
        let code = unsafe { (self.verbs.0.trim())(self.handle(), sequence.0, length, &mut failure) };
        check(code, &failure)
    }

    /// Bytes of state a sequence holds; memory shared with a fork counts once for each. 0 for an id that
    /// names none.
    pub fn sequence_bytes(&self, sequence: SequenceId) -> u64 {
        // SAFETY: the handle is live.
        unsafe { (self.verbs.0.sequence_bytes())(self.handle(), sequence.0) }
    }

    /// One forward pass over `rows`, which refer to `tokens` and `images` by range. `cancel` turns non-zero
    /// when the step should be given up. A row may fail alone: see [`StepOutput::error`].
    ///
    /// # Errors
    /// The whole batch failed, and `output` holds nothing. After `Cancelled` the batch's sequences can only be
    /// freed; after `Internal` the model may refuse every later call.
    pub fn step(
        &mut self,
        rows: &[Row],
        tokens: &[u32],
        images: &[ImageSpan],
        cancel: &AtomicU32,
        output: &mut StepOutput,
    ) -> Result<(), PluginError> {
        output.prepare(rows, images, tokens.len(), self.info.vocab_size as usize, self.writes);
        let lent = output.lend();
        let step = Step {
            rows: Slice::new(lent.rows),
            tokens: Slice::new(tokens),
            images: Slice::new(lent.spans),
            cancel: cancel.as_ptr(),
            extension: std::ptr::null(),
        };
        let mut result = StepResult {
            rows: SliceMut::new(lent.results),
            logits: SliceMut::new(lent.logits),
            tokens: SliceMut::new(lent.tokens),
            extension: std::ptr::null_mut(),
        };
        let mut failure = Failure::NONE;
        // SAFETY: the handle is live and `&mut self` makes this the only call; inputs and lent memory are
        // valid for the call and do not overlap.
        let code = unsafe { (self.verbs.0.step())(self.handle(), &step, &mut result, &mut failure) };
        let outcome = check(code, &failure);
        match outcome {
            Ok(()) => output.keep_messages(&failure),
            Err(_) => output.forget(),
        }
        outcome
    }

    /// Tokens an image of this size will take.
    ///
    /// # Errors
    /// `InvalidInput` naming the limit it breaks, `Unsupported` without vision.
    pub fn image_measure(&self, width: u32, height: u32) -> Result<u32, PluginError> {
        let (mut count, mut failure) = (0, Failure::NONE);
        // SAFETY: the handle is live; both pointers are valid for the call.
        let code =
            unsafe { (self.verbs.0.image_measure())(self.handle(), width, height, &mut count, &mut failure) };
        check(code, &failure).map(|()| count)
    }

    /// Runs the vision tower over one image: `width * height * 3` bytes of RGB, row-major, no padding. With
    /// several ranks it is called on all of them.
    ///
    /// # Errors
    /// `InvalidInput` naming the limit it breaks, `Unsupported` without vision, `OutOfMemory`.
    pub fn image_encode(&mut self, width: u32, height: u32, rgb: &[u8]) -> Result<EncodedImage, PluginError> {
        let image = arch::Image { width, height, rgb: Slice::new(rgb) };
        let (mut encoded, mut failure) = (arch::EncodedImage::default(), Failure::NONE);
        // SAFETY: the handle is live; all pointers and the pixels are valid for the call.
        let code =
            unsafe { (self.verbs.0.image_encode())(self.handle(), &image, &mut encoded, &mut failure) };
        check(code, &failure).map(|()| EncodedImage {
            image: ImageId(encoded.image),
            token_count: encoded.token_count,
            bytes: encoded.bytes,
        })
    }

    /// Drops an encoded image. An id that names none is ignored.
    pub fn image_free(&mut self, image: ImageId) {
        // SAFETY: the handle is live.
        unsafe { (self.verbs.0.image_free())(self.handle(), image.0) };
    }

    /// What the model holds right now; all zero once it refuses calls.
    pub fn stats(&self) -> ModelStats {
        let mut stats = ModelStats::default();
        // SAFETY: the handle is live; the pointer is valid for the call.
        unsafe { (self.verbs.0.stats())(self.handle(), &mut stats) };
        stats
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: the handle is live and named by nobody after this.
        unsafe { (self.verbs.0.unload())(self.handle()) };
    }
}
