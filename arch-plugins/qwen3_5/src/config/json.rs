//! `config.json`: keys nested below `text_config` in a vision-language checkpoint, flat in a text one.

use layers::Result;
use layers::gated_delta_net::Form;
use layers::rotary::RotaryConfig;
use serde::Deserialize;
use serde_json::Value;

use super::{
    AttentionConfig, Config, FfnConfig, Gelu, LayerKind, LinearConfig, TextConfig, VisionConfig, invalid,
    multiple, positive, unsupported,
};

impl Config {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// InvalidInput if it is not a configuration of this family or contradicts itself; Unsupported if it asks for something
    /// this implementation does not do.
    pub fn from_json(text: &str) -> Result<Self> {
        let json: Value =
            serde_json::from_str(text).map_err(|e| invalid(format!("config.json is not valid JSON: {e}")))?;
        let nested = json.get("text_config").filter(|value| !value.is_null());
        let core = nested.unwrap_or(&json);
        let raw: RawText = parse("config.json", core)?;
        let tied =
            flag(&json, "tie_word_embeddings").or_else(|| flag(core, "tie_word_embeddings")).unwrap_or(false);
        let mixture = json["model_type"].as_str().is_some_and(|name| name.contains("moe"));

        let text_only = nested.is_none() || flag(&json, "language_model_only").unwrap_or(false);
        let vision = match json.get("vision_config") {
            Some(value) if !text_only && !value.is_null() => {
                Some(parse::<RawVision>("vision_config", value)?.check()?)
            }
            _ => None,
        };
        let text = raw.check(core, mixture, tied)?;
        if let Some(vision) = vision.as_ref().filter(|v| v.out_hidden_size != text.hidden_size) {
            return Err(invalid(format!(
                "vision_config.out_hidden_size is {}, but the decoder's hidden_size is {}",
                vision.out_hidden_size, text.hidden_size
            )));
        }
        let image_token = json["image_token_id"].as_u64().map(|id| id as u32).filter(|_| vision.is_some());
        if vision.is_some() && image_token.is_none() {
            return Err(invalid("config.json has a vision_config but no image_token_id".into()));
        }
        Ok(Self { text, vision, image_token, draft_layers: 0 })
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct RawText {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: usize,
    hidden_act: String,
    rms_norm_eps: f64,
    max_position_embeddings: usize,
    attention_bias: bool,
    attn_output_gate: bool,
    linear_conv_kernel_dim: usize,
    linear_key_head_dim: usize,
    linear_value_head_dim: usize,
    linear_num_key_heads: usize,
    linear_num_value_heads: usize,
    layer_types: Option<Vec<String>>,
    full_attention_interval: usize,
    num_experts: Option<usize>,
    num_local_experts: Option<usize>,
    num_experts_per_tok: usize,
    moe_intermediate_size: usize,
    shared_expert_intermediate_size: usize,
}

impl Default for RawText {
    fn default() -> Self {
        Self {
            vocab_size: 248_320,
            hidden_size: 4096,
            intermediate_size: 12_288,
            num_hidden_layers: 32,
            num_attention_heads: 16,
            num_key_value_heads: None,
            head_dim: 256,
            hidden_act: "silu".into(),
            rms_norm_eps: 1e-6,
            max_position_embeddings: 32_768,
            attention_bias: false,
            attn_output_gate: true,
            linear_conv_kernel_dim: 4,
            linear_key_head_dim: 128,
            linear_value_head_dim: 128,
            linear_num_key_heads: 16,
            linear_num_value_heads: 32,
            layer_types: None,
            full_attention_interval: 4,
            num_experts: None,
            num_local_experts: None,
            num_experts_per_tok: 8,
            moe_intermediate_size: 512,
            shared_expert_intermediate_size: 512,
        }
    }
}

impl RawText {
    fn check(self, core: &Value, mixture: bool, tie_word_embeddings: bool) -> Result<TextConfig> {
        if self.hidden_act != "silu" {
            return Err(unsupported(format!(
                "hidden_act \"{}\"; this family uses \"silu\"",
                self.hidden_act
            )));
        }
        if !self.attn_output_gate {
            return Err(unsupported("attn_output_gate false; this family gates its attention".into()));
        }
        Ok(TextConfig {
            layers: self.layers()?,
            attention: self.attention(core, mixture)?,
            linear: self.linear()?,
            ffn: self.feed_forward(mixture)?,
            vocab_size: positive("vocab_size", self.vocab_size)?,
            hidden_size: positive("hidden_size", self.hidden_size)?,
            rms_norm_eps: self.rms_norm_eps,
            max_position_embeddings: positive("max_position_embeddings", self.max_position_embeddings)?,
            tie_word_embeddings,
        })
    }

    fn layers(&self) -> Result<Vec<LayerKind>> {
        let Some(types) = &self.layer_types else {
            let interval = positive("full_attention_interval", self.full_attention_interval)?;
            let kind =
                |i: usize| if (i + 1).is_multiple_of(interval) { LayerKind::Full } else { LayerKind::Linear };
            return Ok((0..positive("num_hidden_layers", self.num_hidden_layers)?).map(kind).collect());
        };
        if types.len() != self.num_hidden_layers {
            return Err(invalid(format!(
                "layer_types names {} layers, num_hidden_layers is {}",
                types.len(),
                self.num_hidden_layers
            )));
        }
        let kind = |name: &String| match name.as_str() {
            "full_attention" => Ok(LayerKind::Full),
            "linear_attention" => Ok(LayerKind::Linear),
            other => Err(unsupported(format!("layer type \"{other}\""))),
        };
        types.iter().map(kind).collect()
    }

    fn attention(&self, core: &Value, mixture: bool) -> Result<AttentionConfig> {
        let head_dim = positive("head_dim", self.head_dim)?;
        let (rotary, mrope_section) = rotary(core, head_dim)?;
        let heads = positive("num_attention_heads", self.num_attention_heads)?;
        let default_kv_heads = if mixture { 2 } else { 4 };
        let kv_heads = positive("num_key_value_heads", self.num_key_value_heads.unwrap_or(default_kv_heads))?;
        multiple("num_attention_heads", heads, "num_key_value_heads", kv_heads)?;
        Ok(AttentionConfig { heads, kv_heads, head_dim, rotary, mrope_section, bias: self.attention_bias })
    }

    fn linear(&self) -> Result<LinearConfig> {
        let linear = LinearConfig {
            key_heads: positive("linear_num_key_heads", self.linear_num_key_heads)?,
            value_heads: positive("linear_num_value_heads", self.linear_num_value_heads)?,
            key_dim: positive("linear_key_head_dim", self.linear_key_head_dim)?,
            value_dim: positive("linear_value_head_dim", self.linear_value_head_dim)?,
            conv_kernel: positive("linear_conv_kernel_dim", self.linear_conv_kernel_dim)?,
            prefill: Form::Recurrent,
        };
        multiple("linear_num_value_heads", linear.value_heads, "linear_num_key_heads", linear.key_heads)?;
        Ok(linear)
    }

    fn feed_forward(&self, mixture: bool) -> Result<FfnConfig> {
        if !mixture {
            let intermediate_size = positive("intermediate_size", self.intermediate_size)?;
            return Ok(FfnConfig::Dense { intermediate_size });
        }
        let experts = positive("num_experts", self.num_experts.or(self.num_local_experts).unwrap_or(256))?;
        let experts_per_token = positive("num_experts_per_tok", self.num_experts_per_tok)?;
        if experts_per_token > experts {
            return Err(invalid(format!(
                "num_experts_per_tok is {experts_per_token}, num_experts only {experts}"
            )));
        }
        Ok(FfnConfig::Mixture {
            experts,
            experts_per_token,
            expert_size: positive("moe_intermediate_size", self.moe_intermediate_size)?,
            shared_size: positive("shared_expert_intermediate_size", self.shared_expert_intermediate_size)?,
        })
    }
}

/// Frequencies and the axes' sections. A quarter of a head rotates unless the checkpoint says otherwise.
fn rotary(core: &Value, head_dim: usize) -> Result<(RotaryConfig, [usize; 3])> {
    let object = core.as_object().ok_or_else(|| invalid("the configuration is not an object".into()))?;
    let rope = ["rope_parameters", "rope_scaling"].iter().find_map(|key| object.get(*key)?.as_object());
    let says =
        |key: &str| rope.and_then(|rope| rope.get(key)).or_else(|| object.get(key)).filter(|v| !v.is_null());
    if says("mrope_interleaved").and_then(Value::as_bool) == Some(false) {
        return Err(unsupported("mrope_interleaved false; this family interleaves its axes".into()));
    }
    let mut rotary = RotaryConfig::from_json(object, head_dim)?;
    if says("partial_rotary_factor").is_none() {
        rotary.rotary_dim = head_dim / 4;
    }
    let section: Vec<usize> = match says("mrope_section") {
        Some(section) => parse("mrope_section", section)?,
        None => vec![11, 11, 10],
    };
    let section = section
        .try_into()
        .map_err(|section| invalid(format!("mrope_section {section:?} does not have three entries")))?;
    Ok((rotary, section))
}

#[derive(Deserialize)]
#[serde(default)]
struct RawVision {
    depth: usize,
    hidden_size: usize,
    num_heads: usize,
    intermediate_size: usize,
    in_channels: usize,
    patch_size: usize,
    temporal_patch_size: usize,
    spatial_merge_size: usize,
    num_position_embeddings: usize,
    out_hidden_size: usize,
    hidden_act: String,
    deepstack_visual_indexes: Option<Vec<usize>>,
}

impl Default for RawVision {
    fn default() -> Self {
        Self {
            depth: 27,
            hidden_size: 1152,
            num_heads: 16,
            intermediate_size: 4304,
            in_channels: 3,
            patch_size: 16,
            temporal_patch_size: 2,
            spatial_merge_size: 2,
            num_position_embeddings: 2304,
            out_hidden_size: 3584,
            hidden_act: "gelu_pytorch_tanh".into(),
            deepstack_visual_indexes: None,
        }
    }
}

impl RawVision {
    fn check(self) -> Result<VisionConfig> {
        if self.deepstack_visual_indexes.is_some_and(|indexes| !indexes.is_empty()) {
            return Err(unsupported("deepstack_visual_indexes; this family has none".into()));
        }
        if self.in_channels != 3 {
            return Err(unsupported(format!(
                "vision_config.in_channels {}; images have 3",
                self.in_channels
            )));
        }
        let activation = match self.hidden_act.as_str() {
            "gelu_pytorch_tanh" => Gelu::Tanh,
            "gelu" => Gelu::Erf,
            other => return Err(unsupported(format!("vision_config.hidden_act \"{other}\""))),
        };
        let position_side = self.num_position_embeddings.isqrt();
        if position_side == 0 || position_side * position_side != self.num_position_embeddings {
            return Err(invalid(format!(
                "vision_config.num_position_embeddings {} is not a square",
                self.num_position_embeddings
            )));
        }
        let heads = positive("vision_config.num_heads", self.num_heads)?;
        let hidden_size = positive("vision_config.hidden_size", self.hidden_size)?;
        multiple("vision_config.hidden_size", hidden_size, "four times vision_config.num_heads", 4 * heads)?;
        Ok(VisionConfig {
            depth: self.depth,
            hidden_size,
            heads,
            intermediate_size: positive("vision_config.intermediate_size", self.intermediate_size)?,
            channels: self.in_channels,
            patch_size: positive("vision_config.patch_size", self.patch_size)?,
            temporal_patch_size: positive("vision_config.temporal_patch_size", self.temporal_patch_size)?,
            merge_size: positive("vision_config.spatial_merge_size", self.spatial_merge_size)?,
            position_side,
            out_hidden_size: self.out_hidden_size,
            activation,
        })
    }
}

/// A key that is null counts as absent.
fn parse<T: serde::de::DeserializeOwned>(what: &str, value: &Value) -> Result<T> {
    let mut value = value.clone();
    if let Some(object) = value.as_object_mut() {
        object.retain(|_, value| !value.is_null());
    }
    serde_json::from_value(value).map_err(|e| invalid(format!("{what}: {e}")))
}

fn flag(json: &Value, key: &str) -> Option<bool> {
    json.get(key).and_then(Value::as_bool)
}
