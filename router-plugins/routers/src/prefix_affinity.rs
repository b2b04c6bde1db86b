//! `prefix_affinity`: the node that has most of the prompt cached, unless the fleet is lopsided.
//!
//! The gateway remembers which hashed token blocks it sent where and reports the match as
//! `cached_tokens`. A prompt nobody has yet goes to the home of its first blocks, by rendezvous hash,
//! so that several gateways send the same new prefix to the same node without sharing anything.
//! Affinity yields to balance: a cache hit is worth a prefill, not a queue.

use plugin_sdk::{Candidate, Explain, Residency, Result, RouteChoice, RouteRequest, Router};
use strategy_options::Options;

use crate::least_inflight::LeastInflight;
use crate::{pool, session_hash};

/// Cached share of the prompt first, bounded by imbalance.
pub struct PrefixAffinity {
    match_share: f64,
    imbalance_requests: u32,
    imbalance_ratio: f64,
    kv_ceiling: f64,
    home_blocks: usize,
    bound: f64,
}

plugin_sdk::router!(
    "prefix_affinity",
    "the node that has most of the prompt cached, unless the fleet is lopsided",
    PrefixAffinity::from_options
);

impl PrefixAffinity {
    /// Options: `match_share` (0.3) of the prompt that must be cached to count; the fleet is lopsided
    /// beyond `imbalance_requests` (16) and `imbalance_ratio` (1.5); `kv_ceiling` (0.95) of KV memory
    /// beyond which a node gets nothing for its cache; `home_blocks` (4) that name a new prefix;
    /// `bound` (1.25) of the fair share for homes.
    ///
    /// # Errors
    /// `InvalidInput` naming the option.
    pub fn from_options(options: &str) -> Result<Box<dyn Router>> {
        let mut options = Options::parse("prefix_affinity", options)?;
        let router = Self {
            match_share: options.number("match_share", 0.3, 0.0..=1.0)?,
            imbalance_requests: options.count("imbalance_requests", 16, 0..=1_000_000)? as u32,
            imbalance_ratio: options.number("imbalance_ratio", 1.5, 1.0..=1000.0)?,
            kv_ceiling: options.number("kv_ceiling", 0.95, 0.0..=1.0)?,
            home_blocks: options.count("home_blocks", 4, 1..=1024)? as usize,
            bound: options.number("bound", 1.25, 1.0..=1000.0)?,
        };
        options.finish()?;
        Ok(Box::new(router))
    }

    fn lopsided(&self, warm: impl Iterator<Item = u32>) -> bool {
        let (mut least, mut most) = (u32::MAX, 0);
        for load in warm {
            (least, most) = (least.min(load), most.max(load));
        }
        most.saturating_sub(least) > self.imbalance_requests
            && f64::from(most) > self.imbalance_ratio * f64::from(least)
    }

    /// Tokens of the prompt that count as cached on a node.
    fn worth(&self, request: &RouteRequest<'_>, candidate: &Candidate) -> u32 {
        let share = f64::from(candidate.cached_tokens) / f64::from(request.prompt_tokens.max(1));
        let full = f64::from(candidate.kv_used) > self.kv_ceiling;
        if share >= self.match_share && !full { candidate.cached_tokens } else { 0 }
    }
}

impl Router for PrefixAffinity {
    fn choose(
        &self,
        request: &RouteRequest<'_>,
        candidates: &[Candidate],
        explain: &mut Explain<'_>,
    ) -> Result<RouteChoice> {
        let tier = pool::warmest(candidates);
        let warm = || candidates.iter().filter(|c| c.residency == tier);
        if tier == Residency::LOADABLE || self.lopsided(warm().map(pool::load)) {
            return LeastInflight.choose(request, candidates, explain);
        }
        if warm().any(|candidate| self.worth(request, candidate) > 0) {
            return pool::least(
                request,
                candidates,
                explain,
                |_, candidate| -f64::from(self.worth(request, candidate)),
                |_, candidate| {
                    format!(
                        "cached={} of={} kv_used={:.2} load={}",
                        candidate.cached_tokens,
                        request.prompt_tokens,
                        candidate.kv_used,
                        pool::load(candidate)
                    )
                },
            );
        }
        let first = request.prefix_blocks.len().min(self.home_blocks);
        // Hashes are chained: the last of the first blocks stands for all of them.
        match request.prefix_blocks[..first].last() {
            Some(key) => {
                session_hash::choose_home(key ^ request.model, self.bound, request, candidates, explain)
            }
            None => LeastInflight.choose(request, candidates, explain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{candidate, choose, request};

    #[test]
    fn table() {
        let router = PrefixAffinity::from_options("").expect("defaults");
        let node = candidate(1);
        let cases: &[(&str, [Candidate; 2], usize)] = &[
            (
                "most cached",
                [Candidate { cached_tokens: 500, ..node }, Candidate { cached_tokens: 900, ..node }],
                1,
            ),
            ("some load is worth it", [Candidate { cached_tokens: 900, inflight: 9, ..node }, node], 0),
            ("lopsided", [Candidate { cached_tokens: 900, inflight: 40, ..node }, node], 1),
            ("too small a match", [Candidate { cached_tokens: 100, inflight: 1, ..node }, node], 1),
            ("full memory", [Candidate { cached_tokens: 900, kv_used: 0.99, inflight: 1, ..node }, node], 1),
        ];
        for (name, nodes, expected) in cases {
            assert_eq!(choose(&*router, &request(), nodes), *expected, "{name}");
        }
    }

    #[test]
    fn a_new_prefix_has_one_home() {
        let router = PrefixAffinity::from_options("").expect("defaults");
        let nodes = [candidate(11), candidate(22), candidate(33)];
        let mut homes = std::collections::BTreeSet::new();
        for key in 0..40u64 {
            let long = [1, 2, 3, key, 99];
            let longer = [1, 2, 3, key, 98, 97];
            let first = choose(&*router, &RouteRequest { prefix_blocks: &long, ..request() }, &nodes);
            let second =
                choose(&*router, &RouteRequest { prefix_blocks: &longer, ordinal: 5, ..request() }, &nodes);
            assert_eq!(first, second);
            homes.insert(first);
        }
        assert_eq!(homes.len(), 3);
    }
}
