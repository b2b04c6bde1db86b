//! Architecture plugins: tokens in, logits out.
//!
//! A model is loaded once per rank and driven by one caller thread at a time. Its sequences' state (KV
//! cache, recurrent state, rope delta) belongs to the plugin; the host names a sequence by the id it was
//! given. One [`Step`] carries rows of several sequences, prefill chunks and decodes mixed.
//!
//! A snapshot is a forked sequence that nobody steps, and restoring one is forking it again: there is no
//! third notion of saved state.

use abi_stable::StableAbi;

use crate::host::Progress;
use crate::primitive::{Code, Failure, Handle, Slice, SliceMut, Str};

/// What an architecture can do, as bits of [`ArchitectureInfo::capabilities`].
pub mod capability {
    /// Images through `image_measure`, `image_encode` and [`super::ImageSpan`].
    pub const VISION: u64 = 1 << 0;
    /// `world > 1` in [`super::LoadOptions`].
    pub const TENSOR_PARALLEL: u64 = 1 << 1;
    /// GGUF files.
    pub const GGUF: u64 = 1 << 2;
    /// Safetensors files.
    pub const SAFETENSORS: u64 = 1 << 3;
    /// Quantization while loading.
    pub const QUANTIZE: u64 = 1 << 4;
    /// Needs no weight files at all.
    pub const WEIGHTLESS: u64 = 1 << 5;
}

/// One architecture a plugin offers. All text is `'static` data of the plugin.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct ArchitectureInfo {
    /// Short name, e.g. `llama`.
    pub name: Str,
    /// Values of `model_type` in `config.json` this serves.
    pub model_types: Slice<Str>,
    /// Values of `general.architecture` in a GGUF this serves.
    pub gguf_architectures: Slice<Str>,
    /// Bits of [`capability`].
    pub capabilities: u64,
    /// Largest world size for tensor parallelism; 1 without it.
    pub max_world: u32,
    /// Zero.
    pub reserved: u32,
}

/// Kind of a device.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceKind(pub u32);

impl DeviceKind {
    /// The host processor.
    pub const CPU: Self = Self(0);
    /// An NVIDIA GPU.
    pub const CUDA: Self = Self(1);
}

/// A device as the host sees it.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// What it is.
    pub kind: DeviceKind,
    /// CUDA ordinal as this process sees it; 0 for the CPU.
    pub ordinal: u32,
    /// Compute capability as `major * 10 + minor`; 0 for the CPU.
    pub compute_capability: u32,
    /// CUDA driver as `major * 1000 + minor * 10`, e.g. 13000; 0 when there is none.
    pub driver: u32,
    /// x86-64 level of the CPU (1 to 4); 0 when it is not x86-64.
    pub cpu_level: u32,
    /// PCI address of a GPU, which names it whatever its number: `domain << 16 | bus << 8 | device << 3`; 0 when it
    /// is not known. A reserved word until 1.1, whose name the layout keeps.
    #[sabi(rename = reserved)]
    pub pci_address: u32,
    /// Memory of the device.
    pub total_bytes: u64,
    /// Memory free right now.
    pub free_bytes: u64,
}

/// Container of the weights.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightFormat(pub u32);

impl WeightFormat {
    /// No files.
    pub const NONE: Self = Self(0);
    /// `*.safetensors`, possibly sharded, beside a `config.json`.
    pub const SAFETENSORS: Self = Self(1);
    /// One or several `*.gguf`.
    pub const GGUF: Self = Self(2);
}

/// Where a model's files are.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct ModelSource {
    /// Container of the weights.
    pub format: WeightFormat,
    /// Zero.
    pub reserved: u32,
    /// Text of `config.json`; empty for a GGUF, whose metadata take its place.
    pub config: Str,
    /// Text of `preprocessor_config.json`; empty without one.
    pub preprocessor: Str,
    /// Absolute paths of the weight files, in shard order.
    pub files: Slice<Str>,
}

/// How a model is to be loaded.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct LoadOptions {
    /// Device of this rank.
    pub device: DeviceInfo,
    /// `auto`, `f32`, `f16` or `bf16`.
    pub dtype: Str,
    /// Quantization applied while loading: empty, `q8_0`, `q6k`, `q5k`, `q4k` or `q4_0`.
    pub quantize: Str,
    /// This rank.
    pub rank: u32,
    /// Number of ranks; 1 without tensor parallelism.
    pub world: u32,
    /// Equal on all ranks of one model, from `communicator_id`; zero when `world` is 1.
    pub communicator: [u8; 128],
    /// Most tokens in one sequence.
    pub max_context: u32,
    /// Most live sequences.
    pub max_sequences: u32,
    /// Most tokens in one step, over all rows.
    pub max_step_tokens: u32,
    /// Threads this rank may keep busy.
    pub threads: u32,
    /// Budget for all sequences' state; 0 means no limit of the host's. Memory comes in blocks: a plugin may go
    /// an eighth beyond it, and answers [`Code::OUT_OF_MEMORY`] rather than further.
    pub state_bytes: u64,
    /// Options of one architecture as a JSON object, or empty. Unknown keys are refused.
    pub options: Str,
}

