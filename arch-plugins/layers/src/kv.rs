//! Keys and values of one sequence.
use crate::error::Result;
use crate::placement::Placement;
/// Shape of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape { pub layers: usize, pub kv_heads: usize, pub head_dim: usize }
impl KvShape { pub fn bytes_per_token(&self) -> u64 { unimplemented!() } }
/// Keys and values of one sequence, in blocks that forks share.
pub struct KvCache { }
impl KvCache {
    pub fn new(shape: KvShape, placement: &Placement) -> Self { unimplemented!() }
    /// Tokens committed.
    pub fn len(&self) -> usize { unimplemented!() }
    pub fn is_empty(&self) -> bool { self.len() == 0 }
    /// Makes room for `tokens` more; layers then write positions `len .. len + tokens` through `attention::causal`.
    pub fn reserve(&mut self, tokens: usize) -> Result<()> { unimplemented!() }
    /// The reserved tokens are part of the sequence from now on (after the last layer).
    pub fn commit(&mut self, tokens: usize) { unimplemented!() }
    pub fn fork(&self, len: usize) -> Result<Self> { unimplemented!() }
    pub fn trim(&mut self, len: usize) -> Result<()> { unimplemented!() }
    pub fn bytes(&self) -> u64 { unimplemented!() }
}
