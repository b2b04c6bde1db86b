//! How many requests may be sent a second time: a share of all, so that retries never double an overload.

use std::sync::atomic::{AtomicI64, Ordering};

/// Most retries saved up, in thousandths.
const SAVINGS: i64 = 10_000;

/// A purse: every request pays in a share, every retry takes out one.
pub struct RetryBudget {
    thousandths: AtomicI64,
    share: i64,
}

impl RetryBudget {
    /// A full purse; `share` of requests may be retried in the long run.
    pub fn new(share: f64) -> Self {
        let share = (share.clamp(0.0, 1.0) * 1000.0) as i64;
        Self { thousandths: AtomicI64::new(if share == 0 { 0 } else { SAVINGS }), share }
    }

    /// A request arrived.
    pub fn pay_in(&self) {
        if self.thousandths.load(Ordering::Relaxed) < SAVINGS {
            self.thousandths.fetch_add(self.share, Ordering::Relaxed);
        }
    }

    /// Whether a retry may be made; takes it out if so.
    pub fn take(&self) -> bool {
        let enough = |thousandths: i64| (thousandths >= 1000).then_some(thousandths - 1000);
        self.thousandths.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enough).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_share_of_requests() {
        let budget = RetryBudget::new(0.2);
        assert_eq!((0..100).filter(|_| budget.take()).count(), 10, "savings");
        for _ in 0..50 {
            budget.pay_in();
        }
        assert_eq!((0..100).filter(|_| budget.take()).count(), 10, "a fifth of fifty");
        let none = RetryBudget::new(0.0);
        none.pay_in();
        assert!(!none.take());
    }
}
