//! The pre-norm decoder, as most models since LLaMA are built:
//!
//! ```text
//! x = embed(tokens)
//! for each layer:   x = x + attention(norm(x))
//!                   x = x + ffn(norm(x))
//! logits = head(norm(x))
//! ```
//!
//! An architecture of this shape says in its `load` what its parts are; that they are put together like this is said
//! here, once. A model whose sequences keep more than a KV cache is not of this shape.

use candle_core::Tensor;

use crate::attention::KvRow;
use crate::batch::{Batch, BatchRow, Decoder};
use crate::embedding::{Embedding, Head};
use crate::error::Result;
use crate::feed_forward::FeedForward;
use crate::grouped_attention::GroupedAttention;
use crate::kv::{KvCache, KvShape};
use crate::norm::RmsNorm;
use crate::rotary::{Angles, Rotary};
use crate::sequences::SequenceState;
use crate::trace::Trace;

/// The whole decoder on one rank. All parts are the architecture's to choose.
pub struct PreNormDecoder {
    /// Token embedding.
    pub embed_tokens: Embedding,
    /// Layers, first to last.
    pub layers: Vec<DecoderLayer>,
    /// Norm before the head.
    pub norm: RmsNorm,
    /// Output head.
    pub lm_head: Head,
    /// Positions.
    pub rotary: Rotary,
    /// Cache of a sequence.
    pub kv: KvShape,
}

/// One layer.
pub struct DecoderLayer {
    /// Norm before attention.
    pub input_norm: RmsNorm,
    /// Attention.
    pub attention: GroupedAttention,
    /// Norm before the feed-forward.
    pub post_norm: RmsNorm,
    /// Feed-forward.
    pub ffn: FeedForward,
}

impl Decoder for PreNormDecoder {
    type State = KvCache;

    fn new_state(&self) -> KvCache {
        KvCache::new(self.kv)
    }

    fn forward(&self, batch: &mut Batch<'_, KvCache>, trace: &Trace) -> Result<Tensor> {
        for row in &mut batch.rows {
            row.state.reserve(row.len)?;
        }
        let mut x = self.embed_tokens.forward(batch.tokens)?;
        let angles = self.angles(&batch.rows, trace)?;
        for (i, layer) in self.layers.iter().enumerate() {
            batch.cancel.check()?;
            trace.tap(|| format!("hidden/{i}"), || Ok(x.clone()))?;
            x = layer.forward(&x, &angles, i, &mut batch.rows, trace, &format!("layer{i}"))?;
        }
        trace.tap(|| format!("hidden/{}", self.layers.len()), || Ok(x.clone()))?;
        trace.tap(|| "hidden/final", || self.norm.forward(&x))?;
        for row in &mut batch.rows {
            row.state.commit(row.len);
        }
        if batch.logits_of.is_empty() {
            return Ok(x);
        }
        let wanted = Tensor::new(batch.logits_of.as_slice(), x.device())?;
        self.lm_head.forward(&self.norm.forward(&x.index_select(&wanted, 0)?)?)
    }
}

impl DecoderLayer {
    fn forward(
        &self,
        x: &Tensor,
        angles: &Angles,
        index: usize,
        rows: &mut [BatchRow<'_, KvCache>],
        trace: &Trace,
        scope: &str,
    ) -> Result<Tensor> {
        let mut rows: Vec<KvRow<'_>> = rows
            .iter_mut()
            .map(|row| KvRow { cache: &mut *row.state, offset: row.offset, len: row.len })
            .collect();
        let y =
            self.attention.forward(&self.input_norm.forward(x)?, angles, index, &mut rows, trace, scope)?;
        let (x, y) = self.post_norm.add_forward(x, &y)?;
        Ok((x + self.ffn.forward(&y, trace, scope)?)?)
    }
}

impl PreNormDecoder {
    fn angles(&self, rows: &[BatchRow<'_, KvCache>], trace: &Trace) -> Result<Angles> {
        let positions: Vec<u32> =
            rows.iter().flat_map(|row| row.position as u32..(row.position + row.len) as u32).collect();
        let angles = self.rotary.at(&positions);
        trace.tap(|| "rope/cos", || angles.cos())?;
        trace.tap(|| "rope/sin", || angles.sin())?;
        Ok(angles)
    }
}

impl SequenceState for KvCache {
    fn len(&self) -> usize {
        KvCache::len(self)
    }

    fn fork(&self, len: usize) -> Result<Self> {
        KvCache::fork(self, len)
    }

    fn trim(&mut self, len: usize) -> Result<()> {
        KvCache::trim(self, len)
    }

    fn bytes(&self) -> u64 {
        KvCache::bytes(self)
    }
}
