//! Attention's projections, split by heads.

use std::ops::Range;

use candle_core::Tensor;

use super::{Bias, Linear, Packed};
use crate::comm::Communicator;
use crate::error::{Error, Result};
use crate::weights::Weights;

/// Which heads a rank owns. Where there are fewer key/value heads than ranks, each is held by several ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadSplit {
    /// Query heads.
    pub heads: Range<usize>,
    /// Key/value heads, those that the query heads read.
    pub kv_heads: Range<usize>,
}

impl HeadSplit {
    /// The share of this rank.
    pub fn of(heads: usize, kv_heads: usize, comm: &dyn Communicator) -> Result<Self> {
        let (rank, world) = (comm.rank(), comm.world());
        let grouped = kv_heads > 0 && heads.is_multiple_of(kv_heads);
        let shared = kv_heads > 0 && (kv_heads.is_multiple_of(world) || world.is_multiple_of(kv_heads));
        if !grouped {
            return Err(Error::Unsupported(format!(
                "{heads} attention heads cannot be grouped over {kv_heads} key/value heads"
            )));
        }
        if !heads.is_multiple_of(world) || !shared {
            return Err(Error::Unsupported(format!(
                "{heads} attention heads with {kv_heads} key/value heads cannot be shared by {world} ranks; \
                 use a number of ranks that divides both"
            )));
        }
        let each = heads / world;
        let kv_each = (kv_heads / world).max(1);
        let kv_first = rank * kv_heads / world;
        Ok(Self { heads: rank * each..(rank + 1) * each, kv_heads: kv_first..kv_first + kv_each })
    }
}

/// `q_proj`, `k_proj` and `v_proj` of one attention.
#[derive(Debug, Clone)]
pub struct QkvLinear {
    /// Queries.
    pub q: Linear,
    /// Keys.
    pub k: Linear,
    /// Values.
    pub v: Linear,
    packed: Packed,
}

impl QkvLinear {
    /// `w` is the place of the attention. `q_rows_per_head` is `head_dim`, or more where queries come with a
    /// gate.
    #[allow(clippy::too_many_arguments)]
    pub fn load(
        w: &Weights,
        hidden: usize,
        split: &HeadSplit,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        q_rows_per_head: usize,
        bias: Bias,
    ) -> Result<Self> {
        let part = |name: &str, count: usize, range: &Range<usize>, each: usize| {
            let rows = range.start * each..range.end * each;
            Linear::rows(&w.pp(name), hidden, count * each, &[rows], bias)
        };
        let mut q = part("q_proj", heads, &split.heads, q_rows_per_head)?;
        let mut k = part("k_proj", kv_heads, &split.kv_heads, head_dim)?;
        let mut v = part("v_proj", kv_heads, &split.kv_heads, head_dim)?;
        let packed = Linear::packed(&mut [&mut q, &mut k, &mut v])?;
        Ok(Self { q, k, v, packed })
    }

    /// `x [tokens, hidden]` → queries, keys and values of this rank's heads, `[tokens, heads · rows]`.
    pub fn forward(&self, x: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let mut all = Linear::forward_packed(&self.packed, &[&self.q, &self.k, &self.v], x)?;
        let v = all.pop();
        let k = all.pop();
        let q = all.pop();
        match (q, k, v) {
            (Some(q), Some(k), Some(v)) => Ok((q, k, v)),
            _ => Err(Error::Internal("three projections give three results".into())),
        }
    }

    /// Bytes of weights on this rank.
    pub fn bytes(&self) -> u64 {
        self.q.bytes() + self.k.bytes() + self.v.bytes()
    }
}
