//! Qwen3: LLaMA's decoder with normalised queries and keys, dense or as a mixture of experts.
//!
//! ```text
//! attention:   q, k = rotary(norm(q)), rotary(norm(k))     one weight of head_dim for all heads, values as they are
//! ffn:         SwiGLU, or in mixture layers  Σ wₑ · SwiGLUₑ  over the experts a softmax over all of them ranks first
//! ```
//!
//! Layer `i` of a mixture model is a mixture if `i` is not in `mlp_only_layers` and `i + 1` is a multiple of
//! `decoder_sparse_step`.

use layers::Result;
use layers::decoder::{DecoderLayer, PreNormDecoder};
use layers::embedding::{Embedding, Head};
use layers::feed_forward::FeedForward;
use layers::grouped_attention::{AttentionConfig, GroupedAttention};
use layers::kv::KvShape;
use layers::linear::{Bias, HeadSplit};
use layers::mlp::SwiGlu;
use layers::moe::{MoeConfig, SparseMoe};
use layers::norm::{RmsNorm, Scale};
use layers::rotary::{Pairs, Rotary};
use layers::weights::Weights;

use crate::config::{Config, Mixture};

/// Puts the decoder together from the root of the name tree.
pub fn load(w: &Weights, config: &Config) -> Result<PreNormDecoder> {
    let model = w.pp("model");
    let embed_tokens = Embedding::load(&model.pp("embed_tokens"), config.vocab_size, config.hidden_size)?;
    let lm_head = if config.tie_word_embeddings {
        Head::tied(&embed_tokens)
    } else {
        Head::load(&w.pp("lm_head"), config.vocab_size, config.hidden_size)?
    };
    let layer = |i: usize| layer(&model.pp("layers").pp(i), config, i);
    Ok(PreNormDecoder {
        layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
        norm: RmsNorm::load(&model.pp("norm"), config.hidden_size, config.rms_norm_eps, Scale::Plain)?,
        rotary: Rotary::new(&config.rotary, Pairs::Halves)?,
        kv: kv_shape(config, w)?,
        embed_tokens,
        lm_head,
    })
}

fn layer(w: &Weights, config: &Config, i: usize) -> Result<DecoderLayer> {
    let norm = |name| RmsNorm::load(&w.pp(name), config.hidden_size, config.rms_norm_eps, Scale::Plain);
    Ok(DecoderLayer {
        input_norm: norm("input_layernorm")?,
        attention: GroupedAttention::load(&w.pp("self_attn"), &attention(config, i))?,
        post_norm: norm("post_attention_layernorm")?,
        ffn: match config.mixture_of(i) {
            Some(mixture) => FeedForward::Mixture(SparseMoe::load(&w.pp("mlp"), &experts(config, mixture))?),
            None => {
                let size = config.intermediate_size;
                FeedForward::Dense(SwiGlu::load(&w.pp("mlp"), config.hidden_size, size, Bias::None)?)
            }
        },
    })
}

fn attention(config: &Config, i: usize) -> AttentionConfig {
    let bias = if config.attention_bias { Bias::Required } else { Bias::None };
    AttentionConfig {
        hidden_size: config.hidden_size,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        qkv_bias: bias,
        o_bias: bias,
        head_norm_eps: Some(config.rms_norm_eps),
        window: config.window_of(i),
    }
}

fn experts(config: &Config, mixture: &Mixture) -> MoeConfig {
    MoeConfig {
        hidden_size: config.hidden_size,
        experts: mixture.experts,
        experts_per_token: mixture.experts_per_token,
        expert_size: mixture.expert_size,
        renormalise: mixture.renormalise,
        shared_size: None,
    }
}

fn kv_shape(config: &Config, w: &Weights) -> Result<KvShape> {
    let split = HeadSplit::of(config.heads, config.kv_heads, w.placement().comm.as_ref())?;
    Ok(KvShape {
        layers: config.layers,
        kv_heads: split.kv_heads.len(),
        head_dim: config.head_dim,
        kept: w.placement().kept(),
    })
}
