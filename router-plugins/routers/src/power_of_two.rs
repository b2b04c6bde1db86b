//! `power_of_two`: the better of two nodes drawn at random.
//!
//! With stale figures, everybody's best node is the same node, and all go there at once. Two draws
//! keep most of the benefit of looking and none of the herd.

use plugin_sdk::{Candidate, Explain, Residency, Result, RouteChoice, RouteRequest, Router};
use strategy_options::Options;

use crate::{least_inflight, pool};

/// Compares KV memory where both nodes' figures are fresh, else requests under way.
pub struct PowerOfTwo {
    fresh_ms: u32,
}

plugin_sdk::router!("power_of_two", "the better of two nodes drawn at random", PowerOfTwo::from_options);

impl PowerOfTwo {
    /// Options: `fresh_ms` (2000), the age up to which a node's figures are believed.
    ///
    /// # Errors
    /// `InvalidInput` naming the option.
    pub fn from_options(options: &str) -> Result<Box<dyn Router>> {
        let mut options = Options::parse("power_of_two", options)?;
        let fresh_ms = options.count("fresh_ms", 2000, 0..=u64::from(u32::MAX))? as u32;
        options.finish()?;
        Ok(Box::new(Self { fresh_ms }))
    }
}

/// Two distinct positions below `count`, from the request's random bits; equal when there is one.
pub fn draw(seed: u64, count: usize) -> (usize, usize) {
    if count < 2 {
        return (0, 0);
    }
    let bits = mix(seed);
    let first = ((bits >> 32) % count as u64) as usize;
    let other = ((bits & 0xffff_ffff) % (count as u64 - 1)) as usize;
    (first, if other >= first { other + 1 } else { other })
}

/// Spreads the bits of a number over the whole word.
pub fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The candidate at a position among those of the warmest residency.
pub fn warm_at(candidates: &[Candidate], tier: Residency, position: usize) -> usize {
    let mut warm = candidates.iter().enumerate().filter(|(_, c)| c.residency == tier);
    warm.nth(position).map_or(0, |(index, _)| index)
}

/// Draws two warm candidates and takes the one with the smaller score; cold ones go by cost.
///
/// # Errors
/// `InvalidInput` when there are no candidates.
pub fn better_of_two(
    request: &RouteRequest<'_>,
    candidates: &[Candidate],
    explain: &mut Explain<'_>,
    score: impl Fn(&Candidate, &Candidate) -> (f64, &'static str),
) -> Result<RouteChoice> {
    let tier = pool::warmest(candidates);
    let warm = candidates.iter().filter(|c| c.residency == tier).count();
    let (first, second) = draw(request.seed, warm);
    let (first, second) = (warm_at(candidates, tier, first), warm_at(candidates, tier, second));
    let drawn = |index: usize| index == first || index == second;
    let other = |index: usize| if index == first { second } else { first };
    pool::least(
        request,
        candidates,
        explain,
        |index, candidate| {
            if drawn(index) { score(candidate, &candidates[other(index)]).0 } else { f64::INFINITY }
        },
        |index, candidate| {
            if !drawn(index) {
                return "skipped=not-drawn".to_owned();
            }
            let (score, term) = score(candidate, &candidates[other(index)]);
            format!("drawn=1 {term}={score:.4} load={}", pool::load(candidate))
        },
    )
}

impl Router for PowerOfTwo {
    fn choose(
        &self,
        request: &RouteRequest<'_>,
        candidates: &[Candidate],
        explain: &mut Explain<'_>,
    ) -> Result<RouteChoice> {
        better_of_two(request, candidates, explain, |candidate, other| {
            let fresh = |c: &Candidate| c.metrics_age_ms <= self.fresh_ms && c.kv_used > 0.0;
            if fresh(candidate) && fresh(other) {
                (f64::from(candidate.kv_used), "kv_used")
            } else {
                (least_inflight::pressure(candidate), "pressure")
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{candidate, choose, request};

    #[test]
    fn two_distinct_positions_cover_all() {
        let mut seen = [0u32; 5];
        for seed in 0..2000 {
            let (first, second) = draw(seed, 5);
            assert_ne!(first, second);
            seen[first] += 1;
            seen[second] += 1;
        }
        assert!(seen.iter().all(|count| (600..1000).contains(count)), "{seen:?}");
        assert_eq!(draw(9, 1), (0, 0));
        assert_eq!(draw(9, 0), (0, 0));
    }

    #[test]
    fn the_better_of_two_wins() {
        let router = PowerOfTwo::from_options("").expect("defaults");
        let nodes = [Candidate { inflight: 5, ..candidate(1) }, Candidate { inflight: 4, ..candidate(2) }];
        for seed in 0..20 {
            assert_eq!(choose(&*router, &RouteRequest { seed, ..request() }, &nodes), 1);
        }
        let fresh =
            [Candidate { kv_used: 0.2, inflight: 5, ..nodes[0] }, Candidate { kv_used: 0.9, ..nodes[1] }];
        assert_eq!(choose(&*router, &request(), &fresh), 0);
        let stale = fresh.map(|node| Candidate { metrics_age_ms: 60_000, ..node });
        assert_eq!(choose(&*router, &request(), &stale), 1);
    }

    #[test]
    fn the_worst_of_many_is_never_chosen_and_the_rest_share() {
        let router = PowerOfTwo::from_options("").expect("defaults");
        let mut nodes = [candidate(1); 4];
        nodes[2].inflight = 100;
        let mut counts = [0u32; 4];
        for seed in 0..400 {
            counts[choose(&*router, &RouteRequest { seed, ..request() }, &nodes)] += 1;
        }
        assert_eq!(counts[2], 0);
        assert!(counts.iter().filter(|count| **count > 50).count() == 3, "{counts:?}");
    }
}
