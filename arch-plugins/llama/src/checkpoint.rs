//! A checkpoint of the family: what it says it is, from `config.json` or from the metadata of a GGUF.

use layers::Result;
use layers::decoder::PreNormDecoder;
use layers::rotary::Scaling;
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
        let table = w.shape("model.embed_tokens.weight")?;
        let tied = !w.contains("lm_head.weight");
        let mut config = Config::from_gguf(metadata, table.first().copied().unwrap_or(0), tied)?;
        if w.contains("rope_freqs.weight") {
            // Llama 3's scaling, worked out per frequency when the file was made.
            config.rotary.scaling = Scaling::PerFrequency(w.raw("rope_freqs.weight")?.to_f32());
        }
        Ok(Self { config })
    }

    /// Beginnings of names that may be in the files without being used: the head of a tied model, frequencies
    /// that old checkpoints store although they follow from the configuration.
    pub fn unused(&self) -> Vec<String> {
        let mut unused: Vec<String> = (0..self.config.layers)
            .map(|i| format!("model.layers.{i}.self_attn.rotary_emb."))
            .chain(["model.rotary_emb.".into(), "rope_freqs.".into()])
            .collect();
        if self.config.tie_word_embeddings {
            unused.push("lm_head.".into());
        }
        unused
    }

    /// Loads everything; a tensor that is missing, or that nothing asked for, is an error that names it.
    pub fn load(&self, w: &Weights) -> Result<PreNormDecoder> {
        let decoder = model::load(w, &self.config)?;
        let unused = self.unused();
        w.finish(&unused.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(decoder)
    }
}
