//! Attention off the host, from candle's matrix products and candle-nn's softmax.
//!
//! Each sequence is a batched product over its key/value heads, with the queries of a group side by side. Long prompts
//! are taken in tiles, so that scores never take more than [`SCORES`] values; a tile sees no key after its last query.
//! On a GPU, sequences that bring one token are left to an own kernel, all of a step at once.

use std::ops::Range;

use candle_core::{DType, Tensor};

use super::KvRow;
use crate::error::{Error, Result};

/// Scores held at a time, in values.
pub(crate) const SCORES: usize = 1 << 26;

/// See [`super::causal`].
pub(super) fn causal(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    layer: usize,
    rows: &mut [KvRow<'_>],
    scale: f32,
    window: Option<usize>,
) -> Result<Tensor> {
    let (_, heads, head_dim) = q.dims3()?;
    let (shape, mut contexts) = ((q.dim(0)?, heads * head_dim), Vec::with_capacity(rows.len()));
    #[cfg_attr(not(feature = "cuda"), allow(unused_mut, reason = "only a GPU has kernels for some rows"))]
    let mut done: Option<Tensor> = None;
    #[cfg(feature = "cuda")]
    if let Some(out) = cuda::decodes([q, k, v], layer, rows, scale, window)? {
        if rows.iter().all(|row| row.len == 1) {
            return Ok(out);
        }
        done = Some(out);
    }
    // The scale is small and the queries are few: cheaper than to scale scores.
    let q = (q * f64::from(scale))?;
    for row in rows.iter_mut().filter(|row| done.is_none() || row.len > 1) {
        prompt(&q, k, v, layer, row, window, &mut contexts)?;
    }
    match done {
        None => joined(contexts.into_iter().map(|(_, context)| context).collect()),
        Some(out) => {
            debug_assert_eq!(out.dims2()?, shape);
            for (offset, context) in contexts {
                out.slice_set(&context, 0, offset)?;
            }
            Ok(out)
        }
    }
}

/// One row through candle's operations; adds its contexts, and where in the step they begin.
fn prompt(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    layer: usize,
    row: &mut KvRow<'_>,
    window: Option<usize>,
    contexts: &mut Vec<(usize, Tensor)>,
) -> Result<()> {
    let of_row = |x: &Tensor| x.narrow(0, row.offset, row.len);
    let (q, k, v) = (of_row(q)?, of_row(k)?, of_row(v)?);
    let (cache, position) = row.cache.placed_mut();
    let oldest = |at: usize| window.map_or(0, |window| (at + 1).saturating_sub(window));
    let from = oldest(position);
    let (keys, values) = cache.extend(layer, position, from, &k, &v)?;
    for tile in tiles(row.len, q.dim(1)?, position + row.len - from) {
        let (first, last) = (position + tile.start, position + tile.end - 1);
        let seen = (oldest(first), last + 1 - oldest(first));
        let mask = match tile.len() {
            1 => None,
            count => Some(cache.mask((first, count), seen, window, q.dtype(), q.device())?),
        };
        let context = attend(
            &q.narrow(0, tile.start, tile.len())?,
            &keys.narrow(1, seen.0 - from, seen.1)?,
            &values.narrow(1, seen.0 - from, seen.1)?,
            mask.as_ref(),
        )?;
        contexts.push((row.offset + tile.start, context));
    }
    Ok(())
}

/// Sequences that bring one token each, all at once.
#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::{DType, Device, Tensor};

    use crate::attention::KvRow;
    use crate::attention::decode::{self, Heads, Sequence};
    use crate::device::gpu::{Gpu, address, empty};
    use crate::error::Result;

    /// The step's contexts `[tokens, heads · head_dim]` with the rows of one token filled in; `None` where there are no such
    /// rows or the kernels do not take them.
    pub(super) fn decodes(
        [q, k, v]: [&Tensor; 3],
        layer: usize,
        rows: &mut [KvRow<'_>],
        scale: f32,
        window: Option<usize>,
    ) -> Result<Option<Tensor>> {
        let Device::Cuda(device) = q.device() else { return Ok(None) };
        let (tokens, heads, head_dim) = q.dims3()?;
        let heads = Heads { heads, kv_heads: k.dim(1)?, head_dim };
        let known = matches!(q.dtype(), DType::BF16 | DType::F32);
        if !known || !heads.fit() || rows.iter().all(|row| row.len > 1) {
            return Ok(None);
        }
        let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
        let out = empty(device, (tokens, heads.heads * head_dim), q.dtype())?;
        let sequences = rows.iter_mut().filter(|row| row.len == 1).map(|row| {
            let (cache, position) = row.cache.placed_mut();
            let (keys, values) = cache.tensors(layer, position + 1, &k)?;
            Ok(Sequence {
                keys: address(&keys)?,
                values: address(&values)?,
                capacity: keys.dim(1)?,
                token: row.offset,
                position,
                from: window.map_or(0, |window| (position + 1).saturating_sub(window)),
            })
        });
        let sequences = sequences.collect::<Result<Vec<_>>>()?;
        let inputs = [address(&q)?, address(&k)?, address(&v)?];
        let bf16 = q.dtype() == DType::BF16;
        decode::attend(&Gpu(device), bf16, heads, scale, inputs, &sequences, address(&out)?)?;
        Ok(Some(out))
    }
}

/// See [`super::full`].
pub(super) fn full(q: &Tensor, k: &Tensor, v: &Tensor, spans: &[Range<usize>], scale: f32) -> Result<Tensor> {
    let (_, heads, _) = q.dims3()?;
    let q = (q * f64::from(scale))?;
    let mut contexts = Vec::new();
    for span in spans.iter().filter(|span| !span.is_empty()) {
        let of_span = |x: &Tensor| -> Result<Tensor> {
            Ok(x.narrow(0, span.start, span.len())?.transpose(0, 1)?.contiguous()?)
        };
        let (keys, values) = (of_span(k)?, of_span(v)?);
        for tile in tiles(span.len(), heads, span.len()) {
            contexts.push(attend(&q.narrow(0, span.start + tile.start, tile.len())?, &keys, &values, None)?);
        }
    }
    joined(contexts)
}

/// Queries worked on together: as many as their scores allow.
fn tiles(queries: usize, heads: usize, keys: usize) -> impl Iterator<Item = Range<usize>> {
    let each = (SCORES / (heads * keys).max(1)).max(1);
    (0..queries).step_by(each).map(move |start| start..(start + each).min(queries))
}

/// `q [queries, heads, head_dim]`, scaled; `k` and `v` `[kv heads, keys, head_dim]` → `[queries, heads · head_dim]`.
fn attend(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let (queries, heads, head_dim) = q.dims3()?;
    let (kv_heads, keys, _) = k.dims3()?;
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(Error::Internal(format!("{heads} heads over {kv_heads} key/value heads")));
    }
    let group = heads / kv_heads;
    let q = q.reshape((queries, kv_heads, group, head_dim))?.permute((1, 2, 0, 3))?.contiguous()?;
    let q = q.reshape((kv_heads, group * queries, head_dim))?;
    let mut scores = q.matmul(&k.t()?)?;
    if let Some(mask) = mask {
        scores = scores.reshape((kv_heads, group, queries, keys))?.broadcast_add(mask)?;
        scores = scores.reshape((kv_heads, group * queries, keys))?;
    }
    let context = softmax(&scores)?.matmul(v)?;
    let context = context.reshape((kv_heads, group, queries, head_dim))?.permute((2, 0, 1, 3))?;
    Ok(context.contiguous()?.reshape((queries, heads * head_dim))?)
}

/// candle-nn's kernel for GPUs adds up in f32 whatever the dtype, the one for CPUs does not.
fn softmax(scores: &Tensor) -> Result<Tensor> {
    if scores.device().is_cuda() {
        return Ok(candle_nn::ops::softmax_last_dim(scores)?);
    }
    let wide = scores.to_dtype(DType::F32)?;
    Ok(candle_nn::ops::softmax_last_dim(&wide)?.to_dtype(scores.dtype())?)
}

fn joined(mut parts: Vec<Tensor>) -> Result<Tensor> {
    match parts.len() {
        1 => Ok(parts.remove(0)),
        0 => Err(Error::Internal("attention of no tokens".into())),
        _ => Ok(Tensor::cat(&parts, 0)?),
    }
}
