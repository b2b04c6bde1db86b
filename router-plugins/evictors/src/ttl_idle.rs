//! `ttl_idle`: what has been idle longest beyond its limit goes first, and goes without any need too.

use plugin_sdk::{EvictChoice, EvictRequest, Evictor, Explain, Purpose, Resident, Result};
use strategy_options::Options;

use crate::select;

/// By time left until the idle limit.
pub struct TtlIdle {
    default_limit_ms: u64,
}

plugin_sdk::evictor!(
    "ttl_idle",
    "a model goes when it has been idle beyond its limit; under need, the closest to it",
    TtlIdle::from_options
);

impl TtlIdle {
    /// Options: `default_limit_s` (300) for models without a limit of their own; 0 means never.
    ///
    /// # Errors
    /// `InvalidInput` naming the option.
    pub fn from_options(options: &str) -> Result<Box<dyn Evictor>> {
        let mut options = Options::parse("ttl_idle", options)?;
        let default_limit_s = options.number("default_limit_s", 300.0, 0.0..=1e9)?;
        options.finish()?;
        Ok(Box::new(Self { default_limit_ms: (default_limit_s * 1000.0) as u64 }))
    }

    /// Seconds until the limit; negative beyond it; a day for what has none.
    fn left_s(&self, request: &EvictRequest, resident: &Resident) -> f64 {
        let limit = if resident.idle_limit_ms > 0 { resident.idle_limit_ms } else { self.default_limit_ms };
        let limit = if limit == 0 { 86_400_000 } else { limit };
        (limit as f64 - select::idle_ms(request, resident) as f64) / 1000.0
    }
}

impl Evictor for TtlIdle {
    fn choose(
        &self,
        request: &EvictRequest,
        residents: &[Resident],
        explain: &mut Explain<'_>,
    ) -> Result<EvictChoice> {
        let score = |resident: &Resident| self.left_s(request, resident);
        let terms = |resident: &Resident| format!("left_s={:.1}", score(resident));
        let mut choice = select::ascending(request, residents, explain, score, terms);
        if request.purpose == Purpose::SWEEP {
            let overstayed = |resident: &Resident| {
                select::eligible(resident) && select::overstayed(request, resident, self.default_limit_ms)
            };
            choice.victims = (0..residents.len()).filter(|index| overstayed(&residents[*index])).collect();
            choice.victims.sort_by(|a, b| score(&residents[*a]).total_cmp(&score(&residents[*b])));
        }
        Ok(choice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{need, resident, sweep, victims};

    #[test]
    fn table() {
        let evictor = TtlIdle::from_options(r#"{"default_limit_s":100}"#).expect("options");
        let never = TtlIdle::from_options(r#"{"default_limit_s":0}"#).expect("options");
        let idle = |ago_s: u64, limit_s: u64| Resident {
            last_used_ms: 10_000_000 - ago_s * 1000,
            idle_limit_ms: limit_s * 1000,
            ..resident(1)
        };
        let three = [idle(50, 0), idle(150, 0), idle(150, 20)];
        assert_eq!(victims(&*evictor, &sweep(), &three), [2, 1]);
        assert_eq!(victims(&*never, &sweep(), &three), [2]);
        assert_eq!(victims(&*evictor, &need(250), &three), [2, 1, 0]);
        assert_eq!(victims(&*evictor, &need(1), &[idle(10, 0), idle(5, 6)]), [1]);
    }
}
