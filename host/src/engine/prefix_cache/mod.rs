//! Prompts' beginnings that are kept, so that the next request that starts alike computes only its rest.
//!
//! What is kept is a frozen sequence on the devices. A radix tree over the prompts' [`Symbol`]s finds the
//! longest one that fits. How it is handed out depends on the architecture: a pure KV cache can be cut back to
//! any earlier length, so the longest common prefix is shared even where the frozen sequence goes on
//! differently; recurrent state exists only where it was frozen, so only a frozen sequence that lies on the
//! prompt as a whole helps, and the engine freezes several along the way.
//!
//! The cache holds no bytes of its own accord: every entry carries its [`StateCharge`], the engine takes
//! entries away when their bytes are needed elsewhere. A cold and a warm run must say the same; that is why
//! [`cut_points`] depends on nothing but the prompt up to the cut.

mod cuts;
mod tree;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

pub use cuts::{SOFT_CUT, cut_points, soft_cut};

use self::tree::{NodeId, Tree};
use super::ledger::StateCharge;
use super::prompt::Symbol;
use crate::device::thread::SequenceKey;
use crate::worker::message::MissReason;

/// Shortest prefix that is shared, and the grain of sharing for state that can be cut back anywhere.
pub const GRAIN: u32 = 16;

/// Prefixes that were given up and are remembered to say so.
const REMEMBERED: usize = 4096;

/// A frozen sequence.
#[derive(Debug)]
struct Frozen {
    key: SequenceKey,
    charge: StateCharge,
    length: u32,
    last_use: u64,
}

/// A prefix that can be forked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// The frozen sequence.
    pub key: SequenceKey,
    /// How many of its tokens the prompt shares.
    pub length: u32,
    node: NodeId,
}

/// What a look-up found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lookup {
    /// The longest usable prefix.
    pub hit: Option<Hit>,
    /// Why it is not longer; `None` when it is as long as it can be.
    pub miss: Option<MissReason>,
}

/// See the module.
#[derive(Debug)]
pub struct PrefixCache {
    tree: Tree<Frozen>,
    any_length: bool,
    budget: u64,
    bytes_per_token: u64,
    bytes_per_sequence: u64,
    clock: u64,
    given_up: HashMap<u64, u32>,
}

impl PrefixCache {
    /// A cache for at most `budget` bytes; 0 switches it off. `any_length`: frozen state can be cut back.
    pub fn new(any_length: bool, budget: u64, bytes_per_token: u64, bytes_per_sequence: u64) -> Self {
        Self {
            tree: Tree::default(),
            any_length,
            budget,
            bytes_per_token,
            bytes_per_sequence,
            clock: 0,
            given_up: HashMap::new(),
        }
    }

    /// Whether anything is ever kept.
    pub fn is_enabled(&self) -> bool {
        self.budget > 0
    }

