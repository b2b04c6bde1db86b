//! Everything that is said over a worker's link, besides the sequences themselves.
//!
//! Requests for a plan or a load carry a `call` number that every answer repeats; sequences carry the id they
//! were submitted under. Order is never used to tell which answer belongs to which question.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::message::{FailureCode, SequenceEvent, Submission};

/// Version of these messages. Supervisor and worker are one binary, so a difference means that the binary
/// was replaced while the supervisor ran.
pub const PROTOCOL: u32 = 2;

/// Supervisor to worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Map the plugin and say what memory the model will need, per rank.
    Plan {
        /// Repeated in the answer.
        call: u64,
        /// What to load.
        order: LoadOrder,
    },
    /// Load the model on every rank and start the engine.
    Load {
        /// Repeated in every answer.
        call: u64,
        /// What to load.
        order: LoadOrder,
        /// What the engine may use.
        limits: EngineLimits,
    },
    /// Generate.
    Submit {
        /// Names the sequence from now on; never used twice on one link.
        id: u64,
        /// What to generate.
        submission: Box<Submission>,
    },
    /// Nobody wants this sequence any more. Unknown ids are ignored.
    Cancel {
        /// Which.
        id: u64,
    },
    /// Free the model and exit.
    Unload,
}

/// Worker to supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// First message on every link.
    Hello {
        /// [`PROTOCOL`] of the worker.
        protocol: u32,
        /// Its process id.
        pid: u32,
    },
    /// Answer to `Plan`: one entry per rank.
    Planned {
        /// Of the question.
        call: u64,
        /// In rank order.
        ranks: Vec<MemoryPlan>,
    },
    /// How far a load has come.
    Progress {
        /// Of the question.
        call: u64,
        /// What the load is busy with.
        phase: LoadPhase,
        /// Bytes done.
        done: u64,
        /// Bytes in all; 0 when unknown.
        total: u64,
    },
    /// Answer to `Load`: the model can be stepped.
    Loaded {
        /// Of the question.
        call: u64,
        /// What it turned out to be.
        facts: ModelFacts,
    },
    /// Answer to `Plan` or `Load`: it cannot be done.
    Refused {
        /// Of the question.
        call: u64,
        /// Kind.
        code: FailureCode,
        /// One sentence.
        message: String,
        /// Bytes that were missing, when memory was the reason and the amount is known.
        need_bytes: u64,
    },
    /// Something happened to a sequence.
    Event {
        /// Which.
        id: u64,
        /// What.
        event: SequenceEvent,
    },
    /// The engine is alive; sent about every second.
    Heartbeat(Heartbeat),
    /// The worker gives up and exits after this message.
    Dying {
        /// Kind of the fault.
        code: FailureCode,
        /// One sentence.
        message: String,
        /// Sequences that were in the batch when it happened; empty when that is not known.
        suspects: Vec<u64>,
    },
    /// One record of the worker's log, for the supervisor's own.
    Log {
        /// 1 error, 2 warn, 3 info, 4 debug, 5 trace.
        level: u8,
        /// Module path.
        target: String,
        /// Message with its fields.
        message: String,
    },
}

/// Which model to load, with which plugin, on which devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadOrder {
    /// File of the plugin build, the same for all ranks.
    pub plugin: PathBuf,
    /// Name of the architecture inside it.
    pub architecture: String,
    /// Container of the weights.
    pub format: WeightFormat,
    /// Text of `config.json`; empty for a GGUF.
    pub config: String,
    /// Text of `preprocessor_config.json`; empty without one.
    pub preprocessor: String,
    /// Absolute paths of the weight files, in shard order.
    pub files: Vec<PathBuf>,
    /// `auto`, `f32`, `f16` or `bf16`.
    pub dtype: String,
    /// Quantization applied while loading; empty for none.
    pub quantize: String,
    /// Device of each rank; as many entries as ranks.
    pub devices: Vec<RankDevice>,
    /// Most tokens in one sequence; 0 means what the model was made for.
    pub max_context: u32,
    /// Most live sequences, snapshots included.
    pub max_sequences: u32,
    /// Most tokens in one step, over all rows.
    pub max_step_tokens: u32,
    /// Threads each rank may keep busy.
    pub threads: u32,
    /// Budget for all sequences' state on one rank; 0 while it is not decided yet.
    pub state_bytes: u64,
    /// Options of the architecture as a JSON object, or empty.
    pub options: String,
}

/// Container of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightFormat {
    /// No files.
    None,
    /// `*.safetensors` beside a `config.json`.
    Safetensors,
    /// `*.gguf`.
    Gguf,
}

