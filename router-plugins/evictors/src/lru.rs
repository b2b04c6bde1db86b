//! `lru`: what served longest ago goes first.

use plugin_sdk::{EvictChoice, EvictRequest, Evictor, Explain, Resident, Result};

use crate::select;

/// By time of last use.
pub struct Lru;

plugin_sdk::evictor!("lru", "the model that served longest ago goes first", Lru::from_options);

impl Lru {
    /// Takes no options.
    ///
    /// # Errors
    /// `InvalidInput` when there are any.
    pub fn from_options(options: &str) -> Result<Box<dyn Evictor>> {
        strategy_options::none("lru", options)?;
        Ok(Box::new(Self))
    }
}

impl Evictor for Lru {
    fn choose(
        &self,
        request: &EvictRequest,
        residents: &[Resident],
        explain: &mut Explain<'_>,
    ) -> Result<EvictChoice> {
        let idle_s = |resident: &Resident| select::idle_ms(request, resident) as f64 / 1000.0;
        Ok(select::ascending(
            request,
            residents,
            explain,
            |r| -idle_s(r),
            |r| format!("idle_s={:.1}", idle_s(r)),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{need, resident, victims};

    #[test]
    fn table() {
        let used = |model, ago_ms: u64| Resident { last_used_ms: 10_000_000 - ago_ms, ..resident(model) };
        let three = [used(1, 10), used(2, 3000), used(3, 200)];
        let cases: &[(u64, &[usize])] = &[(1, &[1]), (101, &[1, 2]), (300, &[1, 2, 0]), (301, &[])];
        for (bytes, expected) in cases {
            assert_eq!(victims(&Lru, &need(*bytes), &three), *expected, "{bytes}");
        }
    }

    #[test]
    fn a_model_that_never_served_counts_from_its_load() {
        let fresh = Resident { last_used_ms: 0, loaded_ms: 9_999_000, ..resident(1) };
        assert_eq!(victims(&Lru, &need(1), &[fresh, resident(2)]), [1]);
    }
}
