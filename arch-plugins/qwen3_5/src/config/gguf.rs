//! The metadata of a GGUF, in the words of llama.cpp's converter.

use layers::gated_delta_net::Form;
use layers::rotary::RotaryConfig;
use layers::weights::Metadata;
use layers::{Error, Result};

use super::{
    AttentionConfig, Config, FfnConfig, LayerKind, LinearConfig, TextConfig, invalid, multiple, unsupported,
};

impl Config {
    /// Reads the metadata of a GGUF (`qwen35`, `qwen35moe`). `vocab_size` is the height of its embedding; `tied` says whether
    /// it has no matrix for the head, `is_linear` which layers hold a Gated DeltaNet. A GGUF of this kind holds no tower.
    pub fn from_gguf(
        metadata: &Metadata,
        vocab_size: usize,
        tied: bool,
        is_linear: impl Fn(usize) -> bool,
    ) -> Result<Self> {
        let draft_layers = metadata.size("nextn_predict_layers").unwrap_or(0);
        let blocks = size(metadata, "block_count")?;
        let layers =
            blocks.checked_sub(draft_layers).filter(|&n| n > 0).ok_or_else(|| missing("block_count"))?;
        let kind = |i| if is_linear(i) { LayerKind::Linear } else { LayerKind::Full };
        let text = TextConfig {
            vocab_size,
            hidden_size: size(metadata, "embedding_length")?,
            layers: (0..layers).map(kind).collect(),
            attention: attention(metadata)?,
            linear: linear(metadata)?,
            ffn: feed_forward(metadata)?,
            rms_norm_eps: metadata.float("attention.layer_norm_rms_epsilon").unwrap_or(1e-6),
            max_position_embeddings: size(metadata, "context_length")?,
            tie_word_embeddings: tied,
        };
        Ok(Self { text, vision: None, image_token: None, draft_layers })
    }
}

fn attention(metadata: &Metadata) -> Result<AttentionConfig> {
    let head_dim = size(metadata, "attention.key_length")?;
    let heads = size(metadata, "attention.head_count")?;
    // Some writers list every layer, with zero for the linear ones.
    let listed = || metadata.integers("attention.head_count_kv")?.into_iter().max().map(|n| n as usize);
    let kv_heads = metadata.size("attention.head_count_kv").or_else(listed).filter(|&n| n > 0);
    let kv_heads = kv_heads.ok_or_else(|| missing("attention.head_count_kv"))?;
    multiple("attention.head_count", heads, "attention.head_count_kv", kv_heads)?;

    let sections = "rope.dimension_sections";
    let sections = metadata.integers(sections).ok_or_else(|| missing(sections))?;
    let mrope_section = match sections[..] {
        [time, height, width] | [time, height, width, 0] => [time, height, width].map(|n| n as usize),
        _ => return Err(unsupported(format!("rope.dimension_sections {sections:?}"))),
    };
    if let Some(kind) = metadata.string("rope.scaling.type").filter(|kind| *kind != "none") {
        let what = format!("rope.scaling.type \"{kind}\", which is served from safetensors only");
        return Err(unsupported(what));
    }
    let theta = metadata.float("rope.freq_base").ok_or_else(|| missing("rope.freq_base"))?;
    let rotary_dim = size(metadata, "rope.dimension_count")?;
    let rotary = RotaryConfig { rotary_dim, ..RotaryConfig::plain(theta, head_dim) };
    Ok(AttentionConfig { heads, kv_heads, head_dim, rotary, mrope_section, bias: false })
}

fn linear(metadata: &Metadata) -> Result<LinearConfig> {
    let (key_heads, value_heads) =
        (size(metadata, "ssm.group_count")?, size(metadata, "ssm.time_step_rank")?);
    let value_width = size(metadata, "ssm.inner_size")?;
    multiple("ssm.time_step_rank", value_heads, "ssm.group_count", key_heads)?;
    multiple("ssm.inner_size", value_width, "ssm.time_step_rank", value_heads)?;
    Ok(LinearConfig {
        key_heads,
        value_heads,
        key_dim: size(metadata, "ssm.state_size")?,
        value_dim: value_width / value_heads,
        conv_kernel: size(metadata, "ssm.conv_kernel")?,
        prefill: Form::Recurrent,
    })
}

fn feed_forward(metadata: &Metadata) -> Result<FfnConfig> {
    if metadata.architecture() != "qwen35moe" {
        return Ok(FfnConfig::Dense { intermediate_size: size(metadata, "feed_forward_length")? });
    }
    let expert_size = size(metadata, "expert_feed_forward_length")?;
    Ok(FfnConfig::Mixture {
        experts: size(metadata, "expert_count")?,
        experts_per_token: size(metadata, "expert_used_count")?,
        expert_size,
        shared_size: metadata.size("expert_shared_feed_forward_length").unwrap_or(expert_size),
    })
}

fn size(metadata: &Metadata, key: &str) -> Result<usize> {
    metadata.size(key).filter(|&n| n > 0).ok_or_else(|| missing(key))
}

fn missing(key: &str) -> Error {
    invalid(format!("the GGUF does not say its {key}"))
}
