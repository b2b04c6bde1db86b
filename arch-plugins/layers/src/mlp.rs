//! The gated feed-forward.
use candle_core::Tensor;
use crate::error::Result;
use crate::linear::Bias;
use crate::weights::Weights;
/// `down(silu(gate(x)) ⊙ up(x))`; scope holds `gate_proj`, `up_proj`, `down_proj`.
#[derive(Clone)]
pub struct SwiGlu { }
impl SwiGlu {
    pub fn load(w: &Weights, hidden: usize, intermediate: usize, bias: Bias) -> Result<Self> { unimplemented!() }
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> { unimplemented!() }
    /// Without the all-reduce (mixtures add several of these first).
    pub fn forward_partial(&self, x: &Tensor) -> Result<Tensor> { unimplemented!() }
}
