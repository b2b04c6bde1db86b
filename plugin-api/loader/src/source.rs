//! Which model is to be loaded, and how.

use std::path::PathBuf;

use plugin_abi::arch::{self, DeviceInfo, WeightFormat};
use plugin_abi::{Slice, Str};

use crate::error::{ErrorKind, PluginError};

/// Where a model's files are.
#[derive(Debug, Clone)]
pub struct Source {
    /// Container of the weights.
    pub format: WeightFormat,
    /// Text of `config.json`; empty for a GGUF, whose metadata take its place.
    pub config: String,
    /// Text of `preprocessor_config.json`; empty without one.
    pub preprocessor: String,
    /// Absolute paths of the weight files, in shard order.
    pub files: Vec<PathBuf>,
}

impl Default for Source {
    /// No files and no configuration.
    fn default() -> Self {
        Self {
            format: WeightFormat::NONE,
            config: String::new(),
            preprocessor: String::new(),
            files: Vec::new(),
        }
    }
}

/// How a model is to be loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Device of this rank.
    pub device: DeviceInfo,
    /// `auto`, `f32`, `f16` or `bf16`.
    pub dtype: String,
    /// Quantization applied while loading: empty, `q8_0`, `q6k`, `q5k`, `q4k` or `q4_0`.
    pub quantize: String,
    /// This rank.
    pub rank: u32,
    /// Number of ranks; 1 without tensor parallelism.
    pub world: u32,
    /// Equal on all ranks of one model, from `Plugin::communicator_id`; zero when `world` is 1.
    pub communicator: [u8; 128],
    /// Most tokens in one sequence.
    pub max_context: u32,
    /// Most live sequences.
    pub max_sequences: u32,
    /// Most tokens in one step, over all rows.
    pub max_step_tokens: u32,
    /// Threads this rank may keep busy.
    pub threads: u32,
    /// Budget for all sequences' state in bytes; 0 means no limit of the host's.
    pub state_bytes: u64,
    /// Options of one architecture as a JSON object, or empty.
    pub options: String,
}

impl Default for LoadOptions {
    /// One rank on this machine's processor, with limits that suit small models.
    fn default() -> Self {
        Self {
            device: crate::machine::cpu_device(),
            dtype: "auto".into(),
            quantize: String::new(),
            rank: 0,
            world: 1,
            communicator: [0; 128],
            max_context: 4096,
            max_sequences: 64,
            max_step_tokens: 512,
            threads: 1,
            state_bytes: 0,
            options: String::new(),
        }
    }
}

/// Lends source and options in the ABI's shape for the length of `call`.
pub(crate) fn with_lent<T>(
    source: &Source,
    options: &LoadOptions,
    call: impl FnOnce(&arch::ModelSource, &arch::LoadOptions) -> Result<T, PluginError>,
) -> Result<T, PluginError> {
    let mut files = Vec::with_capacity(source.files.len());
    for file in &source.files {
        let text = file.to_str().ok_or_else(|| {
            PluginError::new(
                ErrorKind::InvalidInput,
                format!("the path {} is not UTF-8 and cannot be handed to a plugin", file.display()),
            )
        })?;
        files.push(Str::new(text));
    }
    let lent_source = arch::ModelSource {
        format: source.format,
        reserved: 0,
        config: Str::new(&source.config),
        preprocessor: Str::new(&source.preprocessor),
        files: Slice::new(&files),
    };
    let lent_options = arch::LoadOptions {
        device: options.device,
        dtype: Str::new(&options.dtype),
        quantize: Str::new(&options.quantize),
        rank: options.rank,
        world: options.world,
        communicator: options.communicator,
        max_context: options.max_context,
        max_sequences: options.max_sequences,
        max_step_tokens: options.max_step_tokens,
        threads: options.threads,
        state_bytes: options.state_bytes,
        options: Str::new(&options.options),
    };
    call(&lent_source, &lent_options)
}
