//! `least_inflight`: the node whose slots are least taken.

use plugin_sdk::{Candidate, Explain, Result, RouteChoice, RouteRequest, Router};

use crate::pool;

/// Requests under way per slot, by the operator's weight.
pub struct LeastInflight;

plugin_sdk::router!(
    "least_inflight",
    "the node with the fewest requests under way per slot",
    LeastInflight::from_options
);

impl LeastInflight {
    /// Takes no options.
    ///
    /// # Errors
    /// `InvalidInput` when there are any.
    pub fn from_options(options: &str) -> Result<Box<dyn Router>> {
        strategy_options::none("least_inflight", options)?;
        Ok(Box::new(Self))
    }
}

/// Share of the node's slots in use; may exceed 1.
pub fn pressure(candidate: &Candidate) -> f64 {
    f64::from(pool::load(candidate)) / (f64::from(candidate.slots.max(1)) * pool::weight(candidate))
}

impl Router for LeastInflight {
    fn choose(
        &self,
        request: &RouteRequest<'_>,
        candidates: &[Candidate],
        explain: &mut Explain<'_>,
    ) -> Result<RouteChoice> {
        pool::least(
            request,
            candidates,
            explain,
            |_, candidate| pressure(candidate),
            |_, candidate| {
                format!(
                    "load={} slots={} weight={}",
                    pool::load(candidate),
                    candidate.slots,
                    candidate.weight
                )
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{candidate, choose, request};

    #[test]
    fn table() {
        let busy = |inflight, slots| Candidate { inflight, slots, ..candidate(1) };
        let cases: &[(&[Candidate], usize)] = &[
            (&[busy(3, 8), busy(2, 8)], 1),
            (&[busy(3, 16), busy(2, 8)], 0),
            (&[Candidate { running: 5, queued: 4, ..busy(0, 8) }, busy(3, 8)], 1),
            (&[Candidate { weight: 4.0, ..busy(3, 8) }, busy(1, 8)], 0),
            (&[busy(1, 0), busy(1, 8)], 1),
        ];
        for (nodes, expected) in cases {
            assert_eq!(choose(&LeastInflight, &request(), nodes), *expected, "{nodes:?}");
        }
    }
}
