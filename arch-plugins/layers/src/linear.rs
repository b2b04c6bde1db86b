//! Linear layers: `y = x Wᵀ + b`, whatever the weight's format, split and kernel.
use std::ops::Range;
use candle_core::Tensor;
use crate::error::Result;
use crate::weights::{RawTensor, Weights};
use crate::comm::Communicator;

/// Whether a linear has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias { None, Required, IfPresent }

/// Every constructor takes the scope that holds `weight` (and `bias`): `Linear::column_parallel(&w.pp("q_proj"), h, n, Bias::None)`.
#[derive(Clone)]
pub struct Linear { }
impl Linear {
    /// The whole matrix on each rank. (Routers: pass through `replicated_plain`, which is never quantized.)
    pub fn replicated(w: &Weights, inputs: usize, outputs: usize, bias: Bias) -> Result<Self> { unimplemented!() }
    /// As `replicated`, kept as stored whatever the placement's quantization.
    pub fn replicated_plain(w: &Weights, inputs: usize, outputs: usize, bias: Bias) -> Result<Self> { unimplemented!() }
    /// This rank's even share of the output rows.
    pub fn column_parallel(w: &Weights, inputs: usize, outputs: usize, bias: Bias) -> Result<Self> { unimplemented!() }
    /// This rank holds exactly these row ranges of the stored `[outputs, inputs]` matrix, in this order.
    pub fn rows(w: &Weights, inputs: usize, outputs: usize, rows: &[Range<usize>], bias: Bias) -> Result<Self> { unimplemented!() }
    /// This rank's even share of the input columns; `forward` all-reduces, then adds the bias once.
    pub fn row_parallel(w: &Weights, inputs: usize, outputs: usize, bias: Bias) -> Result<Self> { unimplemented!() }
    /// This rank's `columns`; `forward` all-reduces, then adds the bias once.
    pub fn columns(w: &Weights, inputs: usize, outputs: usize, columns: Range<usize>, bias: Bias) -> Result<Self> { unimplemented!() }
    /// From a matrix `[out, in]` that is part of a stack: row ranges and column range of this rank, no bias, no all-reduce.
    pub fn from_raw(raw: &RawTensor, rows: &[Range<usize>], columns: Range<usize>, w: &Weights) -> Result<Self> { unimplemented!() }
    pub fn inputs(&self) -> usize { unimplemented!() }
    pub fn outputs(&self) -> usize { unimplemented!() }
    pub fn bytes(&self) -> u64 { unimplemented!() }
    /// `x`: `[tokens, inputs]` (local), result `[tokens, outputs]` (local) in x's dtype.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> { unimplemented!() }
    /// As `forward` but without all-reduce and bias of a row-parallel layer.
    pub fn forward_partial(&self, x: &Tensor) -> Result<Tensor> { unimplemented!() }
    /// Several linears of one input: activations are quantized once, one parallel section.
    pub fn forward_group(group: &[&Linear], x: &Tensor) -> Result<Vec<Tensor>> { unimplemented!() }
}

/// Which heads a rank owns. KV heads are replicated when there are fewer than ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadSplit { pub heads: Range<usize>, pub kv_heads: Range<usize> }
impl HeadSplit {
    pub fn of(heads: usize, kv_heads: usize, comm: &dyn Communicator) -> Result<Self> { unimplemented!() }
}

/// `q_proj`, `k_proj`, `v_proj` of one attention.
#[derive(Clone)]
pub struct QkvLinear { pub q: Linear, pub k: Linear, pub v: Linear }
impl QkvLinear {
    /// `w` is the scope of the attention; `q_rows_per_head` is `head_dim`, or `2 * head_dim` with an output gate.
    pub fn load(w: &Weights, hidden: usize, split: &HeadSplit, heads: usize, kv_heads: usize, head_dim: usize, q_rows_per_head: usize, bias: Bias) -> Result<Self> { unimplemented!() }
    /// `[tokens, local q rows]`, `[tokens, local kv heads * head_dim]` twice.
    pub fn forward(&self, x: &Tensor) -> Result<(Tensor, Tensor, Tensor)> { unimplemented!() }
}
