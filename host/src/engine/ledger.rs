//! One arbiter for all bytes of state: running sequences, cached prefixes, image embeddings.
//!
//! A sequence's state is charged in blocks of [`BLOCK_TOKENS`] tokens that forks share, plus a fixed part that
//! they do not, which is how the plugins hold it. A charge is released when its last holder drops it; no code
//! path can forget to. The ledger counts what the plan said, the device has the last word: when it runs out
//! earlier, [`Ledger::shrink`] makes the plan smaller.

use std::cell::Cell;
use std::rc::Rc;

/// Tokens per block of charged state, as the architectures of this project allocate it. Forks share whole
/// blocks.
pub const BLOCK_TOKENS: u32 = 64;

/// Counts bytes of state against a limit.
#[derive(Debug, Clone)]
pub struct Ledger(Rc<Book>);

#[derive(Debug)]
struct Book {
    planned: u64,
    limit: Cell<u64>,
    used: Cell<u64>,
    bytes_per_token: u64,
    bytes_per_sequence: u64,
}

/// Bytes that are in use until this is dropped.
#[derive(Debug)]
pub struct Charge {
    book: Rc<Book>,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.book.used.set(self.book.used.get() - self.bytes);
    }
}

/// The bytes of one sequence's state.
#[derive(Debug)]
pub struct StateCharge {
    _fixed: Charge,
    blocks: Vec<Rc<Charge>>,
}

/// Bytes that are missing for a charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing(pub u64);

impl Ledger {
    /// A ledger for `limit` bytes of state of the given sizes.
    pub fn new(limit: u64, bytes_per_token: u64, bytes_per_sequence: u64) -> Self {
        Self(Rc::new(Book {
            planned: limit,
            limit: Cell::new(limit),
            used: Cell::new(0),
            bytes_per_token,
            bytes_per_sequence,
        }))
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.0.used.get()
    }

    /// Bytes that may be in use.
    pub fn limit(&self) -> u64 {
        self.0.limit.get()
    }

    /// Bytes a sequence of `tokens` tokens needs that shares its first `shared` with another.
    pub fn need(&self, tokens: u32, shared: u32) -> u64 {
        let blocks = blocks_for(tokens).saturating_sub(shared / BLOCK_TOKENS);
        self.0.bytes_per_sequence + u64::from(blocks) * self.block_bytes()
    }

    fn block_bytes(&self) -> u64 {
        self.0.bytes_per_token * u64::from(BLOCK_TOKENS)
    }

    /// Charges bytes that belong to no sequence.
    pub fn charge(&self, bytes: u64) -> Result<Charge, Missing> {
        let used = self.used() + bytes;
        if used > self.limit() {
            return Err(Missing(used - self.limit()));
        }
        self.0.used.set(used);
        Ok(Charge { book: Rc::clone(&self.0), bytes })
    }

    /// Charges a sequence that will hold `tokens` tokens, of which the first `shared` are those of `parent`.
    pub fn charge_sequence(
        &self,
        parent: Option<(&StateCharge, u32)>,
        tokens: u32,
    ) -> Result<StateCharge, Missing> {
        let shared = parent.map_or(0, |(_, shared)| shared);
        let need = self.need(tokens, shared);
        if self.used() + need > self.limit() {
            return Err(Missing(self.used() + need - self.limit()));
        }
        let _fixed = self.charge(self.0.bytes_per_sequence)?;
        let mut charge = StateCharge { _fixed, blocks: Vec::with_capacity(blocks_for(tokens) as usize) };
        if let Some((parent, shared)) = parent {
            charge.blocks.extend(parent.blocks.iter().take((shared / BLOCK_TOKENS) as usize).cloned());
        }
        self.grow(&mut charge, tokens)?;
        Ok(charge)
    }

    /// Charges what `charge` lacks to hold `tokens` tokens.
    pub fn grow(&self, charge: &mut StateCharge, tokens: u32) -> Result<(), Missing> {
        let missing = (blocks_for(tokens) as usize).saturating_sub(charge.blocks.len());
        let bytes = missing as u64 * self.block_bytes();
        if self.used() + bytes > self.limit() {
            return Err(Missing(self.used() + bytes - self.limit()));
        }
        for _ in 0..missing {
            charge.blocks.push(Rc::new(self.charge(self.block_bytes())?));
        }
        Ok(())
    }

    /// The device ran out before the ledger did: nothing beyond `bytes` is there.
    pub fn shrink(&self, bytes: u64) {
        self.0.limit.set(self.limit().min(bytes));
    }

    /// What the device lacked may be back: raises the limit by `bytes`, up to what was planned.
    pub fn relax(&self, bytes: u64) {
        self.0.limit.set(self.limit().saturating_add(bytes).min(self.0.planned));
    }

    /// Bytes that may be in use as long as the device does not say otherwise.
    pub fn planned(&self) -> u64 {
        self.0.planned
    }
}

impl StateCharge {
    /// Bytes that become free when this charge is dropped: its own part, not what forks of it still hold.
    pub fn exclusive_bytes(&self) -> u64 {
        let own = self.blocks.iter().filter(|block| Rc::strong_count(block) == 1);
        self._fixed.bytes + own.map(|block| block.bytes).sum::<u64>()
    }
}

fn blocks_for(tokens: u32) -> u32 {
    tokens.div_ceil(BLOCK_TOKENS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forks_share_whole_blocks_and_the_last_holder_pays_back() {
        let ledger = Ledger::new(100_000, 10, 100);
        let parent = ledger.charge_sequence(None, 140).unwrap();
        assert_eq!(ledger.used(), 100 + 3 * 640);
        let child = ledger.charge_sequence(Some((&parent, 80)), 200).unwrap();
        assert_eq!(ledger.used(), 100 + 3 * 640 + 100 + 3 * 640);
        drop(parent);
        assert_eq!(ledger.used(), 100 + 4 * 640, "the shared block stays with the child");
        assert_eq!(child.exclusive_bytes(), 100 + 4 * 640);
        drop(child);
        assert_eq!(ledger.used(), 0);
    }

    #[test]
    fn what_does_not_fit_charges_nothing_and_says_what_is_missing() {
        let ledger = Ledger::new(1500, 10, 100);
        assert_eq!(ledger.charge_sequence(None, 200).unwrap_err(), Missing(100 + 4 * 640 - 1500));
        assert_eq!(ledger.used(), 0);
        let mut charge = ledger.charge_sequence(None, 120).unwrap();
        assert_eq!(ledger.grow(&mut charge, 129), Err(Missing(100 + 3 * 640 - 1500)));
        assert_eq!(ledger.used(), 100 + 2 * 640);
        ledger.shrink(500);
        assert!(ledger.charge(1).is_err());
        ledger.relax(300);
        assert_eq!(ledger.limit(), 800);
        ledger.relax(u64::MAX);
        assert_eq!(ledger.limit(), 1500);
    }
}
