//! What a checkpoint says about itself, in `config.json` or in the metadata of a GGUF.
//!
//! A setting that would change the computation and is not honoured here is refused by name: a model that is
//! served wrong is worse than one that is not served.

use layers::linear::Bias;
use layers::rotary::{RotaryConfig, Scaling};
use layers::weights::Metadata;
use layers::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

/// A checkpoint's architecture.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the feed-forward.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// Epsilon of all norms.
    pub rms_norm_eps: f64,
    /// Longest context the model was made for.
    pub max_position_embeddings: usize,
    /// Frequencies.
    pub rotary: RotaryConfig,
    /// Biases of the four projections of attention.
    pub attention_bias: Bias,
    /// Biases of the three projections of the feed-forward.
    pub mlp_bias: Bias,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Tokens a query looks back at, itself included; all of them without.
    pub window: Option<usize>,
}

/// Settings of relatives of this family that change the computation.
const FOREIGN: [&str; 11] = [
    "attention_multiplier",
    "attn_logit_softcapping",
    "embedding_multiplier",
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "no_rope_layers",
    "num_experts",
    "num_local_experts",
    "quantization_config",
    "residual_multiplier",
];

impl Config {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// InvalidInput if it contradicts itself, Unsupported if it asks for something this implementation does
    /// not do.
    pub fn from_json(text: &str) -> Result<Self> {
        let json: Value =
            serde_json::from_str(text).map_err(|e| invalid(format!("config.json is not valid JSON: {e}")))?;
        let Value::Object(mut object) = json else {
            return Err(invalid("config.json is not an object".into()));
        };
        object.retain(|_, value| !value.is_null());
        refuse_foreign(&object)?;
        let raw: Raw = serde_json::from_value(Value::Object(object.clone()))
            .map_err(|e| invalid(format!("config.json: {e}")))?;
        let head_dim = raw.head_dim.unwrap_or(raw.hidden_size / raw.num_attention_heads.max(1));
        let bias = |wanted: bool| if wanted { Bias::Required } else { Bias::None };
        let config = Self {
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            kv_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            head_dim,
            rms_norm_eps: raw.rms_norm_eps,
            max_position_embeddings: raw.max_position_embeddings,
            rotary: RotaryConfig::from_json(&object, head_dim)?,
            attention_bias: bias(raw.attention_bias),
            mlp_bias: bias(raw.mlp_bias),
            tie_word_embeddings: raw.tie_word_embeddings,
            window: raw.sliding_window,
        };
        config.check()
    }

    /// Reads the metadata of a GGUF. `vocab_size` is the height of its embedding; `tied` says whether it has
    /// no matrix for the head.
    pub fn from_gguf(metadata: &Metadata, vocab_size: usize, tied: bool) -> Result<Self> {
        let size = |key: &str| {
            metadata
                .size(key)
                .filter(|&n| n > 0)
                .ok_or_else(|| invalid(format!("the GGUF does not say its {key}")))
        };
        if metadata.size("expert_count").is_some_and(|count| count > 0) {
            return Err(Error::Unsupported(
                "this GGUF is a mixture of experts, which this architecture is not".into(),
            ));
        }
        let heads = size("attention.head_count")?;
        let hidden_size = size("embedding_length")?;
        let head_dim = metadata.size("attention.key_length").unwrap_or(hidden_size / heads);
        let rotary = RotaryConfig {
            theta: metadata.float("rope.freq_base").unwrap_or(10_000.0),
            head_dim,
            rotary_dim: metadata.size("rope.dimension_count").unwrap_or(head_dim),
            scaling: gguf_scaling(metadata)?,
        };
        let config = Self {
            vocab_size,
            hidden_size,
            intermediate_size: size("feed_forward_length")?,
            layers: size("block_count")?,
            heads,
            kv_heads: metadata.size("attention.head_count_kv").unwrap_or(heads),
            head_dim,
            rms_norm_eps: metadata.float("attention.layer_norm_rms_epsilon").unwrap_or(1e-5),
            max_position_embeddings: size("context_length")?,
            rotary,
            attention_bias: Bias::IfPresent,
            mlp_bias: Bias::IfPresent,
            tie_word_embeddings: tied,
            window: metadata.size("attention.sliding_window").filter(|&window| window > 0),
        };
        config.check()
    }

