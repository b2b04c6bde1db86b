//! `fit`: one cost in seconds across "serve on a loaded replica" and "load there, evicting these".
//!
//! ```text
//! loaded     W = (P + n − m)/π + o · (r + 1)/μ
//! loading    W = load + …
//! loadable   W = load + n/π + o/μ + β · regret + γ · (displaces a higher class)
//! ```
//!
//! A new load must beat the best loaded replica by `switch_margin_s`, or a passing queue would load
//! copies that nobody needs a minute later.

use plugin_sdk::{Candidate, Explain, Residency, Result, RouteChoice, RouteRequest, Router};
use strategy_options::Options;

use crate::pool;
use crate::seconds::{Seconds, Speeds};

/// Seconds for everything.
pub struct Fit {
    speeds: Speeds,
    regret_weight: f64,
    violation_s: f64,
    switch_margin_s: f64,
}

plugin_sdk::router!(
    "fit",
    "one cost in seconds across serving on a loaded replica and loading another",
    Fit::from_options
);

impl Fit {
    /// Options: those of [`Speeds`], `regret_weight` β (1), `violation_s` γ (a million) and
    /// `switch_margin_s` (2).
    ///
    /// # Errors
    /// `InvalidInput` naming the option.
    pub fn from_options(options: &str) -> Result<Box<dyn Router>> {
        let mut options = Options::parse("fit", options)?;
        let router = Self {
            speeds: Speeds::from_options(&mut options)?,
            regret_weight: options.number("regret_weight", 1.0, 0.0..=1000.0)?,
            violation_s: options.number("violation_s", pool::PRIORITY_VIOLATION_S, 0.0..=1e9)?,
            switch_margin_s: options.number("switch_margin_s", 2.0, 0.0..=3600.0)?,
        };
        options.finish()?;
        Ok(Box::new(router))
    }

    fn terms(&self, request: &RouteRequest<'_>, candidate: &Candidate) -> (Seconds, f64, f64, f64) {
        let serve = self.speeds.estimate(request, candidate);
        if candidate.residency == Residency::RESIDENT {
            return (serve, 0.0, 0.0, 0.0);
        }
        let regret = self.regret_weight * f64::from(candidate.eviction_regret_s);
        let violation = self.violation_s * f64::from(candidate.priority_violation);
        (serve, f64::from(candidate.load_s), regret, violation)
    }

    fn cost(&self, request: &RouteRequest<'_>, candidate: &Candidate, any_warm: bool) -> f64 {
        let (serve, load, regret, violation) = self.terms(request, candidate);
        let new_load = candidate.residency == Residency::LOADABLE;
        let margin = if new_load && any_warm { self.switch_margin_s } else { 0.0 };
        serve.total() + load + regret + violation + margin
    }
}

impl Router for Fit {
    fn choose(
        &self,
        request: &RouteRequest<'_>,
        candidates: &[Candidate],
        explain: &mut Explain<'_>,
    ) -> Result<RouteChoice> {
        let any_warm = pool::warmest(candidates) != Residency::LOADABLE;
        for (index, candidate) in candidates.iter().enumerate() {
            explain.score(index, self.cost(request, candidate, any_warm));
            explain.because(index, || {
                let (serve, load, regret, violation) = self.terms(request, candidate);
                format!(
                    "seconds={:.3} {serve} load_s={load:.2} regret_s={regret:.2} violation_s={violation:.0}",
                    self.cost(request, candidate, any_warm)
                )
            });
        }
        pool::best(request, candidates, |_, candidate| Some(self.cost(request, candidate, any_warm)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{candidate, choose, cold, request};

    #[test]
    fn table() {
        let fit = Fit::from_options("").expect("defaults");
        let warm = candidate(1);
        let swamped = Candidate { running: 8, queued: 20, ..warm };
        let cases: &[(&str, [Candidate; 2], usize)] = &[
            ("an idle replica beats a load", [cold(2), warm], 1),
            ("a swamped replica does not", [swamped, cold(2)], 1),
            (
                "unless the victims are missed",
                [swamped, Candidate { eviction_regret_s: 500.0, ..cold(2) }],
                0,
            ),
            ("or of higher class", [swamped, Candidate { priority_violation: 1, ..cold(2) }], 0),
            (
                "a load under way is joined",
                [Candidate { residency: Residency::LOADING, load_s: 5.0, ..warm }, cold(2)],
                0,
            ),
            (
                "within the margin nothing moves",
                [Candidate { pending_prefill_tokens: 11_000, ..warm }, cold(2)],
                0,
            ),
            ("beyond the margin it does", [Candidate { pending_prefill_tokens: 13_000, ..warm }, cold(2)], 1),
        ];
        for (name, nodes, expected) in cases {
            assert_eq!(choose(&*fit, &request(), nodes), *expected, "{name}");
        }
    }
}
