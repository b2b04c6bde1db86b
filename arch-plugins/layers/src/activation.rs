//! Elementwise activations.
use candle_core::Tensor;
use crate::error::Result;
/// `silu(gate) ⊙ up`.
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> { unimplemented!() }
/// `x ⊙ σ(gate)`.
pub fn sigmoid_mul(x: &Tensor, gate: &Tensor) -> Result<Tensor> { unimplemented!() }
/// `x·σ(x)`.
pub fn silu(x: &Tensor) -> Result<Tensor> { unimplemented!() }
/// The tanh form.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> { unimplemented!() }
/// The erf form.
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> { unimplemented!() }
