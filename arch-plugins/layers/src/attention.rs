//! Attention over per-sequence caches.
//!
//! Queries of all sequences of a step come in one tensor; each sequence sees its own cache, up to and
//! including its own position. The arithmetic of a query does not depend on its neighbours: see
//! [`crate::kernel`].

#[cfg(any(feature = "cuda", test))]
pub(crate) mod decode;
mod placed;

use std::ops::Range;

use candle_core::Tensor;

use crate::device::{Kept, on_host};
use crate::error::{Error, Result};
pub use crate::kernel::attend::BLOCK;
use crate::kernel::attend::{self, SPAN_BLOCKS, Sees, Tile};
use crate::kernel::{Isa, Shared, pool};
use crate::kv::{KvCache, KvShape};
use crate::slice;
pub(crate) use placed::SCORES;

/// Query rows (tokens times heads of a group) worked on together.
const TILE_ROWS: usize = 48;

/// One sequence's tokens in a step.
pub struct KvRow<'a> {
    /// Its cache, with room for `len` more tokens.
    pub cache: &'a mut KvCache,
    /// First token in the step.
    pub offset: usize,
    /// Number of tokens.
    pub len: usize,
}

/// Writes `k` and `v` at the caches' reserved positions and attends causally over everything up to there.
///
/// `q [tokens, heads, head_dim]`, `k` and `v [tokens, kv_heads, head_dim]` → `[tokens, heads · head_dim]`.
/// `layer` counts the layers of the cache. With a `window`, a token sees that many tokens, itself included.
pub fn causal(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    layer: usize,
    rows: &mut [KvRow<'_>],
    scale: f32,
    window: Option<usize>,
) -> Result<Tensor> {
    if !on_host(q.device()) {
        return placed::causal(q, k, v, layer, rows, scale, window);
    }
    let (keys, values) = (slice::contiguous(k)?, slice::contiguous(v)?);
    let (_, kv_heads, head_dim) = k.dims3()?;
    let mut spans = Vec::with_capacity(rows.len());
    for row in rows.iter_mut() {
        let shape = row.cache.shape();
        if (shape.kv_heads, shape.head_dim) != (kv_heads, head_dim) || layer >= shape.layers {
            return Err(Error::Internal(format!("layer {layer} with keys {:?} in {shape:?}", k.dims())));
        }
        slice::lend(&keys, |k| slice::lend(&values, |v| append(row, layer, k, v)))???;
        let position = row.cache.len();
        spans.push(SpanOf {
            blocks: row.cache.blocks().collect(),
            head_offset: shape.head_offset(layer, 0),
            offset: row.offset,
            sees: (0..row.len)
                .map(|i| {
                    let to = position + i;
                    Sees { from: window.map_or(0, |window| (to + 1).saturating_sub(window)), to }
                })
                .collect(),
        });
    }
    attend(q, kv_heads, &spans, scale)
}

/// Attention without mask and cache: tokens of a span see all tokens of the same span (one image).
///
/// Shapes as in [`causal`].
pub fn full(q: &Tensor, k: &Tensor, v: &Tensor, spans: &[Range<usize>], scale: f32) -> Result<Tensor> {
    if !on_host(q.device()) {
        return placed::full(q, k, v, spans, scale);
    }
    let (_, kv_heads, head_dim) = k.dims3()?;
    let (keys, values) = (slice::contiguous(k)?, slice::contiguous(v)?);
    let shape = KvShape { layers: 1, kv_heads, head_dim, kept: Kept::Host };
    let mut caches = vec![KvCache::new(shape); spans.len()];
    let mut views = Vec::with_capacity(spans.len());
    for (span, cache) in spans.iter().zip(&mut caches) {
        cache.reserve(span.len())?;
        let mut row = KvRow { cache, offset: span.start, len: span.len() };
        slice::lend(&keys, |k| slice::lend(&values, |v| append(&mut row, 0, k, v)))???;
        views.push(SpanOf {
            blocks: cache.blocks().collect(),
            head_offset: 0,
            offset: span.start,
            sees: vec![Sees { from: 0, to: span.len().saturating_sub(1) }; span.len()],
        });
    }
    attend(q, kv_heads, &views, scale)
}

/// Writes a row's keys (transposed) and values into its reserved blocks.
fn append(row: &mut KvRow<'_>, layer: usize, k: &[f32], v: &[f32]) -> Result<()> {
    let shape = row.cache.shape();
    let (kv_heads, head_dim) = (shape.kv_heads, shape.head_dim);
    let padded = attend::padded(head_dim);
    let start = row.cache.len();
    if (row.offset + row.len) * kv_heads * head_dim > k.len() {
        return Err(Error::Internal("a row reaches past the step's tokens".into()));
    }
    let (first, end) = (start / BLOCK, (start + row.len).div_ceil(BLOCK));
    let blocks =
        (first..end).map(|index| Ok(Shared(row.cache.block_mut(index)?))).collect::<Result<Vec<_>>>()?;
    let heads_per_task = if row.len > 8 { 1 } else { kv_heads };
    let (offset, len) = (row.offset, row.len);
    pool::run(kv_heads.div_ceil(heads_per_task), &|task| {
        for head in task * heads_per_task..((task + 1) * heads_per_task).min(kv_heads) {
            for i in 0..len {
                let position = start + i;
                let at = ((offset + i) * kv_heads + head) * head_dim;
                let (k, v) = (&k[at..at + head_dim], &v[at..at + head_dim]);
                let slot = position % BLOCK;
                // SAFETY: the block was reserved for this sequence alone and has this shape; each task has
                // heads of its own.
                unsafe {
                    let block = blocks[position / BLOCK - first].at(shape.head_offset(layer, head));
                    for (d, value) in k.iter().enumerate() {
                        *block.add(d * BLOCK + slot) = *value;
                    }
                    let values = block.add(head_dim * BLOCK + slot * padded);
                    std::ptr::copy_nonoverlapping(v.as_ptr(), values, head_dim);
                }
            }
        }
    });
    Ok(())
}

/// One sequence as the attending threads see it.
struct SpanOf {
    blocks: Vec<*const f32>,
    head_offset: usize,
    offset: usize,
    sees: Vec<Sees>,
}

// SAFETY: the blocks are only read, by tasks of a section that ends before the caches are used again.
unsafe impl Sync for SpanOf {}

/// Some tokens of a sequence and one key/value head.
struct Item {
    span: usize,
    head: usize,
    tokens: Range<usize>,
}

/// What all tasks of one attention share.
struct Job<'a> {
    q: &'a [f32],
    spans: &'a [SpanOf],
    heads: usize,
    group: usize,
    head_dim: usize,
    kv_heads: usize,
    scale: f32,
    isa: Isa,
}

