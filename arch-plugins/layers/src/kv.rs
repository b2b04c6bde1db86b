//! Keys and values of one sequence.
//!
//! A cache is a list of blocks of 64 tokens that hold all layers. Forks share blocks; a block is copied when a
//! sequence that shares it writes to it. Tokens count once they are committed, after the last layer: a step
//! that fails leaves the cache as it was.
//!
//! Off the host a cache is one tensor of keys and one of values per layer instead.

use std::sync::Arc;

pub(crate) mod placed;

use placed::PlacedKv;

use crate::attention::BLOCK;
use crate::device::Kept;
use crate::error::{Error, Result};
use crate::kernel::attend::padded;

/// Shape of a cache on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Layers that have keys and values.
    pub layers: usize,
    /// Key/value heads on this rank.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Where, and as what.
    pub kept: Kept,
}

impl KvShape {
    /// Memory one token takes on this rank.
    pub fn bytes_per_token(&self) -> u64 {
        let bytes_per_head = match self.kept {
            Kept::Host => self.token_values() * size_of::<f32>(),
            Kept::Placed(dtype) => 2 * self.head_dim * dtype.size_in_bytes(),
        };
        (self.layers * self.kv_heads * bytes_per_head) as u64
    }

    /// Memory of a block.
    pub fn block_bytes(&self) -> u64 {
        self.bytes_per_token() * BLOCK as u64
    }

    fn token_values(&self) -> usize {
        self.head_dim + padded(self.head_dim)
    }

    /// Values of one head in a block: keys `[head_dim][64]`, then values `[64][padded head_dim]`.
    pub(crate) fn head_values(&self) -> usize {
        self.token_values() * BLOCK
    }

    /// Where a head of a layer begins in a block.
    pub(crate) fn head_offset(&self, layer: usize, head: usize) -> usize {
        (layer * self.kv_heads + head) * self.head_values()
    }

    fn block_values(&self) -> usize {
        self.layers * self.kv_heads * self.head_values()
    }
}

/// Keys and values of 64 tokens in all layers.
type Block = Box<[f32]>;

/// Keys and values of one sequence.
#[derive(Debug, Clone)]
pub struct KvCache {
    shape: KvShape,
    /// On the host.
    blocks: Vec<Arc<Block>>,
    /// Off the host.
    placed: PlacedKv,
    len: usize,
}

impl KvCache {
    /// Without tokens.
    pub fn new(shape: KvShape) -> Self {
        Self { shape, blocks: Vec::new(), placed: PlacedKv::new(shape.layers), len: 0 }
    }

    /// Its shape.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Tokens committed.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes room for `tokens` more. Layers then write positions `len .. len + tokens`.
    pub fn reserve(&mut self, tokens: usize) -> Result<()> {
        if self.shape.kept != Kept::Host {
            return self.placed.reserve(self.len, tokens);
        }
        let first = self.len / BLOCK;
        let needed = (self.len + tokens).div_ceil(BLOCK);
        for block in self.blocks.iter_mut().take(needed).skip(first) {
            if Arc::get_mut(block).is_none() {
                *block = Arc::new(copy(block)?);
            }
        }
        while self.blocks.len() < needed {
            self.blocks.push(Arc::new(zeroed(self.shape.block_values())?));
        }
        Ok(())
    }

    /// The reserved tokens belong to the sequence from now on.
    pub fn commit(&mut self, tokens: usize) {
        self.len += tokens;
        let room = match self.shape.kept {
            Kept::Host => self.blocks.len() * BLOCK,
            Kept::Placed(_) => self.placed.capacity(),
        };
        debug_assert!(self.len <= room, "tokens are reserved before they are written");
    }

    /// A second cache that holds the first `len` tokens.
    pub fn fork(&self, len: usize) -> Result<Self> {
        self.check(len)?;
        if self.shape.kept != Kept::Host {
            return Ok(Self { shape: self.shape, blocks: Vec::new(), placed: self.placed.fork(len)?, len });
        }
        let blocks = self.blocks[..len.div_ceil(BLOCK)].to_vec();
        Ok(Self { shape: self.shape, blocks, placed: PlacedKv::new(self.shape.layers), len })
    }

