//! Token embedding and output head, split by vocabulary.
use candle_core::Tensor;
use crate::error::Result;
use crate::weights::Weights;
/// Scope holds `weight [vocab, hidden]`.
#[derive(Clone)]
pub struct Embedding { }
impl Embedding {
    pub fn load(w: &Weights, vocab: usize, hidden: usize) -> Result<Self> { unimplemented!() }
    /// `[ids, hidden]` in the compute dtype. An id outside the vocabulary is InvalidInput.
    pub fn forward(&self, ids: &[u32]) -> Result<Tensor> { unimplemented!() }
}
/// Logits.
#[derive(Clone)]
pub struct Head { }
impl Head {
    /// Own matrix `weight [vocab, hidden]` in the scope (quantized at load as any linear).
    pub fn load(w: &Weights, vocab: usize, hidden: usize) -> Result<Self> { unimplemented!() }
    /// The embedding's matrix, never quantized at load.
    pub fn tied(embedding: &Embedding) -> Self { unimplemented!() }
    /// `[n, hidden]` → `[n, vocab]` f32, gathered from all ranks.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> { unimplemented!() }
}
