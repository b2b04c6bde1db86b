//! Writing a model architecture: [`Architecture`] loads, [`Model`] steps.

use std::any::Any;
use std::sync::atomic::{AtomicU32, Ordering};

use plugin_abi::arch::{DeviceInfo, WeightFormat};
pub use plugin_abi::arch::{Plan, Want};
use plugin_abi::host::{self, Phase};

use crate::error::{Error, Result};

/// What an architecture is called and can do.
#[derive(Debug, Clone, Copy)]
pub struct Description {
    /// Short name, e.g. `llama`.
    pub name: &'static str,
    /// Values of `model_type` in `config.json` this serves.
    pub model_types: &'static [&'static str],
    /// Values of `general.architecture` in a GGUF this serves.
    pub gguf_architectures: &'static [&'static str],
    /// Bits of [`plugin_abi::arch::capability`].
    pub capabilities: u64,
    /// Largest world size for tensor parallelism; 1 without it.
    pub max_world: u32,
}

/// Where a model's files are.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Container of the weights.
    pub format: WeightFormat,
    /// Text of `config.json`; empty for a GGUF.
    pub config: &'a str,
    /// Text of `preprocessor_config.json`; empty without one.
    pub preprocessor: &'a str,
    /// Absolute paths of the weight files, in shard order.
    pub files: &'a [&'a str],
}

/// How a model is to be loaded.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// Device of this rank.
    pub device: DeviceInfo,
    /// `auto`, `f32`, `f16` or `bf16`.
    pub dtype: &'a str,
    /// Quantization applied while loading: empty, `q8_0`, `q6k`, `q5k`, `q4k` or `q4_0`.
    pub quantize: &'a str,
    /// This rank.
    pub rank: usize,
    /// Number of ranks; 1 without tensor parallelism.
    pub world: usize,
    /// Equal on all ranks of one model.
    pub communicator: &'a [u8; 128],
    /// Most tokens in one sequence.
    pub max_context: usize,
    /// Most live sequences.
    pub max_sequences: usize,
    /// Most tokens in one step, over all rows.
    pub max_step_tokens: usize,
    /// Threads this rank may keep busy.
    pub threads: usize,
    /// Budget for all sequences' state in bytes; 0 means no limit of the host's. The SDK keeps to it, going by
    /// [`Architecture::plan`] and [`Model::bytes`].
    pub state_bytes: u64,
    /// Options of this architecture as a JSON object, or empty. Unknown keys are to be refused.
    pub options: &'a str,
}

/// Reports how far a load has come, and learns whether to go on.
pub struct Progress<'a>(pub(crate) Option<&'a host::Progress>);

impl Progress<'_> {
    /// For tests: reports to nobody, never cancels.
    pub const SILENT: Progress<'static> = Progress(None);

    /// `done` of `total` bytes of a phase. [`Error::Cancelled`] when the load should be given up.
    pub fn report(&self, phase: Phase, done: u64, total: u64) -> Result<()> {
        let Some(progress) = self.0 else { return Ok(()) };
        // SAFETY: the host keeps context and callback valid for the load this was lent to.
        let stop = unsafe { (progress.report)(progress.context, phase, done, total) };
        if stop == 0 { Ok(()) } else { Err(Error::Cancelled) }
    }
}

/// What a model turned out to be once loaded.
#[derive(Debug, Clone, Copy)]
pub struct Loaded {
    /// Size of a row of logits.
    pub vocab_size: usize,
    /// Most tokens a sequence may have.
    pub max_context: usize,
    /// Token id that stands for an image in a prompt.
    pub image_token: Option<u32>,
    /// Whether `fork` and `trim` work at any earlier length of a sequence (a pure KV cache), or only where
    /// it stands now (recurrent state).
    pub fork_any_length: bool,
    /// Bytes of weights this rank holds.
    pub weight_bytes: u64,
}

/// Groups of ranks named so far. Its address tells this copy of the plugin from others.
static GROUPS: AtomicU32 = AtomicU32::new(1);