    /// Drops all tokens after the first `len`.
    pub fn trim(&mut self, len: usize) -> Result<()> {
        self.check(len)?;
        if self.shape.kept != Kept::Host {
            self.placed.trim(len)?;
        }
        self.blocks.truncate(len.div_ceil(BLOCK));
        self.len = len;
        Ok(())
    }

    fn check(&self, len: usize) -> Result<()> {
        if len <= self.len {
            return Ok(());
        }
        Err(Error::InvalidInput(format!("a sequence of {} tokens has no first {len}", self.len)))
    }

    /// Memory held; blocks shared with a fork count for both.
    pub fn bytes(&self) -> u64 {
        match self.shape.kept {
            Kept::Host => self.blocks.len() as u64 * self.shape.block_bytes(),
            Kept::Placed(_) => self.placed.capacity() as u64 * self.shape.bytes_per_token(),
        }
    }

    /// Keys and values off the host.
    pub(crate) fn placed_mut(&mut self) -> (&mut PlacedKv, usize) {
        (&mut self.placed, self.len)
    }

    /// Blocks for reading.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = *const f32> {
        self.blocks.iter().map(|block| block.as_ptr())
    }

    /// Block `index` for writing; it was reserved.
    pub(crate) fn block_mut(&mut self, index: usize) -> Result<*mut f32> {
        self.blocks
            .get_mut(index)
            .and_then(Arc::get_mut)
            .map(|block| block.as_mut_ptr())
            .ok_or_else(|| Error::Internal("tokens are written that were not reserved".into()))
    }
}

fn room(values: usize) -> Result<Vec<f32>> {
    let mut block = Vec::new();
    block.try_reserve_exact(values).map_err(|_| {
        Error::OutOfMemory(format!("no {} bytes of memory for keys and values", values * size_of::<f32>()))
    })?;
    Ok(block)
}

fn zeroed(values: usize) -> Result<Block> {
    let mut block = room(values)?;
    block.resize(values, 0.0);
    Ok(block.into_boxed_slice())
}

fn copy(block: &Block) -> Result<Block> {
    let mut copy = room(block.len())?;
    copy.extend_from_slice(block);
    Ok(copy.into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: KvShape = KvShape { layers: 2, kv_heads: 1, head_dim: 4, kept: Kept::Host };

    fn filled(tokens: usize, value: f32) -> KvCache {
        let mut cache = KvCache::new(SHAPE);
        write(&mut cache, tokens, value);
        cache
    }

    fn write(cache: &mut KvCache, tokens: usize, value: f32) {
        cache.reserve(tokens).unwrap();
        for index in cache.len() / BLOCK..(cache.len() + tokens).div_ceil(BLOCK) {
            let block = cache.block_mut(index).unwrap();
            // SAFETY: the block has `block_values` values.
            unsafe { std::slice::from_raw_parts_mut(block, SHAPE.block_values()) }.fill(value);
        }
        cache.commit(tokens);
    }

    #[test]
    fn a_fork_shares_whole_blocks_and_copies_the_one_it_writes() {
        let original = filled(100, 1.0);
        let mut fork = original.fork(70).unwrap();
        assert_eq!(fork.len(), 70);
        assert_eq!(fork.bytes(), original.bytes());
        write(&mut fork, 1, 2.0);
        let pairs: Vec<_> = original.blocks().zip(fork.blocks()).collect();
        assert_eq!(pairs[0].0, pairs[0].1, "the first block is shared");
        assert_ne!(pairs[1].0, pairs[1].1, "the second was written to");
        assert!(original.blocks[1].iter().all(|&value| value == 1.0));
    }

    #[test]
    fn trimming_gives_blocks_back_and_cannot_lengthen() {
        let mut cache = filled(130, 1.0);
        cache.trim(64).unwrap();
        assert_eq!((cache.len(), cache.bytes()), (64, SHAPE.block_bytes()));
        assert!(cache.trim(65).is_err());
        assert!(cache.fork(65).is_err());
    }

    #[test]
    fn an_uncommitted_step_leaves_no_trace() {
        let mut cache = filled(10, 1.0);
        cache.reserve(500).unwrap();
        assert_eq!(cache.len(), 10);
        cache.reserve(1).unwrap();
        cache.commit(1);
        assert_eq!(cache.len(), 11);
    }
}
