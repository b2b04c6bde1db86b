//! MyPlugin: an architecture that knows one thing. After a number comes the next one.
//!
//! Replace the arithmetic in [`MyModel::step`] by your own, and the settings in [`Config`] by what your
//! `config.json` says.

use plugin_sdk::arch::Description;
use plugin_sdk::{
    Architecture, Batch, Error, Loaded, Model, Options, Phase, Plan, Progress, Result, Source, Want,
    capability,
};
use serde::Deserialize;

plugin_sdk::export_plugin! { name: "my-plugin" }

/// The architecture.
pub struct MyPlugin;

plugin_sdk::architecture!(MyPlugin);

/// What `config.json` says. A real model has more to say, and every field of it means something.
#[derive(Debug, Deserialize)]
struct Config {
    model_type: String,
    #[serde(default = "default_vocabulary")]
    vocab_size: usize,
    #[serde(default = "default_context")]
    max_position_embeddings: usize,
}

fn default_vocabulary() -> usize {
    100
}

fn default_context() -> usize {
    1024
}

impl Config {
    fn read(source: &Source<'_>, options: &Options<'_>) -> Result<Self> {
        let config: Config = serde_json::from_str(source.config)
            .map_err(|error| Error::InvalidInput(format!("config.json is not understood: {error}")))?;
        if config.model_type != "my-plugin" {
            return Err(Error::Unsupported(format!("model_type {:?} is not my-plugin", config.model_type)));
        }
        if config.vocab_size == 0 || config.max_position_embeddings == 0 {
            return Err(Error::InvalidInput("a vocabulary and a context have a size".into()));
        }
        if !options.options.is_empty() {
            return Err(Error::InvalidInput("this architecture has no options; leave them empty".into()));
        }
        if !options.quantize.is_empty() {
            return Err(Error::Unsupported("there are no weights to quantize; leave quantize empty".into()));
        }
        Ok(config)
    }
}

impl Architecture for MyPlugin {
    type Model = MyModel;

    fn describe(&self) -> Description {
        Description {
            name: "my-plugin",
            model_types: &["my-plugin"],
            gguf_architectures: &[],
            capabilities: capability::WEIGHTLESS, // SAFETENSORS, once it reads weights
            max_world: 1,
        }
    }

    fn plan(&self, source: &Source<'_>, options: &Options<'_>) -> Result<Plan> {
        let config = Config::read(source, options)?;
        Ok(Plan {
            kv_bytes_per_token: size_of::<u32>() as u64,
            max_context: config.max_position_embeddings as u32,
            vocab_size: config.vocab_size as u32,
            layers: 1,
            ..Plan::default()
        })
    }

    fn load(&self, source: &Source<'_>, options: &Options<'_>, progress: &Progress<'_>) -> Result<MyModel> {
        let config = Config::read(source, options)?;
        progress.report(Phase::READ, 0, 0)?; // after every few megabytes; an error means: stop
        tracing::info!(config.vocab_size, "loaded");
        let context = match options.max_context {
            0 => config.max_position_embeddings,
            asked => asked.min(config.max_position_embeddings),
        };
        Ok(MyModel { vocabulary: config.vocab_size, context })
    }
}

/// The loaded model.
pub struct MyModel {
    vocabulary: usize,
    context: usize,
}

impl Model for MyModel {
    /// What one sequence has been fed; a real model keeps its KV cache here.
    type Sequence = Vec<u32>;
    type Image = ();

    fn info(&self) -> Loaded {
        Loaded {
            vocab_size: self.vocabulary,
            max_context: self.context,
            image_token: None,
            fork_any_length: true,
            weight_bytes: 0,
        }
    }

    fn sequence(&mut self) -> Result<Vec<u32>> {
        Ok(Vec::new())
    }

    fn length(&self, sequence: &Vec<u32>) -> usize {
        sequence.len()
    }

    fn fork(&mut self, sequence: &Vec<u32>, length: usize) -> Result<Vec<u32>> {
        Ok(sequence[..length].to_vec())
    }

    fn trim(&mut self, sequence: &mut Vec<u32>, length: usize) -> Result<()> {
        sequence.truncate(length);
        Ok(())
    }

    fn bytes(&self, sequence: &Vec<u32>) -> u64 {
        size_of_val(&sequence[..]) as u64
    }

    fn step(&mut self, batch: &mut Batch<'_, Vec<u32>>) -> Result<()> {
        batch.check_cancelled()?; // between layers, in a model that has some
        for row in &mut batch.rows {
            row.sequence.extend(row.tokens);
            if row.logits.is_empty() {
                continue; // nothing is wanted of this part of a prompt
            }
            let wanted = if row.want == Want::ALL { row.tokens } else { &row.tokens[row.tokens.len() - 1..] };
            for (token, logits) in wanted.iter().zip(row.logits.chunks_exact_mut(self.vocabulary)) {
                logits.fill(0.0);
                logits[(*token as usize + 1) % self.vocabulary] = 10.0;
            }
        }
        Ok(())
    }
}