/// A device one rank computes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum RankDevice {
    /// The host processor.
    Cpu {
        /// x86-64 level, 1 to 4; 0 when it is not x86-64.
        level: u32,
        /// Memory this process may use, in bytes.
        total_bytes: u64,
        /// Of it, free now.
        free_bytes: u64,
    },
    /// An NVIDIA GPU.
    Cuda {
        /// Number on this machine, as `nvidia-smi` prints it.
        number: u32,
        /// Ordinal as the worker sees it, which is left only the GPUs of its own ranks.
        ordinal: u32,
        /// `major * 10 + minor`.
        compute_capability: u32,
        /// PCI address as the ABI writes it; 0 when it is not known.
        pci_address: u32,
        /// Driver as `major * 1000 + minor * 10`.
        driver: u32,
        /// Memory of the device, in bytes.
        total_bytes: u64,
        /// Of it, free now.
        free_bytes: u64,
    },
}

impl RankDevice {
    /// Name of the thread that owns this device, for rank `rank`.
    pub fn thread_name(&self, rank: usize) -> String {
        match self {
            Self::Cpu { .. } => format!("cpu-dev-{rank}"),
            Self::Cuda { number, .. } => format!("cuda-dev-{number}"),
        }
    }

    /// What the node calls it: `cpu-0`, `cuda-1`.
    pub fn id(&self) -> String {
        match self {
            Self::Cpu { .. } => "cpu-0".to_owned(),
            Self::Cuda { number, .. } => format!("cuda-{number}"),
        }
    }

    /// Whether this is the host processor.
    pub fn is_cpu(&self) -> bool {
        matches!(self, Self::Cpu { .. })
    }
}

/// Memory one rank will need, by class. Zero means none, never unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// Weights as they will lie in memory.
    pub weight_bytes: u64,
    /// Of `weight_bytes`, those mapped from the file and shared with the page cache.
    pub mapped_bytes: u64,
    /// State that grows with a sequence, per token.
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
}

/// What the engine may use, decided by the supervisor from the plan.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EngineLimits {
    /// Most sequences that are prefilled or decoded at a time.
    pub max_running: u32,
    /// Most sequences that wait for a seat.
    pub queue_limit: u32,
    /// Most tokens of one step that may be prefill while other sequences decode.
    pub prefill_chunk: u32,
    /// Bytes for all state of one rank: running sequences, cached prefixes, image embeddings.
    pub state_bytes: u64,
    /// State per token, from the plan.
    pub kv_bytes_per_token: u64,
    /// State per sequence, from the plan.
    pub state_bytes_per_sequence: u64,
    /// Of `state_bytes`, what cached prefixes may hold; 0 switches the prefix cache off.
    pub prefix_cache_bytes: u64,
    /// For recurrent state: a snapshot at least every so many prompt tokens; 0 only at message boundaries.
    pub snapshot_every: u32,
    /// A step or an image that takes longer than this is taken for hung, in milliseconds.
    pub step_deadline_ms: u64,
}

/// What a load is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadPhase {
    /// Finding out which files the model consists of.
    Resolve,
    /// Fetching files.
    Download,
    /// Checking files.
    Verify,
    /// Waiting for memory or a device.
    Plan,
    /// Reading weights.
    Read,
    /// Quantizing weights.
    Quantize,
    /// Moving weights to the device.
    Upload,
    /// Compiling kernels and generating the first tokens.
    WarmUp,
    /// Serving.
    Ready,
}

/// What a loaded model turned out to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// Size of a row of logits.
    pub vocab_size: u32,
    /// Most tokens a sequence may have.
    pub max_context: u32,
    /// Token id that stands for an image in a prompt.
    pub image_token: Option<u32>,
    /// Whether state can be cut back to any earlier length.
    pub fork_any_length: bool,
    /// Longest row a step takes; 0 when only the step's total is limited.
    pub max_row_tokens: u32,
    /// Bytes of weights on all ranks.
    pub weight_bytes: u64,
    /// Resident memory of the worker after the load, in bytes.
    pub resident_bytes: u64,
    /// Number of ranks.
    pub world: u32,
}

/// What the engine is doing, measured in the worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Sequences that wait for a seat.
    pub queued: u32,
    /// Sequences that are prefilled or decoded.
    pub running: u32,
    /// Prompt tokens submitted and not computed yet.
    pub pending_prefill_tokens: u64,
    /// Bytes of state in use on one rank, cached prefixes and images included.
    pub state_bytes: u64,
    /// Bytes of state that may be used; shrinks when the device proves smaller than planned.
    pub state_limit_bytes: u64,
    /// Bytes held by cached prefixes alone.
    pub prefix_cache_bytes: u64,
    /// Cached prefixes.
    pub prefix_cache_entries: u32,
    /// Steps since the load.
    pub steps: u64,
    /// Prompt tokens computed since the load.
    pub prefill_tokens: u64,
    /// Prompt tokens taken from the prefix cache since the load.
    pub cached_tokens: u64,
    /// Tokens generated since the load.
    pub decode_tokens: u64,
    /// Sequences set back to the queue for want of memory since the load.
    pub preemptions: u64,
    /// How long the engine has been in its current step or loop turn, in milliseconds.
    pub busy_ms: u64,
    /// Live sequences the plugin reports on rank 0, snapshots included.
    pub plugin_sequences: u64,
    /// Resident memory of the worker, in bytes.
    pub resident_bytes: u64,
}
