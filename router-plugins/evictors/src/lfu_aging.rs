//! `lfu_aging`: what served least goes first, where old uses count half after each half-life.

use plugin_sdk::{EvictChoice, EvictRequest, Evictor, Explain, Resident, Result};
use strategy_options::Options;

use crate::select;

/// Uses worn down by idle time.
pub struct LfuAging {
    half_life_s: f64,
}

plugin_sdk::evictor!(
    "lfu_aging",
    "the model that served least goes first; old uses fade",
    LfuAging::from_options
);

impl LfuAging {
    /// Options: `half_life_s` (600).
    ///
    /// # Errors
    /// `InvalidInput` naming the option.
    pub fn from_options(options: &str) -> Result<Box<dyn Evictor>> {
        let mut options = Options::parse("lfu_aging", options)?;
        let half_life_s = options.number("half_life_s", 600.0, 1.0..=1e9)?;
        options.finish()?;
        Ok(Box::new(Self { half_life_s }))
    }
}

/// Uses since the load, halved for every half-life the model has been idle.
pub fn faded_uses(request: &EvictRequest, resident: &Resident, half_life_s: f64) -> f64 {
    let idle_s = select::idle_ms(request, resident) as f64 / 1000.0;
    (resident.uses as f64 + 1.0) * (-idle_s / half_life_s).exp2()
}

impl Evictor for LfuAging {
    fn choose(
        &self,
        request: &EvictRequest,
        residents: &[Resident],
        explain: &mut Explain<'_>,
    ) -> Result<EvictChoice> {
        let score = |resident: &Resident| faded_uses(request, resident, self.half_life_s);
        Ok(select::ascending(request, residents, explain, score, |r| format!("faded_uses={:.3}", score(r))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{need, resident, victims};

    #[test]
    fn table() {
        let evictor = LfuAging::from_options(r#"{"half_life_s":60}"#).expect("options");
        let used =
            |uses, ago_s: u64| Resident { uses, last_used_ms: 10_000_000 - ago_s * 1000, ..resident(1) };
        let cases: &[(&str, [Resident; 2], usize)] = &[
            ("fewer uses", [used(10, 5), used(3, 5)], 1),
            ("old uses fade", [used(1000, 1200), used(3, 5)], 0),
            ("but not at once", [used(1000, 120), used(3, 5)], 1),
        ];
        for (name, residents, expected) in cases {
            assert_eq!(victims(&*evictor, &need(1), residents), [*expected], "{name}");
        }
    }
}
