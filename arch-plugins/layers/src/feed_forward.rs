//! A layer's feed-forward: one gated network, or a mixture of them.

use candle_core::Tensor;

use crate::error::Result;
use crate::mlp::SwiGlu;
use crate::moe::SparseMoe;
use crate::trace::Trace;

/// Either kind; a model may have both, layer by layer.
#[allow(clippy::large_enum_variant, reason = "one per layer, never moved after loading")]
#[derive(Clone)]
pub enum FeedForward {
    /// SwiGLU.
    Dense(SwiGlu),
    /// Router and experts.
    Mixture(SparseMoe),
}

impl FeedForward {
    /// `x [tokens, hidden]` → the same shape. `scope` names the layer in the trace.
    pub fn forward(&self, x: &Tensor, trace: &Trace, scope: &str) -> Result<Tensor> {
        match self {
            Self::Dense(mlp) => mlp.forward(x),
            Self::Mixture(moe) => moe.forward(x, trace, scope),
        }
    }
}
