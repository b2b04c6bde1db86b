//! What is known of a model over the whole fleet: how often it is wanted, how long its answers and loads are.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Average;
use crate::fleet::identity::now_ms;

/// Half-life of arrival rates.
const RATE_HALF_LIFE_MS: f64 = 600_000.0;

/// What is known of a model over the whole fleet.
#[derive(Default)]
pub struct ModelGauge {
    pub(super) inflight: AtomicU32,
    learned: Mutex<Learned>,
}

#[derive(Default)]
struct Learned {
    rate_per_ms: f64,
    rated_ms: u64,
    answer_tokens: Average,
    load_s: HashMap<String, Average>,
    bytes: u64,
}

impl ModelGauge {
    /// Requests of this gateway under way for the model.
    pub fn inflight(&self) -> u32 {
        self.inflight.load(Ordering::Relaxed)
    }

    /// Counts an arrival.
    pub fn arrived(&self) {
        let now = now_ms();
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        let decay = decay_since(learned.rated_ms, now, RATE_HALF_LIFE_MS);
        // Each arrival adds what keeps the average right: ln 2 per half-life.
        learned.rate_per_ms = learned.rate_per_ms * decay + std::f64::consts::LN_2 / RATE_HALF_LIFE_MS;
        learned.rated_ms = now;
    }

    /// Requests per second lately.
    pub fn rate_per_s(&self) -> f32 {
        let learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        (learned.rate_per_ms * decay_since(learned.rated_ms, now_ms(), RATE_HALF_LIFE_MS) * 1000.0) as f32
    }

    /// Tokens an answer is expected to have: what they had lately, at most `limit`.
    pub fn expected_tokens(&self, limit: Option<u64>) -> f32 {
        let learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        let usual = if learned.answer_tokens.samples == 0 { 512.0 } else { learned.answer_tokens.value };
        limit.map_or(usual, |limit| usual.min(limit as f64)) as f32
    }

    /// An answer had so many tokens.
    pub fn answered(&self, tokens: u64) {
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        learned.answer_tokens.add(tokens as f64, 0.05);
    }

    /// A load on `node` took so long.
    pub fn loaded(&self, node: &str, seconds: f64) {
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        learned.load_s.entry(node.to_owned()).or_default().add(seconds, 0.3);
    }

    /// Expected seconds of a load on `node`: measured there, or elsewhere, or read at 1 GB/s.
    pub fn load_s(&self, node: &str, bytes: u64) -> f64 {
        let learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        let elsewhere = || {
            let known = learned.load_s.values().map(|average| average.value);
            known.fold(None, |most: Option<f64>, value| Some(most.map_or(value, |most| most.max(value))))
        };
        let assumed = || 2.0 + bytes as f64 / 1e9;
        learned.load_s.get(node).map(|average| average.value).or_else(elsewhere).unwrap_or_else(assumed)
    }

    /// Memory the model was seen to take; 0 when it was never seen.
    pub fn bytes(&self) -> u64 {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }

    /// The model takes this much.
    pub fn saw_bytes(&self, bytes: u64) {
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        learned.bytes = learned.bytes.max(bytes);
    }
}

fn decay_since(then_ms: u64, now_ms: u64, half_life_ms: f64) -> f64 {
    (-(now_ms.saturating_sub(then_ms) as f64) / half_life_ms).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learned_figures() {
        let model = ModelGauge::default();
        assert_eq!(model.expected_tokens(Some(100)), 100.0);
        assert_eq!(model.expected_tokens(None), 512.0);
        model.answered(40);
        assert_eq!(model.expected_tokens(Some(100)), 40.0);
        assert_eq!(model.load_s("a", 3_000_000_000), 5.0);
        model.loaded("b", 9.0);
        assert_eq!(model.load_s("a", 3_000_000_000), 9.0);
        model.loaded("a", 4.0);
        assert_eq!(model.load_s("a", 3_000_000_000), 4.0);
        assert_eq!(model.rate_per_s(), 0.0);
        for _ in 0..100 {
            model.arrived();
        }
        assert!(model.rate_per_s() > 0.1, "{}", model.rate_per_s());
        model.saw_bytes(5);
        model.saw_bytes(3);
        assert_eq!(model.bytes(), 5);
    }
}
