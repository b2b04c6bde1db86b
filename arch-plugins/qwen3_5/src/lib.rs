//! The Qwen3.5 architecture: `qwen3_5`, `qwen3_5_text`, `qwen3_5_moe` and `qwen3_5_moe_text`, text and images, from
//! safetensors; text alone from GGUF (`qwen35`, `qwen35moe`).
//!
//! Most layers keep a recurrent state instead of a KV cache, so a sequence forks where it stands and nowhere else.

pub mod attention;
pub mod checkpoint;
pub mod config;
pub mod delta_net;
pub mod image;
pub mod model;
pub mod plan;
pub mod positions;
pub mod state;
pub mod vision;

pub use layers::device::probe;

use layers::gated_delta_net::Form;
use layers::serving::{self, Facts, Served};
use layers::weights::Weights;
use plugin_sdk::arch::Description;
use plugin_sdk::{Architecture, Error, Options, Plan, Progress, Result, Source, capability};
use serde_json::Value;

use crate::checkpoint::{Checkpoint, Model};

/// The Qwen3.5 architecture.
pub struct Qwen35;

plugin_sdk::architecture!(Qwen35);

impl Architecture for Qwen35 {
    type Model = Served<Model>;

    fn describe(&self) -> Description {
        Description {
            name: "qwen3_5",
            model_types: &["qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"],
            gguf_architectures: &["qwen35", "qwen35moe"],
            capabilities: capability::VISION
                | capability::TENSOR_PARALLEL
                | capability::GGUF
                | capability::SAFETENSORS
                | capability::QUANTIZE,
            max_world: 16,
        }
    }

    fn plan(&self, source: &Source<'_>, options: &Options<'_>) -> Result<Plan> {
        let weights = serving::headers(source)?;
        Ok(plan::plan(&checkpoint(source, options, &weights)?, &weights, options)?)
    }

    fn load(
        &self,
        source: &Source<'_>,
        options: &Options<'_>,
        progress: &Progress<'_>,
    ) -> Result<Self::Model> {
        let checkpoint = checkpoint(source, options, &serving::headers(source)?)?;
        let text = &checkpoint.config.text;
        let facts = Facts {
            vocab_size: text.vocab_size,
            max_context: text.max_position_embeddings,
            image_token: checkpoint.config.image_token.filter(|_| checkpoint.processor.is_some()),
            fork_any_length: false,
        };
        let unused = checkpoint.unused();
        let unused: Vec<&str> = unused.iter().map(String::as_str).collect();
        let build = |w: &Weights| Ok((checkpoint.load(w)?, facts));
        Ok(serving::load(source, options, progress, &unused, build)?)
    }
}

/// Takes prompts through the chunked form of the delta rule.
const CHUNKED: &str = "chunked_delta_rule";

fn checkpoint(source: &Source<'_>, options: &Options<'_>, w: &Weights) -> Result<Checkpoint> {
    let settings = serving::settings(options, &[CHUNKED])?;
    let mut checkpoint = Checkpoint::new(source.config, source.preprocessor, w)?;
    match settings.get(CHUNKED) {
        None | Some(Value::Bool(false)) => {}
        Some(Value::Bool(true)) => checkpoint.config.text.linear.prefill = Form::Chunked,
        Some(other) => {
            return Err(Error::InvalidInput(format!("option `{CHUNKED}` is {other}, not true or false")));
        }
    }
    Ok(checkpoint)
}
