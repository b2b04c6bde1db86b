//! What is known of a node beyond its own figures: work under way, and whether it has been failing.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::fleet::identity::now_ms;

/// Failures in a row that open a node's breaker.
const BREAKER_FAILURES: u32 = 5;
/// How long an open breaker stays open before one probe is let through.
const BREAKER_OPEN_MS: u64 = 30_000;

/// What is known of a node beyond its own figures.
#[derive(Default)]
pub struct NodeGauge {
    pub(super) inflight: AtomicU32,
    draining: AtomicBool,
    cycles: AtomicU32,
    breaker: Mutex<Breaker>,
    memo: Mutex<f64>,
    /// Held while a decision changes what is loaded on the node. Fair: waiters get it in order.
    pub changing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Breaker {
    failures: u32,
    opened_ms: Option<u64>,
    probing: bool,
}

/// Whether a node's breaker lets requests through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// It does.
    Closed,
    /// It does not, after failures in a row.
    Open,
    /// It lets one through, to see.
    HalfOpen,
}

impl NodeGauge {
    /// Requests of this gateway under way there.
    pub fn inflight(&self) -> u32 {
        self.inflight.load(Ordering::Relaxed)
    }

    /// Whether an operator wants no new work sent there.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Sends no new work there, or does again.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    /// Loads and unloads since the node was last tidied.
    pub fn cycles(&self) -> u32 {
        self.cycles.load(Ordering::Relaxed)
    }

    /// Counts a load or unload.
    pub fn count_cycle(&self) {
        self.cycles.fetch_add(1, Ordering::Relaxed);
    }

    /// Begins counting cycles anew.
    pub fn reset_cycles(&self) {
        self.cycles.store(0, Ordering::Relaxed);
    }

    /// The number the evictor left last time.
    pub fn memo(&self) -> f64 {
        *self.memo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the number the evictor leaves.
    pub fn set_memo(&self, memo: f64) {
        *self.memo.lock().unwrap_or_else(PoisonError::into_inner) = memo;
    }

    /// How the breaker stands.
    pub fn breaker(&self) -> BreakerState {
        let breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        match breaker.opened_ms {
            None => BreakerState::Closed,
            Some(opened) if breaker.probing || now_ms().saturating_sub(opened) < BREAKER_OPEN_MS => {
                BreakerState::Open
            }
            Some(_) => BreakerState::HalfOpen,
        }
    }

    /// Takes the one probe a half-open breaker lets through. True for a closed one.
    pub fn admit(&self) -> bool {
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        match breaker.opened_ms {
            None => true,
            Some(opened) if breaker.probing || now_ms().saturating_sub(opened) < BREAKER_OPEN_MS => false,
            Some(_) => {
                breaker.probing = true;
                true
            }
        }
    }

    /// A request got an answer.
    pub fn succeeded(&self) {
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        if breaker.failures != 0 || breaker.opened_ms.is_some() {
            *breaker = Breaker::default();
        }
    }

    /// The node did not answer, or broke off.
    pub fn failed(&self) {
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        breaker.failures = breaker.failures.saturating_add(1);
        if breaker.failures >= BREAKER_FAILURES || breaker.probing {
            breaker.opened_ms = Some(now_ms());
            breaker.probing = false;
        }
    }

    /// A probe ended without telling anything (the client left).
    pub fn undecided(&self) {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner).probing = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breaker_opens_after_failures_in_a_row_only() {
        let node = NodeGauge::default();
        for _ in 0..10 {
            for _ in 0..BREAKER_FAILURES - 1 {
                node.failed();
            }
            node.succeeded();
        }
        assert_eq!(node.breaker(), BreakerState::Closed);
        for _ in 0..BREAKER_FAILURES {
            node.failed();
        }
        assert_eq!(node.breaker(), BreakerState::Open);
        assert!(!node.admit());
        node.breaker.lock().expect("unpoisoned").opened_ms = Some(now_ms() - BREAKER_OPEN_MS);
        assert_eq!(node.breaker(), BreakerState::HalfOpen);
        assert!(node.admit(), "one probe");
        assert!(!node.admit(), "and only one");
        node.failed();
        assert_eq!(node.breaker(), BreakerState::Open);
        node.succeeded();
        assert_eq!(node.breaker(), BreakerState::Closed);
    }
}