/// Marks a name that says which copy gave it.
const MARK: &[u8; 4] = b"copy";

fn this_copy() -> [u8; 8] {
    (&raw const GROUPS as u64).to_le_bytes()
}

/// Ranks meet inside one copy of a plugin: those of another build would wait for each other for ever.
pub(crate) fn same_copy(id: &[u8; 128]) -> Result<()> {
    if &id[16..20] == MARK && id[8..16] != this_copy() {
        return Err(Error::Unsupported(
            "ranks of one model must share a build, and this rank has another one; serve the model on devices that one \
             build runs on"
                .into(),
        ));
    }
    Ok(())
}

/// A model architecture: knows its names, plans memory, loads weights.
pub trait Architecture: Sync + 'static {
    /// The loaded model.
    type Model: Model;

    /// Names and abilities. Constant.
    fn describe(&self) -> Description;

    /// Memory by class on one rank, from headers alone: no weight is read, nothing large is allocated.
    fn plan(&self, source: &Source<'_>, options: &Options<'_>) -> Result<Plan>;

    /// Loads one rank. Called on the thread that will make every later call to the model.
    fn load(
        &self,
        source: &Source<'_>,
        options: &Options<'_>,
        progress: &Progress<'_>,
    ) -> Result<Self::Model>;

    /// Fresh bytes that identify one group of ranks. The default is right for ranks that share a process and this very
    /// copy of the plugin; [`LoadOptions`](plugin_abi::arch::LoadOptions) of another copy are refused.
    fn communicator_id(&self) -> Result<[u8; 128]> {
        let mut id = [0u8; 128];
        id[..4].copy_from_slice(&GROUPS.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        id[4..8].copy_from_slice(&std::process::id().to_le_bytes());
        id[8..16].copy_from_slice(&this_copy());
        id[16..20].copy_from_slice(MARK);
        Ok(id)
    }
}

/// An image as the host hands it over: 8-bit RGB, row-major, no padding.
#[derive(Debug, Clone, Copy)]
pub struct ImageView<'a> {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `width * height * 3` bytes.
    pub rgb: &'a [u8],
}

/// An encoded image on the plugin's side.
#[derive(Debug)]
pub struct Encoded<I> {
    /// Whatever the model needs to place it in a sequence.
    pub image: I,
    /// Tokens it takes in a prompt.
    pub tokens: usize,
    /// Memory it holds.
    pub bytes: u64,
}

/// A loaded model. Driven by one thread at a time; its sequences' state lives in [`Model::Sequence`] values
/// that the SDK keeps and hands back.
pub trait Model: Send + 'static {
    /// State of one sequence: KV cache, recurrent state, rope delta, whatever the architecture needs.
    type Sequence: Any + Send;
    /// An encoded image; `()` without vision.
    type Image: Any + Send;

    /// What the model turned out to be.
    fn info(&self) -> Loaded;

    /// A sequence with no tokens.
    fn sequence(&mut self) -> Result<Self::Sequence>;

    /// Tokens a sequence holds.
    fn length(&self, sequence: &Self::Sequence) -> usize;

    /// A second sequence that holds the first `length` tokens. `length` never exceeds the sequence's, and
    /// equals it unless [`Loaded::fork_any_length`].
    fn fork(&mut self, sequence: &Self::Sequence, length: usize) -> Result<Self::Sequence>;

    /// Drops all tokens after the first `length`; same limits as `fork`.
    fn trim(&mut self, sequence: &mut Self::Sequence, length: usize) -> Result<()>;

    /// Bytes of state a sequence holds.
    fn bytes(&self, sequence: &Self::Sequence) -> u64;

    /// One forward pass over rows of several sequences. A row that is wrong is marked with
    /// [`BatchRow::fail`] and its sequence left as it was; an `Err` fails the whole batch.
    fn step(&mut self, batch: &mut Batch<'_, Self::Sequence, Self::Image>) -> Result<()>;

    /// Tokens an image of this size takes, or [`Error::InvalidInput`] naming the limit it breaks.
    fn measure_image(&self, width: usize, height: usize) -> Result<usize> {
        let _ = (width, height);
        Err(Error::Unsupported("this model does not take images".into()))
    }

    /// Runs the vision tower over one image.
    fn encode_image(&mut self, image: ImageView<'_>) -> Result<Encoded<Self::Image>> {
        let _ = image;
        Err(Error::Unsupported("this model does not take images".into()))
    }

    /// Whether the model chooses the likeliest token itself, where its logits are. Rows then come with [`Want::TOKEN`] and
    /// leave the id in [`BatchRow::token`]; otherwise they come with [`Want::LAST`] and the choice is made from their logits.
    fn chooses_tokens(&self) -> bool {
        false
    }

    /// Memory free on the model's device; 0 when unknown.
    fn device_free_bytes(&self) -> u64 {
        0
    }
}

