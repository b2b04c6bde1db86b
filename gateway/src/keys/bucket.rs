//! A bucket that fills at an even rate and is emptied by requests.

use std::sync::{Mutex, PoisonError};

use wire_api::rate_limits::Window;

/// So much per minute, all of it at once if it was saved up.
pub struct Bucket {
    capacity: f64,
    per_ms: f64,
    level: Mutex<Level>,
}

struct Level {
    amount: f64,
    at_ms: u64,
}

impl Bucket {
    /// A full bucket.
    pub fn per_minute(limit: u64) -> Self {
        let capacity = limit as f64;
        Self {
            capacity,
            per_ms: capacity / 60_000.0,
            level: Mutex::new(Level { amount: capacity, at_ms: 0 }),
        }
    }

    /// What it holds when full.
    pub fn capacity(&self) -> u64 {
        self.capacity as u64
    }

    /// Takes `amount` out, at most the capacity.
    ///
    /// # Errors
    /// The milliseconds until there is enough.
    pub fn take(&self, amount: u64, now_ms: u64) -> Result<(), u64> {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        self.fill(&mut level, now_ms);
        let amount = amount as f64;
        if amount > self.capacity {
            // It will never fit; a minute is as good an answer as any.
            return Err(60_000);
        }
        if level.amount < amount {
            return Err(((amount - level.amount) / self.per_ms).ceil() as u64);
        }
        level.amount -= amount;
        Ok(())
    }

    /// What was reserved turned out to be something else. The level may fall below nothing: who used more
    /// than was foreseen waits longer.
    pub fn correct(&self, reserved: u64, used: u64) {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        level.amount = (level.amount + reserved as f64 - used as f64).min(self.capacity);
    }

    /// What is left of it.
    pub fn window(&self, now_ms: u64) -> Window {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        self.fill(&mut level, now_ms);
        Window {
            limit: self.capacity as u64,
            remaining: level.amount.max(0.0) as u64,
            reset_ms: ((self.capacity - level.amount) / self.per_ms).ceil() as u64,
        }
    }

    fn fill(&self, level: &mut Level, now_ms: u64) {
        // A clock that jumps back fills nothing.
        let passed = now_ms.saturating_sub(level.at_ms) as f64;
        level.amount = (level.amount + passed * self.per_ms).min(self.capacity);
        level.at_ms = level.at_ms.max(now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fills_evenly_and_never_over() {
        let bucket = Bucket::per_minute(60);
        for _ in 0..60 {
            assert_eq!(bucket.take(1, 1000), Ok(()));
        }
        assert_eq!(bucket.take(1, 1000), Err(1000));
        assert_eq!(bucket.take(1, 2000), Ok(()));
        assert_eq!(bucket.take(2, 2000), Err(2000));
        assert_eq!(bucket.take(60, 1_000_000), Ok(()));
        assert_eq!(bucket.take(61, 9_000_000), Err(60_000));
    }

    #[test]
    fn what_is_left_is_told() {
        let bucket = Bucket::per_minute(60);
        assert_eq!(bucket.window(1000), Window { limit: 60, remaining: 60, reset_ms: 0 });
        assert_eq!(bucket.take(15, 1000), Ok(()));
        assert_eq!(bucket.window(1000), Window { limit: 60, remaining: 45, reset_ms: 15_000 });
        bucket.correct(0, 100);
        assert_eq!(bucket.window(1000).remaining, 0);
    }

    #[test]
    fn corrections() {
        let bucket = Bucket::per_minute(100);
        assert_eq!(bucket.take(80, 1000), Ok(()));
        bucket.correct(80, 5);
        assert_eq!(bucket.take(90, 1000), Ok(()));
        bucket.correct(90, 200);
        assert!(bucket.take(1, 1000).is_err_and(|wait| wait > 60_000));
    }
}
