//! What is known of a model on a node beyond the node's own figures.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Average;
use crate::fleet::identity::now_ms;

/// Time in which a latency peak fades to 1/e.
const PEAK_DECAY_MS: f64 = 10_000.0;

/// What is known of a model on a node beyond the node's own figures.
#[derive(Default)]
pub struct ReplicaGauge {
    pub(super) inflight: AtomicU32,
    pub(super) pending_prefill: AtomicU64,
    pub(super) last_used_ms: AtomicU64,
    /// When it was first seen ready in its present stay; 0 while it is not.
    resident_since_ms: AtomicU64,
    closed: AtomicBool,
    pinned: AtomicBool,
    latency: Mutex<Latency>,
}

#[derive(Default)]
struct Latency {
    first_token_s: f64,
    measured_ms: u64,
    inter_token_s: Average,
}

impl ReplicaGauge {
    /// Requests of this gateway under way there for the model.
    pub fn inflight(&self) -> u32 {
        self.inflight.load(Ordering::SeqCst)
    }

    /// Prompt tokens of this gateway's requests that have no first token yet.
    pub fn pending_prefill(&self) -> u64 {
        self.pending_prefill.load(Ordering::Relaxed)
    }

    /// When this gateway last sent a request there; 0 is never.
    pub fn last_used_ms(&self) -> u64 {
        self.last_used_ms.load(Ordering::Relaxed)
    }

    /// The model was seen there, ready or not.
    pub fn saw(&self, ready: bool, now_ms: u64) {
        if !ready {
            self.resident_since_ms.store(0, Ordering::Relaxed);
        } else if self.resident_since_ms.load(Ordering::Relaxed) == 0 {
            self.resident_since_ms.store(now_ms, Ordering::Relaxed);
        }
    }

    /// How long it has been there, ready, as far as this gateway has seen.
    pub fn resident_ms(&self, now_ms: u64) -> u64 {
        match self.resident_since_ms.load(Ordering::Relaxed) {
            0 => 0,
            since => now_ms.saturating_sub(since),
        }
    }

    /// Whether routing there has stopped, because the model is about to go.
    pub fn closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Whether an operator wants it to stay.
    pub fn pinned(&self) -> bool {
        self.pinned.load(Ordering::Relaxed)
    }

    /// Keeps it there whoever wants its place, or no longer.
    pub fn set_pinned(&self, pinned: bool) {
        self.pinned.store(pinned, Ordering::Relaxed);
    }

    /// Stops routing there; what is under way goes on.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Routes there again.
    pub fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }

    /// A first token came after `seconds`. A peak counts at once and fades slowly.
    pub fn first_token(&self, seconds: f64) {
        let now = now_ms();
        let mut latency = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        let weight = (-(now.saturating_sub(latency.measured_ms) as f64) / PEAK_DECAY_MS).exp();
        latency.first_token_s = if seconds > latency.first_token_s {
            seconds
        } else {
            latency.first_token_s * weight + seconds * (1.0 - weight)
        };
        latency.measured_ms = now;
    }

    /// Tokens came `seconds` apart.
    pub fn inter_token(&self, seconds: f64) {
        self.latency.lock().unwrap_or_else(PoisonError::into_inner).inter_token_s.add(seconds, 0.1);
    }

    /// Seconds to the first token and between tokens; 0 where nothing was measured.
    pub fn latency_s(&self) -> (f32, f32) {
        let latency = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        (latency.first_token_s as f32, latency.inter_token_s.value as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_peak_counts_at_once() {
        let replica = ReplicaGauge::default();
        replica.first_token(0.1);
        replica.first_token(2.0);
        assert_eq!(replica.latency_s().0, 2.0);
        replica.first_token(0.1);
        assert!(replica.latency_s().0 > 1.9);
    }
}