/// One forward pass over one batch.
pub struct Batch<'a, S, I = ()> {
    /// The rows. A sequence occurs at most once.
    pub rows: Vec<BatchRow<'a, S, I>>,
    pub(crate) cancel: Option<&'a AtomicU32>,
}

impl<'a, S, I> Batch<'a, S, I> {
    /// A batch of these rows that nobody cancels, for tests and for driving a model directly.
    pub fn new(rows: Vec<BatchRow<'a, S, I>>) -> Self {
        Self { rows, cancel: None }
    }

    /// `Err(Error::Cancelled)` when the host wants the step given up; to be asked between layers.
    pub fn check_cancelled(&self) -> Result<()> {
        match self.cancel {
            Some(word) if word.load(Ordering::Relaxed) != 0 => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }

    /// Tokens of all rows that have not failed.
    pub fn total_tokens(&self) -> usize {
        self.rows.iter().filter(|row| row.error.is_none()).map(|row| row.tokens.len()).sum()
    }
}

/// An encoded image's place in a row's sequence.
#[derive(Debug)]
pub struct RowImage<'a, I> {
    /// What `encode_image` returned.
    pub image: &'a I,
    /// Position of its first token in the sequence; it may lie before this row or reach beyond it.
    pub position: usize,
    /// Number of its tokens.
    pub tokens: usize,
}

/// One sequence's part of a step.
pub struct BatchRow<'a, S, I = ()> {
    /// The sequence's state, to be advanced by `tokens.len()`.
    pub sequence: &'a mut S,
    /// Tokens it holds before the step.
    pub position: usize,
    /// Tokens to feed, at least one.
    pub tokens: &'a [u32],
    /// What is wanted back.
    pub want: Want,
    /// Images that overlap `tokens`.
    pub images: Vec<RowImage<'a, I>>,
    /// Memory for what is wanted: `[1, vocab]` for LAST, `[tokens, vocab]` for ALL; empty when nothing is
    /// wanted, and on ranks other than 0.
    pub logits: &'a mut [f32],
    /// The likeliest next token, from a model that [chooses](Model::chooses_tokens).
    pub token: Option<u32>,
    pub(crate) error: Option<Error>,
}

impl<'a, S, I> BatchRow<'a, S, I> {
    /// A row without images, for tests and for driving a model directly.
    pub fn new(
        sequence: &'a mut S,
        position: usize,
        tokens: &'a [u32],
        want: Want,
        logits: &'a mut [f32],
    ) -> Self {
        Self { sequence, position, tokens, want, images: Vec::new(), logits, token: None, error: None }
    }

    /// The same row with images.
    pub fn with_images(mut self, images: Vec<RowImage<'a, I>>) -> Self {
        self.images = images;
        self
    }

    /// Marks this row alone as failed; its sequence must be as it was before the step.
    pub fn fail(&mut self, error: Error) {
        self.error = Some(error);
    }

    /// Why this row failed, if it did.
    pub fn error(&self) -> Option<&Error> {
        self.error.as_ref()
    }
}
