//! Memory by class on one rank, from the configuration and the files' headers.

use layers::Result;
use layers::device::Kept;
use layers::kv::KvShape;
use layers::planning::{self, weight_bytes};
use layers::weights::Weights;
use plugin_sdk::{Options, Plan};

use crate::checkpoint::Checkpoint;

/// Plans one rank.
pub fn plan(checkpoint: &Checkpoint, w: &Weights, options: &Options<'_>) -> Result<Plan> {
    let config = &checkpoint.config;
    let plain = ["norm.weight", "embed_tokens.weight", "mlp.gate.weight"];
    let is_linear = |name: &str| !plain.iter().any(|end| name.ends_with(end));
    let weights = weight_bytes(w, options, &checkpoint.unused(), is_linear)?;
    let expert = config.mixture.as_ref().map_or(0, |m| m.expert_size * m.experts_per_token);
    let inner =
        config.intermediate_size.max(expert).max(config.heads * config.head_dim) / options.world.max(1);
    let kv_heads = config.kv_heads.div_ceil(options.world.max(1));
    let kept = Kept::planned(options)?;
    let kv = KvShape { layers: config.layers, kv_heads, head_dim: config.head_dim, kept };
    Ok(Plan {
        kv_bytes_per_token: kv.bytes_per_token(),
        max_context: config.max_position_embeddings as u32,
        vocab_size: config.vocab_size as u32,
        layers: config.layers as u32,
        ..planning::decoder(weights, options, config.hidden_size, inner)?
    })
}