/// Memory a model will need on one rank. Zero means "none", never "unknown".
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Weights as they will lie in memory.
    pub weight_bytes: u64,
    /// Of `weight_bytes`, those mapped from the file and shared with the page cache.
    pub mapped_bytes: u64,
    /// State that grows with a sequence's length, per token.
    pub kv_bytes_per_token: u64,
    /// State of a sequence that does not grow.
    pub state_bytes_per_sequence: u64,
    /// Activations, per token of a step.
    pub activation_bytes_per_token: u64,
    /// The vision tower's working memory for the largest image.
    pub vision_bytes: u64,
    /// Anything else that is allocated once.
    pub fixed_bytes: u64,
    /// Longest context the model was made for, in tokens.
    pub max_context: u32,
    /// Size of a row of logits.
    pub vocab_size: u32,
    /// Number of decoder layers.
    pub layers: u32,
    /// Zero.
    pub reserved: u32,
}

/// A model that has been loaded.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, Default)]
pub struct ModelInfo {
    /// Names the model in every further call.
    pub handle: u64,
    /// Size of a row of logits.
    pub vocab_size: u32,
    /// Most tokens a sequence may have.
    pub max_context: u32,
    /// Token id that stands for an image in a prompt; `u32::MAX` without vision.
    pub image_token: u32,
    /// 1 when `fork` and `trim` work at any earlier length of a sequence; 0 when only where it stands now.
    pub fork_any_length: u32,
    /// Longest row a step takes; 0 when only the step's total is limited.
    pub max_row_tokens: u32,
    /// Zero.
    pub reserved: u32,
    /// Bytes of weights this rank holds.
    pub weight_bytes: u64,
}

/// What a row wants back.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want(pub u32);

impl Want {
    /// Nothing: a prefill chunk that is not the last.
    pub const NOTHING: Self = Self(0);
    /// One row of logits, for the last token.
    pub const LAST: Self = Self(1);
    /// A row of logits for every token.
    pub const ALL: Self = Self(2);
    /// No logits: the id of the likeliest next token, into [`StepResult::tokens`].
    pub const TOKEN: Self = Self(3);
}

/// One sequence's part of a step: feed `token_count` tokens, starting at `position`.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct Row {
    /// From `sequence_new` or `fork`.
    pub sequence: u64,
    /// Tokens the sequence holds before this step, as the host believes; a mismatch is
    /// [`Code::INVALID_INPUT`] for this row.
    pub position: u32,
    /// First token in [`Step::tokens`].
    pub token_offset: u32,
    /// Number of tokens, at least 1.
    pub token_count: u32,
    /// What comes back.
    pub want: Want,
    /// Where: index of the first logits row (LAST, ALL), or index into [`StepResult::tokens`] (TOKEN).
    pub output: u32,
    /// First image in [`Step::images`].
    pub image_offset: u32,
    /// Images that overlap this row's tokens.
    pub image_count: u32,
    /// Zero.
    pub reserved: u32,
}

/// An encoded image's place in a sequence.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct ImageSpan {
    /// From `image_encode`.
    pub image: u64,
    /// Position of its first token in the sequence.
    pub position: u32,
    /// Number of its tokens.
    pub token_count: u32,
}

/// One forward pass over one batch.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct Step {
    /// The batch; a sequence occurs at most once.
    pub rows: Slice<Row>,
    /// Tokens of all rows.
    pub tokens: Slice<u32>,
    /// Images of all rows.
    pub images: Slice<ImageSpan>,
    /// An `AtomicU32` that turns non-zero when the step should be given up; polled between layers. A step
    /// that ends as [`Code::CANCELLED`] leaves its sequences unusable except for `sequence_free`.
    pub cancel: *const u32,
    /// Null.
    pub extension: *const u8,
}

/// What one row came to.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct RowResult {
    /// [`Code::OK`], or why this row alone failed; its sequence is then as it was before the step.
    pub code: Code,
    /// Zero.
    pub reserved: u32,
}

/// Memory the host lends for the results of a step. On ranks other than 0 the slices are empty.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct StepResult {
    /// One per row.
    pub rows: SliceMut<RowResult>,
    /// Logits, row-major `[n, vocab_size]`, f32.
    pub logits: SliceMut<f32>,
    /// Token ids for [`Want::TOKEN`].
    pub tokens: SliceMut<u32>,
    /// Null.
    pub extension: *mut u8,
}

