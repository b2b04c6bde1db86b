//! The host's budget for the state of all sequences, kept for every model alike.

use plugin_abi::arch::Plan;

use crate::error::{Error, Result};

/// How much state sequences may hold, and how much they will by the model's own plan.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    limit: u64,
    per_sequence: u64,
    per_token: u64,
}

impl Budget {
    /// The host set none.
    pub(crate) const UNLIMITED: Self = Self { limit: u64::MAX, per_sequence: 0, per_token: 0 };

    /// An eighth more than `bytes`: models allocate in blocks, which the host's own sum does not see.
    pub(crate) fn new(bytes: u64, plan: &Plan) -> Self {
        Self {
            limit: bytes.saturating_add(bytes / 8),
            per_sequence: plan.state_bytes_per_sequence,
            per_token: plan.kv_bytes_per_token,
        }
    }

    /// Whether there is anything to keep to.
    pub(crate) fn is_limited(&self) -> bool {
        self.limit != u64::MAX
    }

    /// What a sequence that holds `held` bytes will need on top to hold `tokens` tokens.
    pub(crate) fn growth(&self, held: u64, tokens: usize) -> u64 {
        let planned = self.per_token.saturating_mul(tokens as u64).saturating_add(self.per_sequence);
        planned.saturating_sub(held)
    }

    /// Takes `need` bytes on top of `used`, or says how many are missing.
    pub(crate) fn take(&self, used: &mut u64, need: u64) -> Result<()> {
        let wanted = used.saturating_add(need);
        if wanted > self.limit {
            return Err(Error::OutOfMemory {
                message: format!("sequences hold {used} bytes and would need {need} more than they may"),
                need_bytes: wanted - self.limit,
            });
        }
        *used = wanted;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told() {
        let plan = Plan { state_bytes_per_sequence: 100, kv_bytes_per_token: 10, ..Plan::default() };
        let budget = Budget::new(800, &plan);
        assert_eq!(budget.growth(0, 5), 150);
        assert_eq!(budget.growth(400, 5), 0);
        let mut used = 700;
        assert_eq!(budget.take(&mut used, 200), Ok(()));
        let refused = budget.take(&mut used, 1).expect_err("full");
        assert!(matches!(refused, Error::OutOfMemory { need_bytes: 1, .. }), "{refused:?}");
        assert_eq!(used, 900, "a refusal takes nothing");
    }
}
