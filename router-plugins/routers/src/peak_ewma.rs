//! `peak_ewma`: the quicker of two nodes drawn at random, by measured latency times requests under way.
//!
//! Raw latency is dominated by the length of answers and would punish nodes that got long jobs, so
//! two measured averages are used: time to first token, which jumps to a new peak at once and decays
//! slowly (the gateway keeps it), and time between tokens.

use plugin_sdk::{Candidate, Explain, Result, RouteChoice, RouteRequest, Router};
use strategy_options::Options;

use crate::{pool, power_of_two};

/// `(first_token_s + expected_tokens · inter_token_s) · (f + 1)`.
pub struct PeakEwma {
    assumed_first_token_s: f64,
}

plugin_sdk::router!(
    "peak_ewma",
    "the quicker of two nodes drawn at random, by peak latency times load",
    PeakEwma::from_options
);

impl PeakEwma {
    /// Options: `assumed_first_token_s` (0.05), used for a node nobody measured yet; small, so that it is tried.
    ///
    /// # Errors
    /// `InvalidInput` naming the option.
    pub fn from_options(options: &str) -> Result<Box<dyn Router>> {
        let mut options = Options::parse("peak_ewma", options)?;
        let assumed_first_token_s = options.number("assumed_first_token_s", 0.05, 0.0..=3600.0)?;
        options.finish()?;
        Ok(Box::new(Self { assumed_first_token_s }))
    }

    fn cost(&self, request: &RouteRequest<'_>, candidate: &Candidate) -> f64 {
        let first = if candidate.first_token_s > 0.0 {
            f64::from(candidate.first_token_s)
        } else {
            self.assumed_first_token_s
        };
        let rest = f64::from(request.expected_tokens) * f64::from(candidate.inter_token_s.max(0.0));
        (first + rest) * (f64::from(pool::load(candidate)) + 1.0) / pool::weight(candidate)
    }
}

impl Router for PeakEwma {
    fn choose(
        &self,
        request: &RouteRequest<'_>,
        candidates: &[Candidate],
        explain: &mut Explain<'_>,
    ) -> Result<RouteChoice> {
        power_of_two::better_of_two(request, candidates, explain, |candidate, _| {
            (self.cost(request, candidate), "ewma_s")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{candidate, choose, request};

    #[test]
    fn table() {
        let router = PeakEwma::from_options("").expect("defaults");
        let node = Candidate { first_token_s: 0.2, inter_token_s: 0.02, ..candidate(1) };
        let cases: &[(&str, [Candidate; 2], usize)] = &[
            ("slow first token", [Candidate { first_token_s: 9.0, ..node }, node], 1),
            ("slow decode", [Candidate { inter_token_s: 0.2, ..node }, node], 1),
            ("load multiplies", [Candidate { inflight: 3, ..node }, node], 1),
            ("quick but loaded", [Candidate { inflight: 3, inter_token_s: 0.001, ..node }, node], 0),
            ("unmeasured is tried", [node, candidate(2)], 1),
        ];
        for (name, nodes, expected) in cases {
            assert_eq!(choose(&*router, &request(), nodes), *expected, "{name}");
        }
    }
}