/// An image: 8-bit RGB, row-major, no padding.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct Image {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `width * height * 3` bytes.
    pub rgb: Slice<u8>,
}

/// An image turned into embeddings that stay with the model until `image_free`.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, Default)]
pub struct EncodedImage {
    /// Names it in an [`ImageSpan`].
    pub image: u64,
    /// Tokens it takes in a prompt.
    pub token_count: u32,
    /// Zero.
    pub reserved: u32,
    /// Memory it holds.
    pub bytes: u64,
}

/// What a model holds right now.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, Default)]
pub struct ModelStats {
    /// Live sequences.
    pub sequences: u64,
    /// Bytes of all sequences' state.
    pub state_bytes: u64,
    /// Live encoded images.
    pub images: u64,
    /// Bytes of all encoded images.
    pub image_bytes: u64,
    /// Memory free on the device; 0 when unknown.
    pub device_free_bytes: u64,
}

/// The verbs of the architecture family. `architecture` is an index into what `describe` returned.
///
/// Every pointer is non-null unless said otherwise. A verb that returns anything but [`Code::OK`] has filled
/// in `failure` and changed nothing else unless said otherwise.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = ArchitecturesRef)))]
#[sabi(missing_field(option))]
pub struct Architectures {
    /// The architectures in this file, sorted by name; `'static`.
    pub describe: unsafe extern "C" fn() -> Slice<ArchitectureInfo>,
    /// Can this build compute on this device? [`Code::UNSUPPORTED`] with a sentence when not.
    /// A GPU build compares compute capabilities here before anything else touches the device.
    pub probe: unsafe extern "C" fn(device: *const DeviceInfo, failure: *mut Failure) -> Code,
    /// Memory by class, from headers alone.
    pub plan: unsafe extern "C" fn(
        architecture: u32,
        source: *const ModelSource,
        options: *const LoadOptions,
        plan: *mut Plan,
        failure: *mut Failure,
    ) -> Code,
    /// Fresh bytes that are equal on all ranks once the host hands them round.
    pub communicator_id: unsafe extern "C" fn(id: *mut [u8; 128], failure: *mut Failure) -> Code,
    /// Loads one rank of a model.
    pub load: unsafe extern "C" fn(
        architecture: u32,
        source: *const ModelSource,
        options: *const LoadOptions,
        progress: *const Progress,
        info: *mut ModelInfo,
        failure: *mut Failure,
    ) -> Code,
    /// Drops a model and everything that belongs to it. The handle is dead afterwards.
    pub unload: unsafe extern "C" fn(model: Handle),
    /// A sequence with no tokens.
    pub sequence_new: unsafe extern "C" fn(model: Handle, sequence: *mut u64, failure: *mut Failure) -> Code,
    /// Drops a sequence. An id that names none is ignored.
    pub sequence_free: unsafe extern "C" fn(model: Handle, sequence: u64),
    /// A second sequence that holds the first `length` tokens of this one.
    pub fork: unsafe extern "C" fn(
        model: Handle,
        sequence: u64,
        length: u32,
        forked: *mut u64,
        failure: *mut Failure,
    ) -> Code,
    /// Drops all tokens of a sequence after the first `length`.
    pub trim: unsafe extern "C" fn(model: Handle, sequence: u64, length: u32, failure: *mut Failure) -> Code,
    /// Bytes of state a sequence holds; memory shared with a fork counts once for each. 0 for an id that
    /// names none.
    pub sequence_bytes: unsafe extern "C" fn(model: Handle, sequence: u64) -> u64,
    /// One forward pass. A code other than OK fails the whole batch; a row alone fails through
    /// [`RowResult::code`], and `failure` then holds one line per failed row, in the rows' order, as far as
    /// they fit.
    pub step: unsafe extern "C" fn(
        model: Handle,
        step: *const Step,
        result: *mut StepResult,
        failure: *mut Failure,
    ) -> Code,
    /// Tokens an image of this size will take, or [`Code::INVALID_INPUT`] with the limit it breaks.
    pub image_measure: unsafe extern "C" fn(
        model: Handle,
        width: u32,
        height: u32,
        token_count: *mut u32,
        failure: *mut Failure,
    ) -> Code,
    /// Runs the vision tower over one image. With several ranks: called on all of them.
    pub image_encode: unsafe extern "C" fn(
        model: Handle,
        image: *const Image,
        encoded: *mut EncodedImage,
        failure: *mut Failure,
    ) -> Code,
    /// Drops an encoded image. An id that names none is ignored.
    pub image_free: unsafe extern "C" fn(model: Handle, image: u64),
    /// What the model holds right now.
    #[sabi(last_prefix_field)]
    pub stats: unsafe extern "C" fn(model: Handle, stats: *mut ModelStats) -> Code,
}