fn attend(q: &Tensor, kv_heads: usize, spans: &[SpanOf], scale: f32) -> Result<Tensor> {
    let (tokens, heads, head_dim) = q.dims3()?;
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(Error::Internal(format!("{heads} heads over {kv_heads} key/value heads")));
    }
    if spans.iter().any(|span| span.offset + span.sees.len() > tokens) {
        return Err(Error::Internal("a row reaches past the step's tokens".into()));
    }
    let dense = slice::contiguous(q)?;
    let mut out = vec![0f32; tokens * heads * head_dim];
    let to = Shared(out.as_mut_ptr());
    slice::lend(&dense, |q| {
        let group = heads / kv_heads;
        let isa = Isa::best();
        Job { q, spans, heads, group, head_dim, kv_heads, scale, isa }.run(to);
    })?;
    slice::tensor(out, (tokens, heads * head_dim), q.dtype())
}

impl Job<'_> {
    fn run(&self, out: Shared<f32>) {
        let items = self.items();
        let depth = |item: &Item| self.block_range(item).len().div_ceil(SPAN_BLOCKS);
        let deepest = items.iter().map(depth).max().unwrap_or(0);
        if items.len() >= 2 * pool::threads() || deepest <= 1 {
            pool::run(items.len(), &|index| {
                let item = &items[index];
                let mut whole = self.tile(item);
                let mut part = self.tile(item);
                for blocks in self.spans_of(item) {
                    part.reset();
                    self.see(item, &mut part, blocks);
                    whole.merge(&part);
                }
                self.write(item, &whole, out);
            });
            return;
        }
        // Few long sequences: spans of one item go to different threads and are merged in order.
        let parts: Vec<(usize, Range<usize>)> = items
            .iter()
            .enumerate()
            .flat_map(|(index, item)| self.spans_of(item).map(move |blocks| (index, blocks)))
            .collect();
        let done: Vec<std::sync::OnceLock<Tile>> = parts.iter().map(|_| Default::default()).collect();
        pool::run(parts.len(), &|index| {
            let (item, blocks) = &parts[index];
            let mut part = self.tile(&items[*item]);
            self.see(&items[*item], &mut part, blocks.clone());
            let _ = done[index].set(part);
        });
        let mut wholes: Vec<Tile> = items.iter().map(|item| self.tile(item)).collect();
        for ((item, _), part) in parts.iter().zip(&done) {
            wholes[*item].merge(part.get().expect("every part was computed"));
        }
        for (item, whole) in items.iter().zip(&wholes) {
            self.write(item, whole, out);
        }
    }

    fn items(&self) -> Vec<Item> {
        let step = (TILE_ROWS / self.group).max(1);
        let mut items = Vec::new();
        for (span, of) in self.spans.iter().enumerate() {
            // The last tokens see most: they go first, so that threads end together.
            for start in (0..of.sees.len()).step_by(step).rev() {
                let tokens = start..(start + step).min(of.sees.len());
                items.extend((0..self.kv_heads).map(|head| Item { span, head, tokens: tokens.clone() }));
            }
        }
        items
    }

    fn block_range(&self, item: &Item) -> Range<usize> {
        let sees = &self.spans[item.span].sees[item.tokens.clone()];
        let from = sees.iter().map(|sees| sees.from).min().unwrap_or(0);
        let to = sees.iter().map(|sees| sees.to).max().unwrap_or(0);
        from / BLOCK..to / BLOCK + 1
    }

    /// Runs of blocks whose borders are fixed multiples, whatever the item.
    fn spans_of(&self, item: &Item) -> impl Iterator<Item = Range<usize>> + use<> {
        let blocks = self.block_range(item);
        (blocks.start / SPAN_BLOCKS..blocks.end.div_ceil(SPAN_BLOCKS)).map(move |span| {
            (span * SPAN_BLOCKS).max(blocks.start)..((span + 1) * SPAN_BLOCKS).min(blocks.end)
        })
    }

    /// The item's queries, token by token, each with all heads of the group.
    fn tile(&self, item: &Item) -> Tile {
        let of = &self.spans[item.span];
        let mut queries = Vec::with_capacity(item.tokens.len() * self.group * self.head_dim);
        let mut sees = Vec::with_capacity(item.tokens.len() * self.group);
        for token in item.tokens.clone() {
            let row = (of.offset + token) * self.heads + item.head * self.group;
            let values = &self.q[row * self.head_dim..(row + self.group) * self.head_dim];
            queries.extend(values.iter().map(|value| value * self.scale));
            sees.extend(std::iter::repeat_n(of.sees[token], self.group));
        }
        Tile::new(queries, sees, self.head_dim)
    }

    fn see(&self, item: &Item, tile: &mut Tile, blocks: Range<usize>) {
        let of = &self.spans[item.span];
        let per_head = (self.head_dim + attend::padded(self.head_dim)) * BLOCK;
        for index in blocks {
            // SAFETY: blocks hold all heads of this layer from `head_offset` on, in the tile's head
            // dimension; the sequence's positions reach into every block of its range; `isa` is this
            // processor's.
            unsafe {
                let keys = of.blocks[index].add(of.head_offset + item.head * per_head);
                let block = attend::Block { keys, values: keys.add(self.head_dim * BLOCK) };
                attend::see(self.isa, tile, block, index * BLOCK);
            }
        }
    }

    fn write(&self, item: &Item, tile: &Tile, out: Shared<f32>) {
        let of = &self.spans[item.span];
        for (i, token) in item.tokens.clone().enumerate() {
            for j in 0..self.group {
                let row = (of.offset + token) * self.heads + item.head * self.group + j;
                // SAFETY: `out` has `tokens · heads` rows; items are disjoint in tokens or heads.
                let to =
                    unsafe { std::slice::from_raw_parts_mut(out.at(row * self.head_dim), self.head_dim) };
                tile.finish(i * self.group + j, to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    const HEADS: usize = 6;
    const KV_HEADS: usize = 2;

    fn tensor(tokens: usize, heads: usize, head_dim: usize, seed: f32) -> Tensor {
        let values: Vec<f32> =
            (0..tokens * heads * head_dim).map(|i| (i as f32 * 0.7 + seed).sin() * 2.0).collect();
        Tensor::from_vec(values, (tokens, heads, head_dim), &Device::Cpu).unwrap()
    }

    struct Inputs {
        q: Tensor,
        k: Tensor,
        v: Tensor,
        head_dim: usize,
    }

    impl Inputs {
        fn new(tokens: usize, head_dim: usize) -> Self {
            Self {
                q: tensor(tokens, HEADS, head_dim, 0.1),
                k: tensor(tokens, KV_HEADS, head_dim, 0.5),
                v: tensor(tokens, KV_HEADS, head_dim, 0.9),
                head_dim,
            }
        }

        fn cache(&self) -> KvCache {
            KvCache::new(KvShape { layers: 2, kv_heads: KV_HEADS, head_dim: self.head_dim, kept: Kept::Host })
        }

        /// Feeds tokens `range` of the inputs.
        fn feed(&self, cache: &mut KvCache, range: Range<usize>, window: Option<usize>) -> Vec<f32> {
            let part = |x: &Tensor| x.narrow(0, range.start, range.len()).unwrap();
            cache.reserve(range.len()).unwrap();
            let mut rows = [KvRow { cache, offset: 0, len: range.len() }];
            let (q, k, v) = (part(&self.q), part(&self.k), part(&self.v));
            let out = causal(&q, &k, &v, 1, &mut rows, 0.3, window).unwrap();
            cache.commit(range.len());
            out.flatten_all().unwrap().to_vec1().unwrap()
        }

        fn naive(&self, sees: impl Fn(usize) -> Range<usize>) -> Vec<f64> {
            let get = |x: &Tensor| slice::to_vec(x).unwrap();
            let (q, k, v) = (get(&self.q), get(&self.k), get(&self.v));
            let hd = self.head_dim;
            let mut out = Vec::new();
            for token in 0..q.len() / (HEADS * hd) {
                for head in 0..HEADS {
                    let q = &q[(token * HEADS + head) * hd..][..hd];
                    let row = |x: &[f32], t: usize| {
                        let at = (t * KV_HEADS + head / (HEADS / KV_HEADS)) * hd;
                        x[at..at + hd].iter().map(|&x| f64::from(x)).collect::<Vec<_>>()
                    };
                    let weights: Vec<f64> = sees(token)
                        .map(|t| {
                            (q.iter().zip(row(&k, t)).map(|(a, b)| f64::from(*a) * b).sum::<f64>() * 0.3)
                                .exp()
                        })
                        .collect();
                    let total: f64 = weights.iter().sum();
                    for d in 0..hd {
                        out.push(
                            sees(token).zip(&weights).map(|(t, w)| w * row(&v, t)[d]).sum::<f64>() / total,
                        );
                    }
                }
            }
            out
        }
    }

    fn check(got: &[f32], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!((f64::from(*got) - expected).abs() < 1e-5, "{got} instead of {expected}");
        }
    }

    #[test]
    fn every_token_sees_itself_and_what_came_before() {
        for (tokens, head_dim) in [(1, 8), (70, 8), (130, 64), (90, 80)] {
            let inputs = Inputs::new(tokens, head_dim);
            check(&inputs.feed(&mut inputs.cache(), 0..tokens, None), &inputs.naive(|t| 0..t + 1));
        }
    }

    #[test]
    fn a_window_hides_what_is_too_long_ago() {
        let inputs = Inputs::new(200, 16);
        let got = inputs.feed(&mut inputs.cache(), 0..200, Some(70));
        check(&got, &inputs.naive(|t| (t + 1).saturating_sub(70)..t + 1));
    }

    #[test]
    fn without_a_mask_tokens_see_their_span_only() {
        let inputs = Inputs::new(100, 16);
        let out = full(&inputs.q, &inputs.k, &inputs.v, &[0..33, 33..100], 0.3).unwrap();
        let spans = |t: usize| if t < 33 { 0..33 } else { 33..100 };
        check(&slice::to_vec(&out).unwrap(), &inputs.naive(spans));
    }

    #[test]
    fn pieces_and_the_whole_have_the_same_bits() {
        // More than one span of blocks, so that merging is part of it.
        let tokens = 1200;
        let inputs = Inputs::new(tokens, 16);
        let whole = inputs.feed(&mut inputs.cache(), 0..tokens, None);
        let mut cache = inputs.cache();
        let mut pieces = Vec::new();
        for range in [0..1, 1..64, 64..700, 700..701, 701..1199, 1199..1200] {
            pieces.extend(inputs.feed(&mut cache, range, None));
        }
        assert!(whole == pieces, "bits differ");
    }

    #[test]
    fn sequences_of_a_batch_do_not_see_each_other() {
        let inputs = Inputs::new(50, 16);
        let alone: Vec<f32> = [0..20, 20..50]
            .into_iter()
            .flat_map(|range| inputs.feed(&mut inputs.cache(), range, None))
            .collect();
        let (mut a, mut b) = (inputs.cache(), inputs.cache());
        a.reserve(20).unwrap();
        b.reserve(30).unwrap();
        let mut rows =
            [KvRow { cache: &mut a, offset: 0, len: 20 }, KvRow { cache: &mut b, offset: 20, len: 30 }];
        let out = causal(&inputs.q, &inputs.k, &inputs.v, 1, &mut rows, 0.3, None).unwrap();
        assert!(slice::to_vec(&out).unwrap() == alone, "bits differ");
    }
}
