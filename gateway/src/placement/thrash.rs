//! Whether models are loaded only to be evicted and loaded again.
//!
//! A load within ten minutes of the model's eviction is a reload. When too large a share of the loads
//! are reloads, models stay longer once they are there, so that those who wait for one place take longer
//! turns instead of paying for a load each time.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Time within which a load after an eviction is a reload, and over which the share is counted.
const WINDOW_MS: u64 = 600_000;
/// Share of reloads from which models stay longer.
const TOO_MANY: f64 = 0.3;
/// Loads in the window below which the share says nothing.
const FEW: usize = 4;
/// Longest time a model stays on this account.
const LONGEST_STAY: Duration = Duration::from_secs(600);

/// The loads and evictions of the last minutes.
#[derive(Default)]
pub struct Thrash(Mutex<Book>);

#[derive(Default)]
struct Book {
    /// When each model was last evicted, by its hash.
    evicted: HashMap<u64, u64>,
    /// Loads in the window: when, and whether it was a reload.
    loads: VecDeque<(u64, bool)>,
}

impl Book {
    fn forget(&mut self, now_ms: u64) {
        let old = |at: u64| now_ms.saturating_sub(at) > WINDOW_MS;
        while self.loads.front().is_some_and(|(at, _)| old(*at)) {
            self.loads.pop_front();
        }
        self.evicted.retain(|_, at| !old(*at));
    }

    fn ratio(&self) -> f64 {
        let reloads = self.loads.iter().filter(|(_, reload)| *reload).count();
        if self.loads.is_empty() { 0.0 } else { reloads as f64 / self.loads.len() as f64 }
    }
}

impl Thrash {
    /// A model had to go for another's sake.
    pub fn evicted(&self, model: u64, now_ms: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).evicted.insert(model, now_ms);
    }

    /// A model has been loaded; whether that was a reload.
    pub fn loaded(&self, model: u64, now_ms: u64) -> bool {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        book.forget(now_ms);
        let reload = book.evicted.remove(&model).is_some();
        book.loads.push_back((now_ms, reload));
        reload
    }

    /// Share of the loads of the last ten minutes that were reloads, 0 to 1.
    pub fn ratio(&self, now_ms: u64) -> f64 {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        book.forget(now_ms);
        book.ratio()
    }

    /// How long a model stays, given how long it should when nothing thrashes: twice as long when too many loads
    /// are reloads, four times when twice too many are.
    pub fn stay(&self, usual: Duration, now_ms: u64) -> Duration {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        book.forget(now_ms);
        let ratio = book.ratio();
        if book.loads.len() < FEW || ratio <= TOO_MANY {
            return usual;
        }
        let factor = if ratio > 2.0 * TOO_MANY { 4 } else { 2 };
        (usual * factor).min(LONGEST_STAY.max(usual))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_load_soon_after_an_eviction_is_a_reload() {
        let thrash = Thrash::default();
        assert!(!thrash.loaded(1, 0), "it was never there");
        thrash.evicted(1, 1000);
        assert!(!thrash.loaded(2, 2000), "another model");
        assert!(thrash.loaded(1, 3000));
        assert!(!thrash.loaded(1, 4000), "it was evicted once only");
        assert_eq!(thrash.ratio(4000), 0.25);
        thrash.evicted(2, 5000);
        assert!(!thrash.loaded(2, 5001 + WINDOW_MS), "long ago");
        assert_eq!(thrash.ratio(5001 + WINDOW_MS), 0.0, "what is old no longer counts");
    }

    #[test]
    fn who_thrashes_takes_longer_turns() {
        let thrash = Thrash::default();
        for at in 0..3 {
            thrash.evicted(1, at);
            thrash.loaded(1, at);
        }
        assert_eq!(thrash.stay(MINUTE, 3), MINUTE, "three loads say nothing yet");
        thrash.evicted(1, 3);
        thrash.loaded(1, 3);
        assert_eq!(thrash.stay(MINUTE, 3), 4 * MINUTE);
        for model in 10..14 {
            thrash.loaded(model, 3);
        }
        assert_eq!(thrash.stay(MINUTE, 3), 2 * MINUTE);
        assert_eq!(thrash.stay(8 * MINUTE, 3), 10 * MINUTE, "but not for ever");
        assert_eq!(thrash.stay(20 * MINUTE, 3), 20 * MINUTE, "nor shorter than usual");
        assert_eq!(thrash.stay(MINUTE, 4 + WINDOW_MS), MINUTE);
    }
}
