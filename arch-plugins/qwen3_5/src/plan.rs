//! Memory by class on one rank, from the configuration and the files' headers.

use layers::Result;
use layers::device::Kept;
use layers::planning::{self, weight_bytes};
use layers::weights::Weights;
use plugin_sdk::{Options, Plan};

use crate::checkpoint::Checkpoint;
use crate::config::{FfnConfig, VisionConfig};
use crate::image::ImageProcessor;
use crate::state::StateShape;

/// Plans one rank.
pub fn plan(checkpoint: &Checkpoint, w: &Weights, options: &Options<'_>) -> Result<Plan> {
    let (text, world) = (&checkpoint.config.text, options.world.max(1));
    let plain = ["norm.weight", "embed_tokens.weight", "gate.weight", "conv1d.weight", "pos_embed.weight"];
    let is_linear = |name: &str| {
        !name.contains("norm")
            && !name.contains("patch_embed")
            && !plain.iter().any(|end| name.ends_with(end))
    };
    let unused = checkpoint.unused();
    let unused: Vec<&str> = unused.iter().map(String::as_str).collect();
    let weights = weight_bytes(w, options, &unused, is_linear)?;
    let ffn = match text.ffn {
        FfnConfig::Dense { intermediate_size } => intermediate_size,
        FfnConfig::Mixture { experts_per_token, expert_size, shared_size, .. } => {
            experts_per_token * expert_size + shared_size
        }
    };
    let inner =
        ffn.max(2 * text.attention.heads * text.attention.head_dim).max(2 * text.linear.channels()) / world;
    let kv_heads = text.attention.kv_heads.div_ceil(world);
    let kept = Kept::planned(options)?;
    let state = StateShape::of(text, kv_heads, checkpoint.conventions.value_heads, world, kept);
    let eyes = checkpoint.config.vision.as_ref().zip(checkpoint.processor.as_ref());
    Ok(Plan {
        kv_bytes_per_token: state.bytes_per_token(),
        state_bytes_per_sequence: state.bytes_per_sequence(),
        vision_bytes: eyes.map_or(0, |(vision, processor)| vision_bytes(vision, processor)),
        max_context: text.max_position_embeddings as u32,
        vocab_size: text.vocab_size as u32,
        layers: text.layers.len() as u32,
        ..planning::decoder(weights, options, text.hidden_size, inner)?
    })
}

/// What the tower needs for the largest image: its pixels, and a handful of rows of its widths per patch.
fn vision_bytes(vision: &VisionConfig, processor: &ImageProcessor) -> u64 {
    let patches = processor.max_pixels / (processor.patch_size * processor.patch_size);
    let pixels = 3 * vision.temporal_patch_size * vision.patch_size * vision.patch_size;
    let per_patch = 2 * pixels + 8 * vision.hidden_size + 2 * vision.intermediate_size;
    (patches * per_patch * size_of::<f32>()) as u64
}
