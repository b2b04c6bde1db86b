//! What a Qwen3 checkpoint says about itself, in `config.json` or in the metadata of a GGUF.

use layers::rotary::RotaryConfig;
use layers::weights::Metadata;
use layers::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

/// A checkpoint's architecture.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of a dense feed-forward.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Size of a head; no relation to `hidden_size / heads`.
    pub head_dim: usize,
    /// Epsilon of all norms.
    pub rms_norm_eps: f64,
    /// Longest context the model was made for.
    pub max_position_embeddings: usize,
    /// Frequencies.
    pub rotary: RotaryConfig,
    /// Whether the four projections of attention have a bias.
    pub attention_bias: bool,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Mixture layers, if there are any.
    pub mixture: Option<Mixture>,
    /// Tokens the windowed layers look back at, and which layers those are.
    pub window: Option<(usize, Vec<bool>)>,
}

/// Mixture layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    /// Experts.
    pub experts: usize,
    /// Experts a token visits.
    pub experts_per_token: usize,
    /// Inner width of an expert.
    pub expert_size: usize,
    /// Whether the chosen experts' weights are scaled to sum to one.
    pub renormalise: bool,
    /// Layers that are dense all the same.
    pub dense_layers: Vec<usize>,
    /// Every how many layers there is a mixture.
    pub step: usize,
}

impl Config {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// InvalidInput if it contradicts itself, Unsupported if it asks for something this implementation does not do.
    pub fn from_json(text: &str) -> Result<Self> {
        let json: Value =
            serde_json::from_str(text).map_err(|e| invalid(format!("config.json is not valid JSON: {e}")))?;
        let mut object =
            json.as_object().cloned().ok_or_else(|| invalid("config.json is not an object".into()))?;
        object.retain(|_, value| !value.is_null());
        let raw: Raw = serde_json::from_value(Value::Object(object.clone()))
            .map_err(|e| invalid(format!("config.json: {e}")))?;
        let mixture = object.get("model_type").and_then(Value::as_str) == Some("qwen3_moe");
        let default_head_dim = if mixture { raw.hidden_size / raw.num_attention_heads.max(1) } else { 128 };
        let rotary = RotaryConfig::from_json(&object, raw.head_dim.unwrap_or(default_head_dim))?;
        raw.check(rotary, mixture)
    }

    /// Reads the metadata of a GGUF. `vocab_size` is the height of its embedding; `tied` says whether it has no matrix for
    /// the head, `is_mixture` which layers have a router.
    pub fn from_gguf(
        metadata: &Metadata,
        vocab_size: usize,
        tied: bool,
        is_mixture: impl Fn(usize) -> bool,
    ) -> Result<Self> {
        let size = |key: &str| {
            metadata
                .size(key)
                .filter(|&n| n > 0)
                .ok_or_else(|| invalid(format!("the GGUF does not say its {key}")))
        };
        let heads = size("attention.head_count")?;
        let hidden_size = size("embedding_length")?;
        let head_dim = metadata.size("attention.key_length").unwrap_or(hidden_size / heads);
        let theta = metadata.float("rope.freq_base").unwrap_or(10_000.0);
        let mixture = if metadata.architecture() == "qwen3moe" {
            Some(Mixture {
                experts: size("expert_count")?,
                experts_per_token: size("expert_used_count")?,
                expert_size: size("expert_feed_forward_length")?,
                renormalise: metadata.bool("expert_weights_norm").unwrap_or(true),
                dense_layers: (0..size("block_count")?).filter(|&i| !is_mixture(i)).collect(),
                step: 1,
            })
        } else {
            None
        };
        if let Some(kind) = metadata.string("rope.scaling.type").filter(|kind| *kind != "none") {
            return Err(Error::Unsupported(format!(
                "the GGUF scales its positions by \"{kind}\", which is served from safetensors only"
            )));
        }
        let config = Self {
            vocab_size,
            hidden_size,
            intermediate_size: metadata.size("feed_forward_length").unwrap_or(0),
            layers: size("block_count")?,
            heads,
            kv_heads: metadata.size("attention.head_count_kv").unwrap_or(heads),
            head_dim,
            rms_norm_eps: metadata.float("attention.layer_norm_rms_epsilon").unwrap_or(1e-6),
            max_position_embeddings: size("context_length")?,
            rotary: RotaryConfig::plain(theta, head_dim),
            attention_bias: false,
            tie_word_embeddings: tied,
            mixture,
            window: None,
        };
        config.check()
    }

