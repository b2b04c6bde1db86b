//! The LLaMA architecture: Llama 2 and 3, SmolLM2, TinyLlama, Mistral and whatever else has their shape, from
//! safetensors and from GGUF (`llama`).

pub mod checkpoint;
pub mod config;
pub mod model;
pub mod plan;

pub use layers::device::probe;

use layers::decoder::PreNormDecoder;
use layers::serving::{self, Facts, Served};
use layers::weights::Weights;
use plugin_sdk::arch::Description;
use plugin_sdk::{Architecture, Options, Plan, Progress, Result, Source, capability};

use crate::checkpoint::Checkpoint;

/// The LLaMA architecture.
pub struct Llama;

plugin_sdk::architecture!(Llama);

impl Architecture for Llama {
    type Model = Served<PreNormDecoder>;

    fn describe(&self) -> Description {
        Description {
            name: "llama",
            model_types: &["llama", "mistral"],
            gguf_architectures: &["llama"],
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
        let unused = checkpoint.unused();
        let unused: Vec<&str> = unused.iter().map(String::as_str).collect();
        let build = |w: &Weights| Ok((model::load(w, &checkpoint.config)?, facts));
        Ok(serving::load(source, options, progress, &unused, build)?)
    }
}

/// The guide's code is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/guides/write-an-architecture.md")]
struct WriteAnArchitecture;
