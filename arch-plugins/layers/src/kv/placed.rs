//! A sequence's keys and values off the host: per layer one tensor of each, `[kv heads, capacity, head_dim]`.
//!
//! Room for whole blocks of tokens is made before a step and an eighth beyond, so that a growing sequence is seldom
//! moved; moving copies on the device. Forks share their tensors until one of them writes, and a frozen snapshot that
//! outlives its original never copies anything.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::attention::BLOCK;
use crate::error::{Error, Result};

/// Keys and values of one layer.
#[derive(Debug)]
struct Layer {
    keys: Tensor,
    values: Tensor,
}

/// Keys and values of one sequence.
#[derive(Debug, Clone)]
pub(crate) struct PlacedKv {
    /// `None` until the layer's first tokens arrive, which bring the device along.
    layers: Vec<Option<Arc<Layer>>>,
    capacity: usize,
    /// Masks of the present step, which is the same for all layers: by first query, queries and first key.
    masks: Vec<([usize; 4], Tensor)>,
}

/// Tokens to make room for when `needed` must fit.
fn room(needed: usize) -> usize {
    needed.next_multiple_of(BLOCK) + needed / 8 / BLOCK * BLOCK
}

impl PlacedKv {
    pub(super) fn new(layers: usize) -> Self {
        Self { layers: vec![None; layers], capacity: 0, masks: Vec::new() }
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Makes room for `tokens` beyond the first `len`, in tensors of this sequence alone.
    pub(super) fn reserve(&mut self, len: usize, tokens: usize) -> Result<()> {
        self.masks.clear();
        let needed = len + tokens;
        let shared = self.layers.iter_mut().flatten().any(|layer| Arc::get_mut(layer).is_none());
        if needed > self.capacity || shared {
            self.resize(len, if needed > self.capacity { room(needed) } else { self.capacity })?;
        }
        Ok(())
    }

    /// A second cache that holds the first `len` tokens.
    pub(super) fn fork(&self, len: usize) -> Result<Self> {
        let mut fork = Self { masks: Vec::new(), ..self.clone() };
        fork.trim(len)?;
        Ok(fork)
    }

    /// Gives room back when less than half of it is needed.
    pub(super) fn trim(&mut self, len: usize) -> Result<()> {
        if room(len) > self.capacity / 2 {
            return Ok(());
        }
        if len == 0 {
            *self = Self::new(self.layers.len());
            return Ok(());
        }
        self.resize(len, room(len))
    }

    /// Moves the first `len` tokens of all layers to tensors of another capacity.
    fn resize(&mut self, len: usize, capacity: usize) -> Result<()> {
        for slot in &mut self.layers {
            if let Some(layer) = slot {
                *slot = Some(Arc::new(Layer {
                    keys: moved(&layer.keys, len, capacity)?,
                    values: moved(&layer.values, len, capacity)?,
                }));
            }
        }
        self.capacity = capacity;
        Ok(())
    }

    /// Writes `k` and `v`, `[tokens, kv heads, head_dim]`, behind the first `len` tokens of a layer, and gives keys and
    /// values of all tokens from `from` on, `[kv heads, tokens, head_dim]`.
    pub(crate) fn extend(
        &mut self,
        layer: usize,
        len: usize,
        from: usize,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let tokens = k.dim(0)?;
        let (keys, values) = self.tensors(layer, len + tokens, k)?;
        for (all, new) in [(&keys, k), (&values, v)] {
            all.slice_set(&new.transpose(0, 1)?.contiguous()?, 1, len)?;
        }
        let seen = len + tokens - from;
        Ok((keys.narrow(1, from, seen)?, values.narrow(1, from, seen)?))
    }

    /// Keys and values of a layer, `[kv heads, capacity, head_dim]`, with room for `needed` tokens; where and as what
    /// `like [_, kv heads, head_dim]` is, when they are its first.
    pub(crate) fn tensors(&mut self, layer: usize, needed: usize, like: &Tensor) -> Result<(Tensor, Tensor)> {
        let (_, heads, head_dim) = like.dims3()?;
        let slot = self
            .layers
            .get_mut(layer)
            .ok_or_else(|| Error::Internal(format!("the cache has no layer {layer}")))?;
        if needed > self.capacity {
            return Err(Error::Internal("tokens are written that were not reserved".into()));
        }
        let layer = match slot {
            Some(layer) => layer,
            None => {
                let empty = || Tensor::zeros((heads, self.capacity, head_dim), like.dtype(), like.device());
                slot.insert(Arc::new(Layer { keys: empty()?, values: empty()? }))
            }
        };
        Ok((layer.keys.clone(), layer.values.clone()))
    }

    /// The mask of queries at `first ..`, for keys at `from ..`: 0 where a query sees a key, `-inf` elsewhere,
    /// `[queries, keys]`. With a `window` a query sees that many tokens, itself included.
    pub(crate) fn mask(
        &mut self,
        (first, queries): (usize, usize),
        (from, keys): (usize, usize),
        window: Option<usize>,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let name = [first, queries, from, window.unwrap_or(0)];
        if let Some((_, mask)) = self.masks.iter().find(|(known, _)| *known == name) {
            return Ok(mask.clone());
        }
        let positions = |start: usize, count: usize| {
            Tensor::arange(start as u32, (start + count) as u32, device)?.to_dtype(DType::F32)
        };
        // Exact: positions are far below 2^24.
        let rows = positions(first, queries)?.unsqueeze(1)?;
        let columns = positions(from, keys)?.unsqueeze(0)?;
        let mut seen = columns.broadcast_le(&rows)?;
        if let Some(window) = window {
            let oldest = (rows - (window as f64 - 1.0))?;
            seen = (seen * columns.broadcast_ge(&oldest)?)?;
        }
        let shape = (queries, keys);
        let never = Tensor::full(f32::NEG_INFINITY, shape, device)?;
        let mask = seen.where_cond(&Tensor::zeros(shape, DType::F32, device)?, &never)?.to_dtype(dtype)?;
        self.masks.push((name, mask.clone()));
        Ok(mask)
    }
}

/// The first `len` tokens of `[heads, _, head_dim]` in a tensor with room for `capacity`.
fn moved(old: &Tensor, len: usize, capacity: usize) -> Result<Tensor> {
    let (heads, _, head_dim) = old.dims3()?;
    let new = Tensor::zeros((heads, capacity, head_dim), old.dtype(), old.device())?;
    if len > 0 {
        new.slice_set(&old.narrow(1, 0, len)?.contiguous()?, 1, 0)?;
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One head of one value: tokens are their own numbers.
    fn write(cache: &mut PlacedKv, len: usize, values: &[f32]) -> Vec<f32> {
        let new = Tensor::from_slice(values, (values.len(), 1, 1), &Device::Cpu).unwrap();
        cache.reserve(len, values.len()).unwrap();
        let (keys, _) = cache.extend(0, len, 0, &new, &new).unwrap();
        keys.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn numbers(range: std::ops::Range<usize>) -> Vec<f32> {
        range.map(|i| i as f32).collect()
    }

    #[test]
    fn a_sequence_keeps_its_tokens_while_it_grows() {
        let mut cache = PlacedKv::new(1);
        let mut len = 0;
        for piece in [1, 63, 1, 700, 1] {
            let all = write(&mut cache, len, &numbers(len..len + piece));
            len += piece;
            assert_eq!(all, numbers(0..len));
            assert!(cache.capacity() >= len && cache.capacity() <= len + len / 8 + BLOCK, "{len}");
        }
    }

    #[test]
    fn forks_share_until_one_of_them_writes() {
        let mut original = PlacedKv::new(1);
        write(&mut original, 0, &numbers(0..100));
        let mut fork = original.fork(100).unwrap();
        let place = |cache: &PlacedKv| Arc::as_ptr(cache.layers[0].as_ref().unwrap());
        assert_eq!(place(&original), place(&fork));
        assert_eq!(write(&mut fork, 70, &[-1.0])[69..], [69.0, -1.0]);
        assert_ne!(place(&original), place(&fork));
        assert_eq!(write(&mut original, 100, &[100.0]), numbers(0..101), "nothing of the fork is seen");
        let (before, alone) = (place(&original), original.fork(101).unwrap());
        drop(alone);
        write(&mut original, 101, &[101.0]);
        assert_eq!(before, place(&original), "a fork that is gone costs no copy");
    }

    #[test]
    fn a_short_fork_does_not_hold_a_long_original() {
        let mut original = PlacedKv::new(1);
        write(&mut original, 0, &numbers(0..1000));
        let fork = original.fork(10).unwrap();
        assert_eq!(fork.capacity(), BLOCK);
        original.trim(0).unwrap();
        assert_eq!(original.capacity(), 0);
    }

    #[test]
    fn a_query_sees_its_window_and_nothing_after_itself() {
        let mut cache = PlacedKv::new(1);
        let mut seen = |first, window| -> Vec<Vec<u8>> {
            let mask = cache.mask((first, 2), (1, 4), window, DType::F32, &Device::Cpu).unwrap();
            let rows: Vec<Vec<f32>> = mask.to_vec2().unwrap();
            rows.iter().map(|row| row.iter().map(|&x| u8::from(x == 0.0)).collect()).collect()
        };
        assert_eq!(seen(3, None), [[1, 1, 1, 0], [1, 1, 1, 1]]);
        assert_eq!(seen(3, Some(2)), [[0, 1, 1, 0], [0, 0, 1, 1]]);
    }
}
