//! Sequences that wait for a seat, first come first served.
//!
//! A request is queued rather than refused; only a queue longer than its limit refuses, and then says when to
//! come back. What has been admitted once and had to give its seat up goes back to the front and is never
//! refused.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::sequence::Sequence;

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full {
    /// Sequences that wait.
    pub waiting: usize,
    /// When a place is likely.
    pub retry_after: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct Queue {
    waiting: VecDeque<Sequence>,
    limit: usize,
    /// Running mean of the time between two sequences that left the engine.
    pace: Duration,
    last_leave: Option<Instant>,
}

impl Queue {
    /// A queue for at most `limit` new sequences.
    pub fn new(limit: usize) -> Self {
        Self { waiting: VecDeque::new(), limit, pace: Duration::from_secs(1), last_leave: None }
    }

    /// Sequences that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether another new sequence may wait.
    pub fn check(&self) -> Result<(), Full> {
        if self.waiting.len() < self.limit {
            return Ok(());
        }
        let wait = self.pace.saturating_mul(self.waiting.len() as u32 + 1);
        Err(Full {
            waiting: self.waiting.len(),
            retry_after: wait.clamp(Duration::from_secs(1), Duration::from_secs(60)),
        })
    }

    /// Takes a new sequence in, at the end.
    pub fn push(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// Takes a sequence back that had a seat.
    pub fn push_front(&mut self, sequence: Sequence) {
        self.waiting.push_front(sequence);
    }

    /// Who is next.
    pub fn front(&self) -> Option<&Sequence> {
        self.waiting.front()
    }

    /// Everyone who waits, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.waiting.iter()
    }

    /// Takes the next one out.
    pub fn pop(&mut self) -> Option<Sequence> {
        self.waiting.pop_front()
    }

    /// Marks a sequence as unwanted; whether it waits here.
    pub fn cancel(&mut self, id: u64) -> bool {
        let found = self.waiting.iter_mut().find(|sequence| sequence.id == id);
        found.map(|sequence| sequence.cancelled = true).is_some()
    }

    /// Takes all unwanted sequences out.
    pub fn take_cancelled(&mut self) -> Vec<Sequence> {
        if !self.waiting.iter().any(|sequence| sequence.cancelled) {
            return Vec::new();
        }
        let (gone, waiting): (Vec<_>, Vec<_>) =
            self.waiting.drain(..).partition(|sequence| sequence.cancelled);
        self.waiting = waiting.into();
        gone
    }

    /// Takes everything out.
    pub fn drain(&mut self) -> impl Iterator<Item = Sequence> + '_ {
        self.waiting.drain(..)
    }

    /// A sequence left the engine, which is what those who wait are waiting for.
    pub fn note_leave(&mut self, now: Instant) {
        if let Some(last) = self.last_leave.replace(now) {
            self.pace =
                (self.pace * 7 + now.saturating_duration_since(last).min(Duration::from_secs(60))) / 8;
        }
    }
}