    /// The mixture of layer `i`, if that layer is one.
    pub fn mixture_of(&self, i: usize) -> Option<&Mixture> {
        self.mixture.as_ref().filter(|m| !m.dense_layers.contains(&i) && (i + 1).is_multiple_of(m.step))
    }

    /// Tokens layer `i` looks back at, if not all.
    pub fn window_of(&self, i: usize) -> Option<usize> {
        self.window
            .as_ref()
            .and_then(|(size, layers)| layers.get(i).copied().unwrap_or(false).then_some(*size))
    }

    fn check(self) -> Result<Self> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        if let Some((key, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(invalid(format!("{key} must be at least 1")));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(invalid(format!(
                "num_attention_heads is {}, not a multiple of num_key_value_heads, {}",
                self.heads, self.kv_heads
            )));
        }
        Ok(self)
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct Raw {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: String,
    rms_norm_eps: f64,
    max_position_embeddings: usize,
    attention_bias: bool,
    tie_word_embeddings: bool,
    use_sliding_window: bool,
    sliding_window: Option<usize>,
    max_window_layers: usize,
    layer_types: Option<Vec<String>>,
    num_experts: Option<usize>,
    num_local_experts: Option<usize>,
    num_experts_per_tok: usize,
    moe_intermediate_size: usize,
    norm_topk_prob: bool,
    mlp_only_layers: Vec<usize>,
    decoder_sparse_step: usize,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            vocab_size: 151_936,
            hidden_size: 4096,
            intermediate_size: 22_016,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: "silu".into(),
            rms_norm_eps: 1e-6,
            max_position_embeddings: 32_768,
            attention_bias: false,
            tie_word_embeddings: false,
            use_sliding_window: false,
            sliding_window: None,
            max_window_layers: 28,
            layer_types: None,
            num_experts: None,
            num_local_experts: None,
            num_experts_per_tok: 8,
            moe_intermediate_size: 768,
            norm_topk_prob: false,
            mlp_only_layers: Vec::new(),
            decoder_sparse_step: 1,
        }
    }
}

impl Raw {
    fn check(self, rotary: RotaryConfig, mixture: bool) -> Result<Config> {
        if self.hidden_act != "silu" {
            return Err(Error::Unsupported(format!(
                "this checkpoint has hidden_act \"{}\"; this family uses \"silu\"",
                self.hidden_act
            )));
        }
        let window = self.window()?;
        let mixture = mixture.then(|| self.mixture()).transpose()?;
        let config = Config {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim: rotary.head_dim,
            rms_norm_eps: self.rms_norm_eps,
            max_position_embeddings: self.max_position_embeddings,
            rotary,
            attention_bias: self.attention_bias,
            tie_word_embeddings: self.tie_word_embeddings,
            mixture,
            window,
        };
        config.check()
    }

    /// `sliding_window` means nothing unless `use_sliding_window` says so; then `layer_types` names the layers, or all
    /// from `max_window_layers` on have it.
    fn window(&self) -> Result<Option<(usize, Vec<bool>)>> {
        let Some(size) = self.sliding_window.filter(|_| self.use_sliding_window) else {
            let windowed = |kind: &String| kind == "sliding_attention";
            if self.layer_types.as_ref().is_some_and(|types| types.iter().any(windowed)) {
                return Err(invalid(
                    "layer_types names sliding_attention, but use_sliding_window is off".into(),
                ));
            }
            return Ok(None);
        };
        let layers = match &self.layer_types {
            Some(types) => types.iter().map(|kind| kind == "sliding_attention").collect(),
            None => (0..self.num_hidden_layers).map(|i| i >= self.max_window_layers).collect(),
        };
        Ok(Some((size, layers)))
    }

    fn mixture(&self) -> Result<Mixture> {
        let experts = self.num_experts.or(self.num_local_experts).unwrap_or(128);
        if self.num_experts_per_tok == 0 || self.num_experts_per_tok > experts {
            return Err(invalid(format!(
                "num_experts_per_tok is {}, num_experts {experts}",
                self.num_experts_per_tok
            )));
        }
        if self.decoder_sparse_step == 0 || self.moe_intermediate_size == 0 {
            return Err(invalid("decoder_sparse_step and moe_intermediate_size must be at least 1".into()));
        }
        Ok(Mixture {
            experts,
            experts_per_token: self.num_experts_per_tok,
            expert_size: self.moe_intermediate_size,
            renormalise: self.norm_topk_prob,
            dense_layers: self.mlp_only_layers.clone(),
            step: self.decoder_sparse_step,
        })
    }
}

fn invalid(message: String) -> Error {
    Error::InvalidInput(message)
}
