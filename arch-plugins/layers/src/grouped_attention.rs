//! Grouped-query attention with rotary positions, and optionally a norm over each head's queries and keys.

use candle_core::Tensor;

use crate::attention::{self, KvRow};
use crate::error::Result;
use crate::linear::{Bias, HeadSplit, Linear, QkvLinear};
use crate::norm::{RmsNorm, Scale};
use crate::rotary::Angles;
use crate::trace::Trace;
use crate::weights::Weights;

/// What an attention is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// Bias of the projections to queries, keys and values.
    pub qkv_bias: Bias,
    /// Bias of the projection back.
    pub o_bias: Bias,
    /// Epsilon of `q_norm` and `k_norm`, where a model has them.
    pub head_norm_eps: Option<f64>,
    /// Tokens a query looks back at; all of them without a window.
    pub window: Option<usize>,
}

/// This rank's heads of one layer's attention.
#[derive(Clone)]
pub struct GroupedAttention {
    qkv: QkvLinear,
    head_norms: Option<(RmsNorm, RmsNorm)>,
    o_proj: Linear,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
}

impl GroupedAttention {
    /// The scope holds `q_proj`, `k_proj`, `v_proj`, `o_proj` and, with head norms, `q_norm` and `k_norm`.
    pub fn load(w: &Weights, config: &AttentionConfig) -> Result<Self> {
        let AttentionConfig { hidden_size, heads, kv_heads, head_dim, .. } = *config;
        let split = HeadSplit::of(heads, kv_heads, w.placement().comm.as_ref())?;
        let columns = split.heads.start * head_dim..split.heads.end * head_dim;
        let norm = |name, eps| RmsNorm::load(&w.pp(name), head_dim, eps, Scale::Plain);
        let norms = |eps| Ok::<_, crate::Error>((norm("q_norm", eps)?, norm("k_norm", eps)?));
        Ok(Self {
            qkv: QkvLinear::load(
                w,
                hidden_size,
                &split,
                heads,
                kv_heads,
                head_dim,
                head_dim,
                config.qkv_bias,
            )?,
            head_norms: config.head_norm_eps.map(norms).transpose()?,
            o_proj: Linear::columns(&w.pp("o_proj"), heads * head_dim, hidden_size, columns, config.o_bias)?,
            heads: split.heads.len(),
            kv_heads: split.kv_heads.len(),
            head_dim,
            window: config.window,
        })
    }

    /// `x [tokens, hidden]`, already normed; `layer` counts the layers of the cache.
    pub fn forward(
        &self,
        x: &Tensor,
        angles: &Angles,
        layer: usize,
        rows: &mut [KvRow<'_>],
        trace: &Trace,
        scope: &str,
    ) -> Result<Tensor> {
        let tokens = x.dim(0)?;
        let (q, k, v) = self.qkv.forward(x)?;
        let mut q = q.reshape((tokens, self.heads, self.head_dim))?;
        let mut k = k.reshape((tokens, self.kv_heads, self.head_dim))?;
        let v = v.reshape((tokens, self.kv_heads, self.head_dim))?;
        if let Some((q_norm, k_norm)) = &self.head_norms {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        let (q, k) = (angles.apply(&q)?, angles.apply(&k)?);
        let scale = (self.head_dim as f32).sqrt().recip();
        let context = attention::causal(&q, &k, &v, layer, rows, scale, self.window)?;
        let out = self.o_proj.forward(&context)?;

        for (name, heads) in [("q_rope", &q), ("k_rope", &k), ("v", &v)] {
            trace.tap(|| format!("{scope}/attn/{name}"), || Ok(heads.transpose(0, 1)?.contiguous()?))?;
        }
        for (name, flat) in [("ctx", &context), ("out", &out)] {
            trace.tap(|| format!("{scope}/attn/{name}"), || Ok(flat.clone()))?;
        }
        Ok(out)
    }
}
