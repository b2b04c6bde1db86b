//! The live sequences of a model, by id.
use crate::error::{Error, Result};
use std::collections::HashMap;

/// What one sequence keeps between steps.
pub trait SequenceState: Send + Sized {
    /// Tokens it holds.
    fn len(&self) -> usize;
    /// Has it none?
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// A second state that holds the first `len` tokens.
    fn fork(&self, len: usize) -> Result<Self>;
    /// Drops all tokens after the first `len`.
    fn trim(&mut self, len: usize) -> Result<()>;
    /// Memory held.
    fn bytes(&self) -> u64;
}

/// Sequences by id; ids are never used twice.
#[derive(Debug)]
pub struct Sequences<S> {
    next: u64,
    live: HashMap<u64, S>,
}

impl<S: SequenceState> Default for Sequences<S> {
    fn default() -> Self {
        Self { next: 1, live: HashMap::new() }
    }
}

impl<S: SequenceState> Sequences<S> {
    /// Takes a state in and names it.
    pub fn insert(&mut self, state: S) -> u64 {
        let id = self.next;
        self.next += 1;
        self.live.insert(id, state);
        id
    }

    /// Drops one; an id that names none is ignored.
    pub fn remove(&mut self, id: u64) -> Option<S> {
        self.live.remove(&id)
    }

    /// The state of `id`.
    pub fn get(&self, id: u64) -> Result<&S> {
        self.live.get(&id).ok_or_else(|| unknown(id))
    }

    /// The state of `id`.
    pub fn get_mut(&mut self, id: u64) -> Result<&mut S> {
        self.live.get_mut(&id).ok_or_else(|| unknown(id))
    }

    /// A second sequence that holds the first `len` tokens of `id`.
    pub fn fork(&mut self, id: u64, len: usize) -> Result<u64> {
        let state = self.get(id)?.fork(len)?;
        Ok(self.insert(state))
    }

    /// Number of live sequences.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Memory of all of them; what forks share counts once for each.
    pub fn bytes(&self) -> u64 {
        self.live.values().map(S::bytes).sum()
    }
}

fn unknown(id: u64) -> Error {
    Error::InvalidInput(format!("sequence {id} does not exist"))
}