    /// Frozen sequences.
    pub fn len(&self) -> usize {
        self.tree.values()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes the frozen sequences hold, what they share with each other counted once.
    pub fn bytes(&self) -> u64 {
        self.tree.symbols() as u64 * self.bytes_per_token + self.len() as u64 * self.bytes_per_sequence
    }

    /// Finds the longest usable prefix of `prompt` and marks it as used. At least the prompt's last token is
    /// left over, because computing it is what yields the first logits.
    pub fn find(&mut self, prompt: &[Symbol]) -> Lookup {
        if !self.is_enabled() {
            return Lookup { hit: None, miss: Some(MissReason::Disabled) };
        }
        let limit = (prompt.len() as u32).saturating_sub(1);
        let walk = self.tree.walk(prompt);
        let common = walk.matched as u32;
        let hit = if self.any_length { self.cut_back(&walk, limit) } else { self.exact(&walk, limit) };
        let length = hit.map_or(0, |hit| hit.length);
        let miss = self.explain(prompt, length, common, limit);
        if let Some(hit) = hit {
            self.clock += 1;
            if let Some(frozen) = self.tree.value_mut(hit.node) {
                frozen.last_use = self.clock;
            }
        }
        Lookup { hit, miss }
    }

    /// The longest usable prefix a look-up would find, without marking it as used.
    pub fn peek(&self, prompt: &[Symbol]) -> u32 {
        if !self.is_enabled() {
            return 0;
        }
        let limit = (prompt.len() as u32).saturating_sub(1);
        let walk = self.tree.walk(prompt);
        let hit = if self.any_length { self.cut_back(&walk, limit) } else { self.exact(&walk, limit) };
        hit.map_or(0, |hit| hit.length)
    }

    fn cut_back(&self, walk: &tree::Walk, limit: u32) -> Option<Hit> {
        let node = self.tree.any_value_at_or_below(walk.deepest)?;
        let frozen = self.tree.value(node)?;
        let common = (walk.matched as u32).min(limit).min(frozen.length);
        // A whole frozen sequence is forked as it is; a part of one at the grain, so that blocks are shared.
        let length = if common == frozen.length { common } else { common / GRAIN * GRAIN };
        (length >= GRAIN).then_some(Hit { key: frozen.key, length, node })
    }

    fn exact(&self, walk: &tree::Walk, limit: u32) -> Option<Hit> {
        walk.complete.iter().rev().find_map(|&node| {
            let frozen = self.tree.value(node)?;
            (frozen.length <= limit).then_some(Hit { key: frozen.key, length: frozen.length, node })
        })
    }

    fn explain(&self, prompt: &[Symbol], length: u32, common: u32, limit: u32) -> Option<MissReason> {
        let reusable = if self.any_length { limit / GRAIN * GRAIN } else { limit };
        if length >= reusable || limit < GRAIN {
            return if length == 0 && limit < GRAIN { Some(MissReason::TooShort) } else { None };
        }
        let given_up = self.given_up.get(&signature(prompt)).copied().unwrap_or(0);
        Some(if given_up > length {
            MissReason::Evicted
        } else if self.is_empty() {
            MissReason::Empty
        } else if common == 0 {
            MissReason::NoCommonPrefix
        } else if common < GRAIN {
            MissReason::TooShort
        } else if !self.any_length && common > length + GRAIN {
            MissReason::NoSnapshot
        } else {
            MissReason::Diverged
        })
    }

    /// The charge of a hit's frozen sequence, to share it.
    pub fn charge(&self, hit: &Hit) -> Option<&StateCharge> {
        self.tree.value(hit.node).filter(|frozen| frozen.key == hit.key).map(|frozen| &frozen.charge)
    }

    /// Whether freezing a sequence that holds `prompt` would add anything.
    pub fn wants(&self, prompt: &[Symbol]) -> bool {
        if !self.is_enabled() || (prompt.len() as u32) < GRAIN {
            return false;
        }
        let walk = self.tree.walk(prompt);
        if self.any_length {
            walk.matched < prompt.len()
        } else {
            let held = walk.complete.last().and_then(|&node| self.tree.value(node));
            held.is_none_or(|frozen| (frozen.length as usize) < prompt.len())
        }
    }

    /// Takes in a frozen sequence that holds `prompt`. Returns the sequences that are no longer needed, which
    /// may be this one; they are to be freed on the devices.
    pub fn insert(&mut self, prompt: &[Symbol], key: SequenceKey, charge: StateCharge) -> Vec<SequenceKey> {
        if !self.wants(prompt) {
            return vec![key];
        }
        self.clock += 1;
        let frozen = Frozen { key, charge, length: prompt.len() as u32, last_use: self.clock };
        let mut superseded = Vec::new();
        if self.any_length {
            // A longer sequence serves whatever a shorter one on the same path did.
            for node in self.tree.walk(prompt).complete {
                superseded.extend(self.tree.remove(node).map(|frozen| frozen.key));
            }
        }
        superseded.extend(self.tree.insert(prompt, frozen).map(|frozen| frozen.key));
        while self.bytes() > self.budget {
            match self.evict_one(None) {
                Some(key) => superseded.push(key),
                None => break,
            }
        }
        superseded
    }

    /// Gives up the least recently used entry except `keep`; its sequence is to be freed on the devices.
    pub fn evict_one(&mut self, keep: Option<SequenceKey>) -> Option<SequenceKey> {
        let candidates = self.tree.iter().filter(|(_, frozen)| Some(frozen.key) != keep);
        let (node, _) = candidates.min_by_key(|(_, frozen)| frozen.last_use)?;
        let path = self.tree.path(node, GRAIN as usize);
        let frozen = self.tree.remove(node)?;
        if self.given_up.len() >= REMEMBERED {
            self.given_up.clear();
        }
        let longest = self.given_up.entry(signature(&path)).or_default();
        *longest = (*longest).max(frozen.length);
        Some(frozen.key)
    }
}

/// Stands for all prompts that begin alike.
fn signature(prompt: &[Symbol]) -> u64 {
    let mut hasher = DefaultHasher::new();
    prompt[..prompt.len().min(GRAIN as usize)].hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ledger::Ledger;

    struct Fixture {
        cache: PrefixCache,
        ledger: Ledger,
        next: u64,
    }

    impl Fixture {
        fn new(any_length: bool, budget_tokens: u64) -> Self {
            let cache = PrefixCache::new(any_length, budget_tokens, 1, 0);
            Self { cache, ledger: Ledger::new(1 << 30, 1, 0), next: 0 }
        }

        fn keep(&mut self, prompt: &[Symbol]) -> Vec<SequenceKey> {
            self.next += 1;
            let charge = self.ledger.charge_sequence(None, prompt.len() as u32).unwrap();
            self.cache.insert(prompt, SequenceKey(self.next), charge)
        }

        fn find(&mut self, prompt: &[Symbol]) -> (u64, u32, Option<MissReason>) {
            let lookup = self.cache.find(prompt);
            let hit = lookup.hit.map_or((0, 0), |hit| (hit.key.0, hit.length));
            (hit.0, hit.1, lookup.miss)
        }
    }

    fn prompt(range: std::ops::Range<u64>, then: &[u64]) -> Vec<Symbol> {
        range.chain(then.iter().copied()).collect()
    }

    #[test]
    fn state_that_can_be_cut_back_is_shared_at_the_grain() {
        let mut fixture = Fixture::new(true, 10_000);
        assert_eq!(fixture.find(&prompt(0..100, &[])), (0, 0, Some(MissReason::Empty)));
        fixture.keep(&prompt(0..100, &[]));
        assert_eq!(fixture.find(&prompt(0..100, &[7, 8])), (1, 100, None));
        assert_eq!(fixture.find(&prompt(0..50, &[7; 40])), (1, 48, Some(MissReason::Diverged)));
        assert_eq!(fixture.find(&prompt(0..100, &[])), (1, 96, None), "the last token is computed again");
        assert_eq!(fixture.find(&prompt(0..8, &[7; 40])), (0, 0, Some(MissReason::TooShort)));
        assert_eq!(fixture.find(&prompt(500..600, &[])), (0, 0, Some(MissReason::NoCommonPrefix)));
    }

    #[test]
    fn recurrent_state_is_shared_only_where_it_was_frozen() {
        let mut fixture = Fixture::new(false, 10_000);
        fixture.keep(&prompt(0..40, &[]));
        fixture.keep(&prompt(0..80, &[]));
        assert_eq!(fixture.find(&prompt(0..100, &[])).1, 80);
        assert_eq!(fixture.find(&prompt(0..60, &[7; 20])), (1, 40, Some(MissReason::NoSnapshot)));
        assert_eq!(fixture.find(&prompt(0..80, &[])), (1, 40, Some(MissReason::NoSnapshot)));
        assert_eq!(fixture.find(&prompt(0..30, &[7; 40])), (0, 0, Some(MissReason::NoSnapshot)));
    }

    #[test]
    fn a_longer_sequence_supersedes_a_shorter_one_and_a_known_one_is_not_kept() {
        let mut fixture = Fixture::new(true, 10_000);
        assert_eq!(fixture.keep(&prompt(0..50, &[])), []);
        assert_eq!(fixture.keep(&prompt(0..80, &[])), [SequenceKey(1)]);
        assert_eq!(fixture.keep(&prompt(0..60, &[])), [SequenceKey(3)], "already covered");
        assert_eq!(fixture.cache.len(), 1);
        assert_eq!(fixture.cache.bytes(), 80);
        fixture.keep(&prompt(0..20, &[9; 30]));
        assert_eq!(fixture.cache.bytes(), 110, "the common part counts once");
    }

    #[test]
    fn the_least_recently_used_goes_first_and_is_remembered() {
        let mut fixture = Fixture::new(true, 100);
        fixture.keep(&prompt(0..40, &[]));
        fixture.keep(&prompt(100..140, &[]));
        fixture.find(&prompt(0..40, &[5]));
        assert_eq!(fixture.keep(&prompt(200..240, &[])), [SequenceKey(2)]);
        assert_eq!(fixture.find(&prompt(100..140, &[5])), (0, 0, Some(MissReason::Evicted)));
        assert_eq!(fixture.find(&prompt(0..40, &[5])).1, 40);
        assert_eq!(fixture.cache.evict_one(Some(SequenceKey(1))), Some(SequenceKey(3)));
        assert_eq!(fixture.cache.evict_one(Some(SequenceKey(1))), None);
        assert_eq!(fixture.cache.evict_one(None), Some(SequenceKey(1)));
        assert_eq!((fixture.cache.bytes(), fixture.ledger.used()), (0, 0));
    }

    #[test]
    fn a_cache_that_is_off_says_so() {
        let mut fixture = Fixture::new(true, 0);
        assert_eq!(fixture.keep(&prompt(0..50, &[])), [SequenceKey(1)]);
        assert_eq!(fixture.find(&prompt(0..50, &[1])), (0, 0, Some(MissReason::Disabled)));
        assert_eq!(fixture.ledger.used(), 0);
    }
}
