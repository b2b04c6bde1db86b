//! LLaMA: the pre-norm decoder with grouped-query attention and SwiGLU.
//!
//! ```text
//! attention:   q, k = rotary(q), rotary(k)      softmax(q kᵀ / √head_dim) v, heads of a group share keys and values
//! ffn:         down(silu(gate(x)) ⊙ up(x))
//! ```

use layers::Result;
use layers::decoder::{DecoderLayer, PreNormDecoder};
use layers::embedding::{Embedding, Head};
use layers::feed_forward::FeedForward;
use layers::grouped_attention::{AttentionConfig, GroupedAttention};
use layers::kv::KvShape;
use layers::linear::HeadSplit;
use layers::mlp::SwiGlu;
use layers::norm::{RmsNorm, Scale};
use layers::rotary::{Pairs, Rotary};
use layers::weights::Weights;

use crate::config::Config;

/// Puts the decoder together from the root of the name tree.
pub fn load(w: &Weights, config: &Config) -> Result<PreNormDecoder> {
    let model = w.pp("model");
    let embed_tokens = Embedding::load(&model.pp("embed_tokens"), config.vocab_size, config.hidden_size)?;
    let lm_head = if config.tie_word_embeddings {
        Head::tied(&embed_tokens)
    } else {
        Head::load(&w.pp("lm_head"), config.vocab_size, config.hidden_size)?
    };
    let layer = |i: usize| layer(&model.pp("layers").pp(i), config);
    Ok(PreNormDecoder {
        layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
        norm: RmsNorm::load(&model.pp("norm"), config.hidden_size, config.rms_norm_eps, Scale::Plain)?,
        rotary: Rotary::new(&config.rotary, pairs(w))?,
        kv: kv_shape(config, w)?,
        embed_tokens,
        lm_head,
    })
}

fn layer(w: &Weights, config: &Config) -> Result<DecoderLayer> {
    let norm = |name| RmsNorm::load(&w.pp(name), config.hidden_size, config.rms_norm_eps, Scale::Plain);
    let mlp = SwiGlu::load(&w.pp("mlp"), config.hidden_size, config.intermediate_size, config.mlp_bias)?;
    Ok(DecoderLayer {
        input_norm: norm("input_layernorm")?,
        attention: GroupedAttention::load(&w.pp("self_attn"), &attention(config))?,
        post_norm: norm("post_attention_layernorm")?,
        ffn: FeedForward::Dense(mlp),
    })
}

fn attention(config: &Config) -> AttentionConfig {
    AttentionConfig {
        hidden_size: config.hidden_size,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        qkv_bias: config.attention_bias,
        o_bias: config.attention_bias,
        head_norm_eps: None,
        window: config.window,
    }
}

/// GGUFs of this architecture store query and key rows so that the halves of a pair are neighbours.
fn pairs(w: &Weights) -> Pairs {
    if w.gguf().is_some() { Pairs::Adjacent } else { Pairs::Halves }
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
