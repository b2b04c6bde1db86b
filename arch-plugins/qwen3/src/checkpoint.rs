//! A checkpoint of the family: what it says it is, from `config.json` or from the metadata of a GGUF.

use layers::Result;
use layers::decoder::PreNormDecoder;
use layers::weights::Weights;

use crate::config::Config;
use crate::model;

/// What a checkpoint says it is.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The architecture.
    pub config: Config,
}

impl Checkpoint {
    /// `config` is the text of `config.json`; a GGUF says the same in its metadata.
    pub fn new(config: &str, w: &Weights) -> Result<Self> {
        let Some(metadata) = w.gguf() else { return Ok(Self { config: Config::from_json(config)? }) };
        let table = w.shape("model.embed_tokens.weight")?.first().copied().unwrap_or(0);
        let is_mixture = |i: usize| w.contains(&format!("model.layers.{i}.mlp.gate.weight"));
        let config = Config::from_gguf(metadata, table, !w.contains("lm_head.weight"), is_mixture)?;
        Ok(Self { config })
    }

    /// Tensors that may be in the files without being used: the head of a model that is tied.
    pub fn unused(&self) -> Vec<&'static str> {
        if self.config.tie_word_embeddings { vec!["lm_head."] } else { Vec::new() }
    }

    /// Loads everything; a tensor that is missing, or that nothing asked for, is an error that names it.
    pub fn load(&self, w: &Weights) -> Result<PreNormDecoder> {
        let decoder = model::load(w, &self.config)?;
        w.finish(&self.unused())?;
        Ok(decoder)
    }
}
