//! What a Qwen3.5 checkpoint says about itself.
//!
//! The text core's keys are nested below `text_config` in a vision-language checkpoint and flat in a text one; both come
//! out here as one [`Config`]. Defaults are those of the reference classes. What cannot be served is
//! refused here, by the name of its key, before a byte of weights is read.

mod gguf;
mod json;

use layers::gated_delta_net::{DeltaDims, Form, KeyHeads};
use layers::rotary::RotaryConfig;
use layers::{Error, Result};

/// A checkpoint's architecture.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The decoder.
    pub text: TextConfig,
    /// The vision tower, if the checkpoint has one and it is wanted.
    pub vision: Option<VisionConfig>,
    /// Token id that stands for an image.
    pub image_token: Option<u32>,
    /// Layers of the draft head that a GGUF keeps behind the decoder's own.
    pub draft_layers: usize,
}

/// The decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Rows of the embedding and of the head; more than the tokenizer has tokens.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Mixer of every layer.
    pub layers: Vec<LayerKind>,
    /// Gated full attention.
    pub attention: AttentionConfig,
    /// Gated DeltaNet, over all ranks.
    pub linear: LinearConfig,
    /// Feed-forward of every layer.
    pub ffn: FfnConfig,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f64,
    /// Longest context the model was made for.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
}

/// Which mixer a layer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// Gated DeltaNet.
    Linear,
    /// Gated attention with a KV cache.
    Full,
}

/// Gated full attention.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// Frequencies; only the first `rotary_dim` dimensions of a head rotate.
    pub rotary: RotaryConfig,
    /// Frequencies of time, height and width.
    pub mrope_section: [usize; 3],
    /// Whether the four projections have a bias.
    pub bias: bool,
}

/// Gated DeltaNet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearConfig {
    /// Key heads; queries have as many.
    pub key_heads: usize,
    /// Value heads.
    pub value_heads: usize,
    /// Size of a key.
    pub key_dim: usize,
    /// Size of a value.
    pub value_dim: usize,
    /// Taps of the convolution.
    pub conv_kernel: usize,
    /// The form of the delta rule that takes prompts.
    pub prefill: Form,
}

impl LinearConfig {
    /// Channels of the fused projection: queries, keys, values.
    pub fn channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }

    /// The sizes one of `world` ranks works with.
    pub fn on_rank(&self, layout: KeyHeads, world: usize) -> DeltaDims {
        DeltaDims {
            key_heads: self.key_heads / world,
            value_heads: self.value_heads / world,
            key_dim: self.key_dim,
            value_dim: self.value_dim,
            conv_kernel: self.conv_kernel,
            layout,
            prefill: self.prefill,
        }
    }
}

/// The feed-forward of every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FfnConfig {
    /// SwiGLU.
    Dense {
        /// Inner width.
        intermediate_size: usize,
    },
    /// Mixture of experts beside a shared expert.
    Mixture {
        /// Experts.
        experts: usize,
        /// Experts a token visits.
        experts_per_token: usize,
        /// Inner width of an expert.
        expert_size: usize,
        /// Inner width of the shared expert.
        shared_size: usize,
    },
}

/// The vision tower.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// Blocks.
    pub depth: usize,
    /// Width.
    pub hidden_size: usize,
    /// Attention heads.
    pub heads: usize,
    /// Inner width of a block's feed-forward.
    pub intermediate_size: usize,
    /// Colour channels.
    pub channels: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Frames of a patch.
    pub temporal_patch_size: usize,
    /// Side, in patches, of the block that becomes one token.
    pub merge_size: usize,
    /// Side of the square table of learned positions.
    pub position_side: usize,
    /// Width of what the tower hands to the decoder.
    pub out_hidden_size: usize,
    /// Activation inside the blocks.
    pub activation: Gelu,
}

/// The two spellings of GELU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// With the hyperbolic tangent.
    Tanh,
    /// With the error function.
    Erf,
}

fn positive(key: &str, value: usize) -> Result<usize> {
    if value == 0 { Err(invalid(format!("{key} must be at least 1"))) } else { Ok(value) }
}

fn multiple(key: &str, value: usize, of: &str, factor: usize) -> Result<()> {
    if value.is_multiple_of(factor) {
        return Ok(());
    }
    Err(invalid(format!("{key} is {value}, not a multiple of {of}, {factor}")))
}

fn invalid(message: String) -> Error {
    Error::InvalidInput(message)
}

fn unsupported(what: String) -> Error {
    Error::Unsupported(format!("this checkpoint has {what}"))
}
