//! `gd_wait`: the model whose absence is expected to cost the fewest seconds per byte goes first. The
//! recommended default.

use plugin_sdk::{EvictChoice, EvictRequest, Evictor, Explain, Resident, Result};
use strategy_options::Options;

use crate::{need, select};

/// `P(needed within H) · (reload + warm prefixes) / bytes`.
pub struct GdWait {
    horizon_s: f64,
}

plugin_sdk::evictor!(
    "gd_wait",
    "the fewest expected seconds of waiting per byte freed go first",
    GdWait::from_options
);

impl GdWait {
    /// Options: `horizon_s` (600), how far ahead a need counts.
    ///
    /// # Errors
    /// `InvalidInput` naming the option.
    pub fn from_options(options: &str) -> Result<Box<dyn Evictor>> {
        let mut options = Options::parse("gd_wait", options)?;
        let horizon_s = options.number("horizon_s", 600.0, 1.0..=1e9)?;
        options.finish()?;
        Ok(Box::new(Self { horizon_s }))
    }
}

impl Evictor for GdWait {
    fn choose(
        &self,
        request: &EvictRequest,
        residents: &[Resident],
        explain: &mut Explain<'_>,
    ) -> Result<EvictChoice> {
        let regret = |resident: &Resident| need::regret_s(request, resident, self.horizon_s);
        let score = |resident: &Resident| regret(resident) / resident.bytes.max(1) as f64;
        Ok(select::ascending(request, residents, explain, score, |resident| {
            format!(
                "regret_s={:.3} needed={:.3} reload_s={:.1} warm_s={:.1}",
                regret(resident),
                need::probability(request, resident, self.horizon_s),
                resident.reload_s,
                resident.warm_s
            )
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{need, resident, victims};

    #[test]
    fn table() {
        let evictor = GdWait::from_options("{}").expect("defaults");
        let model = Resident { rate_per_s: 0.001, ..resident(1) };
        let cases: &[(&str, [Resident; 2], usize)] = &[
            ("rarely asked for", [Resident { rate_per_s: 0.01, ..model }, model], 1),
            ("quick to reload", [model, Resident { reload_s: 2.0, ..model }], 1),
            ("nothing cached", [Resident { warm_s: 30.0, ..model }, model], 1),
            ("larger for the same regret", [model, Resident { bytes: 900, ..model }], 1),
            (
                "rare but very slow to reload stays",
                [Resident { reload_s: 900.0, ..model }, Resident { rate_per_s: 0.002, ..model }],
                1,
            ),
        ];
        for (name, residents, expected) in cases {
            assert_eq!(victims(&*evictor, &need(1), residents), [*expected], "{name}");
        }
    }
}
