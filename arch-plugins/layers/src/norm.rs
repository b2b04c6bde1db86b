//! Norms over the last axis.
use candle_core::Tensor;
use crate::error::Result;
use crate::weights::Weights;
/// `n(x) ⊙ w` or `n(x) ⊙ (1 + w)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale { Plain, Offset }
/// RMSNorm; scope holds `weight [size]`.
#[derive(Clone)]
pub struct RmsNorm { }
impl RmsNorm {
    pub fn load(w: &Weights, size: usize, eps: f64, scale: Scale) -> Result<Self> { unimplemented!() }
    /// Any shape whose last dimension is `size`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> { unimplemented!() }
    /// `x + y` and its norm in one pass: `(sum, norm(sum))`.
    pub fn add_forward(&self, x: &Tensor, y: &Tensor) -> Result<(Tensor, Tensor)> { unimplemented!() }
}
/// `n(x) ⊙ w ⊙ silu(z)`; weight kept in f32.
#[derive(Clone)]
pub struct GatedRmsNorm { }
impl GatedRmsNorm {
    pub fn load(w: &Weights, size: usize, eps: f64) -> Result<Self> { unimplemented!() }
    pub fn forward(&self, x: &Tensor, gate: &Tensor) -> Result<Tensor> { unimplemented!() }
}
/// LayerNorm with weight and bias.
#[derive(Clone)]
pub struct LayerNorm { }
impl LayerNorm {
    pub fn load(w: &Weights, size: usize, eps: f64) -> Result<Self> { unimplemented!() }
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> { unimplemented!() }
}
