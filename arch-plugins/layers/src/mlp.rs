//! The gated feed-forward.

use candle_core::Tensor;

use crate::activation::silu_mul;
use crate::error::Result;
use crate::linear::{Bias, Linear, Packed};
use crate::weights::Weights;

/// `down(silu(gate(x)) ⊙ up(x))`; its place holds `gate_proj`, `up_proj` and `down_proj`.
#[derive(Debug, Clone)]
pub struct SwiGlu {
    gate: Linear,
    up: Linear,
    down: Linear,
    packed: Packed,
}

impl SwiGlu {
    /// Loads this rank's share of the intermediate values.
    pub fn load(w: &Weights, hidden: usize, intermediate: usize, bias: Bias) -> Result<Self> {
        let mut gate = Linear::column_parallel(&w.pp("gate_proj"), hidden, intermediate, bias)?;
        let mut up = Linear::column_parallel(&w.pp("up_proj"), hidden, intermediate, bias)?;
        let down = Linear::row_parallel(&w.pp("down_proj"), intermediate, hidden, bias)?;
        let packed = Linear::packed(&mut [&mut gate, &mut up])?;
        Ok(Self { gate, up, down, packed })
    }

    /// From three linears, e.g. slices of a stack of experts.
    pub fn from_linears(gate: Linear, up: Linear, down: Linear) -> Self {
        Self { gate, up, down, packed: Packed::default() }
    }

    /// `x [tokens, hidden]` → `[tokens, hidden]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward(&self.inner(x)?)
    }

    /// As [`SwiGlu::forward`], but this rank's part alone: mixtures add several of these up first.
    pub fn forward_partial(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward_partial(&self.inner(x)?)
    }

    fn inner(&self, x: &Tensor) -> Result<Tensor> {
        let both = Linear::forward_packed(&self.packed, &[&self.gate, &self.up], x)?;
        silu_mul(&both[0], &both[1])
    }

    /// Bytes of weights on this rank.
    pub fn bytes(&self) -> u64 {
        self.gate.bytes() + self.up.bytes() + self.down.bytes()
    }
}
