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
    closed: AtomicBool,
    pinned: AtomicBool,
    stay: Mutex<Stay>,
    latency: Mutex<Latency>,
}

/// A model's stay on a node, as this gateway has seen it.
#[derive(Debug, Clone, Copy, Default)]
enum Stay {
    /// Nobody has looked yet.
    #[default]
    Unseen,
    /// It is not ready.
    Away,
    /// It is ready.
    Here {
        /// Since when, on the node's clock: tells one stay from the next.
        stamp: u64,
        /// Since when, on the gateway's clock.
        since_ms: u64,
        /// This gateway saw it come.
        watched: bool,
    },
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

    /// How the model was seen there: ready since a moment on the node's clock, or not ready.
    pub fn saw(&self, ready_since: Option<u64>, now_ms: u64) {
        let mut stay = self.stay.lock().unwrap_or_else(PoisonError::into_inner);
        *stay = match (ready_since, *stay) {
            (None, _) => Stay::Away,
            // Another stay: it went and came again between two looks.
            (Some(stamp), Stay::Here { stamp: known, .. }) if stamp == known => *stay,
            (Some(stamp), before) => {
                Stay::Here { stamp, since_ms: now_ms, watched: !matches!(before, Stay::Unseen) }
            }
        };
    }

    /// How long it has been there, ready. This gateway's own observation where it saw the model come, since
    /// clocks of nodes may jump; else at least as long as this gateway has seen it, or what the node says.
    pub fn resident_ms(&self, by_node_ms: u64, now_ms: u64) -> u64 {
        match *self.stay.lock().unwrap_or_else(PoisonError::into_inner) {
            Stay::Here { since_ms, watched: true, .. } => now_ms.saturating_sub(since_ms),
            Stay::Here { since_ms, .. } => by_node_ms.max(now_ms.saturating_sub(since_ms)),
            Stay::Away | Stay::Unseen => by_node_ms,
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

    #[test]
    fn a_stay_is_reckoned_on_the_gateways_own_clock_where_it_saw_the_model_come() {
        let replica = ReplicaGauge::default();
        replica.saw(Some(7), 1000);
        assert_eq!(replica.resident_ms(5000, 1100), 5000, "it was there before anybody looked");
        assert_eq!(replica.resident_ms(0, 1100), 100, "whatever the node's clock says");
        replica.saw(None, 2000);
        replica.saw(Some(8), 3000);
        replica.saw(Some(8), 4000);
        assert_eq!(replica.resident_ms(9999, 4000), 1000);
        replica.saw(Some(9), 5000);
        assert_eq!(replica.resident_ms(9999, 5500), 500, "it went and came between two looks");
    }
}
