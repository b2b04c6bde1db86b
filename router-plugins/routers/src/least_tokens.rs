//! `least_tokens`: the node where this request is expected to end first. The default.

use plugin_sdk::{Candidate, Explain, Result, RouteChoice, RouteRequest, Router};
use strategy_options::Options;

use crate::pool;
use crate::seconds::Speeds;

/// Expected seconds from queued and cached tokens and measured speeds; see [`crate::seconds`].
pub struct LeastTokens {
    speeds: Speeds,
}

plugin_sdk::router!(
    "least_tokens",
    "the node with the least expected seconds of prefill and decode",
    LeastTokens::from_options
);

impl LeastTokens {
    /// Options: those of [`Speeds`].
    ///
    /// # Errors
    /// `InvalidInput` naming the option.
    pub fn from_options(options: &str) -> Result<Box<dyn Router>> {
        let mut options = Options::parse("least_tokens", options)?;
        let speeds = Speeds::from_options(&mut options)?;
        options.finish()?;
        Ok(Box::new(Self { speeds }))
    }
}

impl Router for LeastTokens {
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
            |_, candidate| self.speeds.estimate(request, candidate).total(),
            |_, candidate| {
                let seconds = self.speeds.estimate(request, candidate);
                format!("seconds={:.3} {seconds} load={}", seconds.total(), pool::load(candidate))
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{candidate, choose, cold, request};

    #[test]
    fn table() {
        let router = LeastTokens::from_options("").expect("defaults");
        let node = candidate(1);
        let cases: &[(&str, [Candidate; 2], usize)] = &[
            ("fewer waiting prompts", [Candidate { pending_prefill_tokens: 5000, ..node }, node], 1),
            ("cached prefix", [node, Candidate { cached_tokens: 900, ..node }], 1),
            ("faster decode", [node, Candidate { decode_tokens_per_s: 200.0, ..node }], 1),
            (
                "cache outweighs a little load",
                [
                    Candidate { cached_tokens: 1000, decode_tokens_per_s: 500.0, inflight: 1, ..node },
                    Candidate { decode_tokens_per_s: 500.0, ..node },
                ],
                0,
            ),
            (
                "nearly full KV memory",
                [Candidate { kv_used: 0.99, ..node }, Candidate { inflight: 1, ..node }],
                1,
            ),
            (
                "unknown speed is assumed",
                [
                    Candidate { decode_tokens_per_s: 0.0, ..node },
                    Candidate { decode_tokens_per_s: f32::NAN, inflight: 1, ..node },
                ],
                0,
            ),
            ("warm before cold", [cold(1), Candidate { pending_prefill_tokens: 1 << 40, ..node }], 1),
        ];
        for (name, nodes, expected) in cases {
            assert_eq!(choose(&*router, &request(), nodes), *expected, "{name}");
        }
    }
}
