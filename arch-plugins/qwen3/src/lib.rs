//! The Qwen3 architecture: `qwen3` and `qwen3_moe`, from safetensors and from GGUF (`qwen3`, `qwen3moe`).

pub mod checkpoint;
pub mod config;
pub mod model;
pub mod plan;

pub use layers::device::probe;

use layers::decoder::PreNormDecoder;
use layers::serving::{self, Facts, Served};
use plugin_sdk::arch::Description;
use plugin_sdk::{Architecture, Options, Plan, Progress, Result, Source, capability};

use crate::checkpoint::Checkpoint;

/// The Qwen3 architecture.
pub struct Qwen3;

plugin_sdk::architecture!(Qwen3);

impl Architecture for Qwen3 {
    type Model = Served<PreNormDecoder>;

    fn describe(&self) -> Description {
        Description {
            name: "qwen3",
            model_types: &["qwen3", "qwen3_moe"],
            gguf_architectures: &["qwen3", "qwen3moe"],
            capabilities: capability::TENSOR_PARALLEL
                | capability::GGUF
                | capability::SAFETENSORS
                | capability::QUANTIZE,
            max_world: 16,
        }
    }

    fn plan(&self, source: &Source<'_>, options: &Options<'_>) -> Result<Plan> {
        serving::settings(options, &[])?;
        let weights = serving::headers(source)?;
        Ok(plan::plan(&Checkpoint::new(source.config, &weights)?, &weights, options)?)
    }

    fn load(
        &self,
        source: &Source<'_>,
        options: &Options<'_>,
        progress: &Progress<'_>,
    ) -> Result<Self::Model> {
        serving::settings(options, &[])?;
        let checkpoint = Checkpoint::new(source.config, &serving::headers(source)?)?;
        let facts = Facts {
            vocab_size: checkpoint.config.vocab_size,
            max_context: checkpoint.config.max_position_embeddings,
            image_token: None,
            fork_any_length: true,
        };
        let build = |w: &layers::weights::Weights| Ok((model::load(w, &checkpoint.config)?, facts));
        Ok(serving::load(source, options, progress, &checkpoint.unused(), build)?)
    }
}
