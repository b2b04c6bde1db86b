//! The full mixer: grouped-query attention with normalised queries and keys, partial rotary embedding, and a
//! sigmoid gate on its output.

use layers::activation::sigmoid_mul;
use layers::attention::{self, KvRow};
use layers::linear::{Bias, HeadSplit, Linear, QkvLinear};
use layers::norm::{RmsNorm, Scale};
use layers::rotary::Angles;
use layers::trace::Trace;
use layers::weights::Weights;
use layers::{Result, Tensor};

use crate::config::TextConfig;

/// One layer's gated attention, this rank's heads of it.
pub struct GatedAttention {
    qkv: QkvLinear,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    o_proj: Linear,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl GatedAttention {
    /// The scope is `self_attn`.
    pub fn load(w: &Weights, config: &TextConfig, split: &HeadSplit, norm: Scale) -> Result<Self> {
        let attention = &config.attention;
        let (heads, kv_heads, head_dim) = (attention.heads, attention.kv_heads, attention.head_dim);
        let bias = if attention.bias { Bias::Required } else { Bias::None };
        let columns = split.heads.start * head_dim..split.heads.end * head_dim;
        let hidden = config.hidden_size;
        Ok(Self {
            qkv: QkvLinear::load(w, hidden, split, heads, kv_heads, head_dim, 2 * head_dim, bias)?,
            q_norm: RmsNorm::load(&w.pp("q_norm"), head_dim, config.rms_norm_eps, norm)?,
            k_norm: RmsNorm::load(&w.pp("k_norm"), head_dim, config.rms_norm_eps, norm)?,
            o_proj: Linear::columns(&w.pp("o_proj"), heads * head_dim, hidden, columns, bias)?,
            heads: split.heads.len(),
            kv_heads: split.kv_heads.len(),
            head_dim,
        })
    }

    /// `x [tokens, hidden]`, already normed; `layer` counts the layers that have a KV cache.
    pub fn forward(
        &self,
        x: &Tensor,
        angles: &Angles,
        layer: usize,
        rows: &mut [KvRow<'_>],
        trace: &Trace,
        scope: &str,
    ) -> Result<Tensor> {
        let (tokens, hd) = (x.dim(0)?, self.head_dim);
        let (q_gate, k, v) = self.qkv.forward(x)?;

        // Each head's rows of q_proj are its query, then its gate.
        let q_gate = q_gate.reshape((tokens, self.heads, 2 * hd))?;
        let q = q_gate.narrow(2, 0, hd)?.contiguous()?;
        let gate = q_gate.narrow(2, hd, hd)?.contiguous()?.flatten_from(1)?;
        let k = k.reshape((tokens, self.kv_heads, hd))?;
        let v = v.reshape((tokens, self.kv_heads, hd))?;

        let q = angles.apply(&self.q_norm.forward(&q)?)?;
        let k = angles.apply(&self.k_norm.forward(&k)?)?;
        let scale = (hd as f32).sqrt().recip();
        let context = attention::causal(&q, &k, &v, layer, rows, scale, None)?;
        let out = self.o_proj.forward(&sigmoid_mul(&context, &gate)?)?;

        for (name, heads) in [("q_rope", &q), ("k_rope", &k), ("v", &v)] {
            trace.tap(|| format!("{scope}/attn/{name}"), || Ok(heads.transpose(0, 1)?.contiguous()?))?;
        }
        for (name, flat) in [("gate", &gate), ("ctx", &context), ("out", &out)] {
            trace.tap(|| format!("{scope}/attn/{name}"), || Ok(flat.clone()))?;
        }
        Ok(out)
    }
}
