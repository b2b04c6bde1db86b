//! `kv_aware`: the node with the least prefill left to do and the least context in memory.
//!
//! In tokens: `s · max(0, P + n − m) + D + w · r`, where `P` waits for prefill there, `n` is this
//! prompt, `m` is cached, `D` is the context of running requests and `r` their number.

use plugin_sdk::{Candidate, Explain, Result, RouteChoice, RouteRequest, Router};
use strategy_options::Options;

use crate::pool;

/// Tokens to compute plus tokens held.
pub struct KvAware {
    prefill_weight: f64,
    request_tokens: f64,
    cache_credit: f64,
}

plugin_sdk::router!(
    "kv_aware",
    "the node with the least prefill left to do and the least context in memory",
    KvAware::from_options
);

impl KvAware {
    /// Options: `prefill_weight` (1) of a token to compute against one held, `request_tokens` (0) that a
    /// running request counts for besides its context, `cache_credit` (1) of a cached token.
    ///
    /// # Errors
    /// `InvalidInput` naming the option.
    pub fn from_options(options: &str) -> Result<Box<dyn Router>> {
        let mut options = Options::parse("kv_aware", options)?;
        let router = Self {
            prefill_weight: options.number("prefill_weight", 1.0, 0.0..=1e6)?,
            request_tokens: options.number("request_tokens", 0.0, 0.0..=1e6)?,
            cache_credit: options.number("cache_credit", 1.0, 0.0..=1.0)?,
        };
        options.finish()?;
        Ok(Box::new(router))
    }

    /// Prefill, context and request terms, in tokens.
    fn terms(&self, request: &RouteRequest<'_>, candidate: &Candidate) -> [f64; 3] {
        let cached = self.cache_credit * f64::from(candidate.cached_tokens);
        let prefill = candidate.pending_prefill_tokens as f64 + f64::from(request.prompt_tokens) - cached;
        [
            self.prefill_weight * prefill.max(0.0),
            candidate.active_tokens as f64,
            self.request_tokens * f64::from(pool::load(candidate)),
        ]
    }
}

impl Router for KvAware {
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
            |_, candidate| self.terms(request, candidate).iter().sum::<f64>() / pool::weight(candidate),
            |_, candidate| {
                let [prefill, held, running] = self.terms(request, candidate);
                format!("prefill={prefill:.0} held={held:.0} running={running:.0}")
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
        let plain = KvAware::from_options("").expect("defaults");
        let no_cache = KvAware::from_options(r#"{"cache_credit":0}"#).expect("options");
        let counted = KvAware::from_options(r#"{"request_tokens":5000}"#).expect("options");
        let node = candidate(1);
        let cached = Candidate { cached_tokens: 800, active_tokens: 500, ..node };
        let cases: &[(&str, &dyn Router, [Candidate; 2], usize)] = &[
            ("cache outweighs context", &*plain, [cached, node], 0),
            ("unless it is worth nothing", &*no_cache, [cached, node], 1),
            ("waiting prefill", &*plain, [Candidate { pending_prefill_tokens: 10, ..node }, node], 1),
            ("running requests", &*counted, [Candidate { running: 1, ..cached }, node], 1),
            (
                "never below zero",
                &*plain,
                [
                    Candidate { cached_tokens: 90_000, active_tokens: 1001, ..node },
                    Candidate { active_tokens: 0, ..node },
                ],
                1,
            ),
        ];
        for (name, router, nodes, expected) in cases {
            assert_eq!(choose(*router, &request(), nodes), *expected, "{name}");
        }
    }
}
