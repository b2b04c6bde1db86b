//! Attention over per-sequence caches.
use std::ops::Range;
use candle_core::Tensor;
use crate::error::Result;
use crate::kv::KvCache;
/// One sequence's tokens in a step.
pub struct KvRow<'a> { pub cache: &'a mut KvCache, /** first token in the step */ pub offset: usize, pub len: usize }
/// Appends `k`, `v` at the cache's reserved positions and attends causally over everything before.
/// `q [tokens, heads, hd]`, `k`, `v [tokens, kv_heads, hd]` → `[tokens, heads * hd]`. `layer` counts layers of the cache.
pub fn causal(q: &Tensor, k: &Tensor, v: &Tensor, layer: usize, rows: &mut [KvRow<'_>], scale: f32, window: Option<usize>) -> Result<Tensor> { unimplemented!() }
/// No mask, no cache: tokens of a span attend to all tokens of the same span (one image). Same shapes.
pub fn full(q: &Tensor, k: &Tensor, v: &Tensor, spans: &[Range<usize>], scale: f32) -> Result<Tensor> { unimplemented!() }
