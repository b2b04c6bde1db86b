//! Which node has seen which beginnings of prompts: a guess at what its prefix cache holds.
//!
//! A prompt is cut into blocks of bytes, each hashed together with all before it, so that one number
//! stands for the whole beginning. When an answer has begun, its blocks are noted for its node; when
//! a request comes, the leading blocks a node is known for count as cached there. Nodes forget, too,
//! so that notes fade with use by others; what is wrong costs a prefill, never an answer.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::fleet::identity::mix;

/// Bytes of one block.
const BLOCK_BYTES: usize = 256;
/// Tokens a block counts for.
pub const BLOCK_TOKENS: u32 = 64;
/// Blocks looked at; beyond this a prompt is as good as any other.
const MOST_BLOCKS: usize = 128;
/// Blocks remembered over all models.
const CAPACITY: usize = 1 << 17;

/// The chained hashes of a prompt's blocks, oldest first. Whole blocks only: a cut one is seen again longer.
pub fn blocks(parts: &[Option<&str>]) -> Vec<u64> {
    let total: usize = parts.iter().flatten().map(|part| part.len()).sum();
    let mut hashes = Vec::with_capacity((total / BLOCK_BYTES).min(MOST_BLOCKS));
    let mut chain = 0x9e37_79b9_7f4a_7c15u64;
    let mut filled = 0;
    for part in parts.iter().flatten() {
        let mut rest = part.as_bytes();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(BLOCK_BYTES - filled));
            chain = absorb(chain, piece);
            filled += piece.len();
            rest = after;
            if filled == BLOCK_BYTES {
                filled = 0;
                hashes.push(chain);
                if hashes.len() == MOST_BLOCKS {
                    return hashes;
                }
            }
        }
    }
    hashes
}

/// Eight bytes at a time: this runs for every request.
fn absorb(mut chain: u64, piece: &[u8]) -> u64 {
    let mut words = piece.chunks_exact(8);
    for word in &mut words {
        let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
        chain = (chain ^ word).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(29);
    }
    for byte in words.remainder() {
        chain = (chain ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    mix(chain ^ piece.len() as u64)
}

/// Who has seen what.
#[derive(Default)]
pub struct Prefixes(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    /// By model and block: the nodes that have seen it.
    nodes: HashMap<(u64, u64), Vec<u64>>,
    /// The generation that is filled now; the one before is forgotten when this is full.
    former: HashMap<(u64, u64), Vec<u64>>,
}

impl Prefixes {
    /// A node has computed this prompt.
    pub fn note(&self, model: u64, blocks: &[u64], node: u64) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for block in blocks {
            let nodes = seen.nodes.entry((model, *block)).or_default();
            if !nodes.contains(&node) {
                nodes.push(node);
            }
        }
        if seen.nodes.len() > CAPACITY / 2 {
            seen.former = std::mem::take(&mut seen.nodes);
        }
    }

    /// Leading blocks each of `nodes` is known for.
    pub fn matches(&self, model: u64, blocks: &[u64], nodes: impl Iterator<Item = u64>) -> Vec<u32> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let knows = |block: u64, node: u64| {
            [&seen.nodes, &seen.former]
                .iter()
                .any(|map| map.get(&(model, block)).is_some_and(|nodes| nodes.contains(&node)))
        };
        nodes.map(|node| blocks.iter().take_while(|block| knows(**block, node)).count() as u32).collect()
    }

    /// A node has lost everything it knew of a model: it was unloaded, or the node began a new life.
    pub fn forget(&self, model: u64, node: u64) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = &mut *seen;
        for map in [&mut seen.nodes, &mut seen.former] {
            map.retain(|(owner, _), nodes| {
                if *owner == model {
                    nodes.retain(|known| *known != node);
                }
                !nodes.is_empty()
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_prompt_begins_with_the_blocks_of_a_shorter_one() {
        let system = "s".repeat(700);
        let (short, long) = ("m".repeat(500), "m".repeat(500) + &"n".repeat(3000));
        let first = blocks(&[Some(&system), None, Some(&short)]);
        let second = blocks(&[Some(&system), None, Some(&long)]);
        assert_eq!(first.len(), 1200 / BLOCK_BYTES);
        assert_eq!(first[..], second[..first.len()]);
        let other = blocks(&[Some(&"t".repeat(700)), None, Some(&short)]);
        assert_ne!(first[0], other[0]);
        assert_ne!(first[3], other[3], "every hash stands for the whole beginning");
        assert_eq!(blocks(&[Some(&"x".repeat(1 << 20))]).len(), MOST_BLOCKS);
        assert_eq!(blocks(&[None, Some("short")]), [] as [u64; 0]);
    }

    #[test]
    fn nodes_are_known_for_what_they_saw() {
        let prefixes = Prefixes::default();
        prefixes.note(1, &[10, 11, 12], 7);
        prefixes.note(1, &[10, 21], 8);
        let known = |blocks: &[u64]| prefixes.matches(1, blocks, [7, 8, 9].into_iter());
        assert_eq!(known(&[10, 11, 12, 13]), [3, 1, 0]);
        assert_eq!(known(&[11, 12]), [2, 0, 0], "a block stands for all before it");
        assert_eq!(prefixes.matches(2, &[10], [7].into_iter()), [0], "each model by itself");
        prefixes.forget(1, 7);
        assert_eq!(known(&[10, 11]), [0, 1, 0]);
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let prefixes = Prefixes::default();
        prefixes.note(1, &[1], 7);
        for block in 0..2 * CAPACITY as u64 {
            prefixes.note(1, &[1000 + block], 8);
        }
        assert_eq!(prefixes.matches(1, &[1], [7].into_iter()), [0]);
        let seen = prefixes.0.lock().expect("unpoisoned");
        assert!(seen.nodes.len() + seen.former.len() <= CAPACITY + 2);
    }
}