    fn check(self) -> Result<Self> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
            ("sliding_window", self.window.unwrap_or(1)),
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

fn refuse_foreign(object: &Map<String, Value>) -> Result<()> {
    if let Some(key) = FOREIGN.iter().find(|key| object.contains_key(**key)) {
        return Err(Error::Unsupported(format!(
            "this checkpoint sets `{key}`, which the llama architecture does not know"
        )));
    }
    let activation = object.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
    if activation != "silu" {
        return Err(Error::Unsupported(format!(
            "this checkpoint has hidden_act \"{activation}\"; this family uses \"silu\""
        )));
    }
    let kinds = object.get("layer_types").and_then(Value::as_array);
    match kinds.and_then(|kinds| kinds.iter().find(|kind| kind.as_str() != Some("full_attention"))) {
        Some(kind) => {
            Err(Error::Unsupported(format!("layers of type {kind} are unknown to this architecture")))
        }
        None => Ok(()),
    }
}

fn gguf_scaling(metadata: &Metadata) -> Result<Scaling> {
    let factor = metadata.float("rope.scaling.factor").or_else(|| metadata.float("rope.scale_linear"));
    match (metadata.string("rope.scaling.type"), factor) {
        (None | Some("none"), None) => Ok(Scaling::None),
        (Some("none"), Some(_)) => Ok(Scaling::None),
        (None | Some("linear"), Some(factor)) if factor > 0.0 => Ok(Scaling::Linear { factor }),
        (kind, _) => Err(Error::Unsupported(format!(
            "the GGUF scales its positions by {kind:?}, which is served from safetensors only"
        ))),
    }
}

fn invalid(message: String) -> Error {
    Error::InvalidInput(message)
}

/// `config.json`, with the defaults of the reference.
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
    rms_norm_eps: f64,
    max_position_embeddings: usize,
    attention_bias: bool,
    mlp_bias: bool,
    tie_word_embeddings: bool,
    sliding_window: Option<usize>,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 11_008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            rms_norm_eps: 1e-6,
            max_position_embeddings: 2048,
            attention_bias: false,
            mlp_bias: false,
            tie_word_embeddings: false,
            sliding_window: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(extra: &str) -> Result<Config> {
        Config::from_json(&format!(
            r#"{{"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4 {extra}}}"#
        ))
    }

    #[test]
    fn both_spellings_of_rope_mean_the_same() {
        let old = config(
            r#", "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}"#,
        );
        let new = config(
            r#", "rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}"#,
        );
        assert_eq!(old.unwrap(), new.unwrap());
    }

    #[test]
    fn what_is_not_said_has_the_usual_meaning() {
        let config = config(r#", "rope_scaling": null, "sliding_window": null"#).unwrap();
        assert_eq!((config.head_dim, config.rotary.theta), (8, 10_000.0));
        assert_eq!((config.attention_bias, config.window), (Bias::None, None));
    }

    #[test]
    fn what_would_be_computed_wrong_is_refused_by_name() {
        let cases = [
            (r#", "quantization_config": {}"#, "quantization_config"),
            (r#", "num_local_experts": 8"#, "num_local_experts"),
            (r#", "hidden_act": "gelu""#, "gelu"),
            (r#", "rope_scaling": {"type": "su", "factor": 2.0}"#, "su"),
            (r#", "rope_scaling": {"type": "linear", "factor": 2.0, "twist": 1}"#, "twist"),
            (r#", "layer_types": ["full_attention", "sliding_attention"]"#, "sliding_attention"),
            (r#", "num_key_value_heads": 3"#, "num_key_value_heads"),
            (r#", "vocab_size": 0"#, "vocab_size"),
            (r#", "sliding_window": "long""#, "config.json"),
        ];
        for (extra, named) in cases {
            let error = config(extra).unwrap_err().to_string();
            assert!(error.contains(named), "{extra}: {error}");
        }
    }
}
