//! `session_hash`: a conversation stays on its node, as long as that node is not overloaded.
//!
//! Rendezvous hashing with bounded load, see [`crate::rendezvous`]. A request without a conversation
//! goes where there is least to do; nothing else identifies a conversation (a key or an address may
//! stand for a whole company).

use plugin_sdk::{Candidate, Explain, Residency, Result, RouteChoice, RouteRequest, Router};
use strategy_options::Options;

use crate::{least_inflight, pool, rendezvous};

/// Home by hash, passed over beyond `bound` times the fair share.
pub struct SessionHash {
    bound: f64,
}

plugin_sdk::router!(
    "session_hash",
    "keeps a conversation on one node (rendezvous hash, bounded load)",
    SessionHash::from_options
);

impl SessionHash {
    /// Options: `bound` (1.25), how far above the fair share a node may be loaded.
    ///
    /// # Errors
    /// `InvalidInput` naming the option.
    pub fn from_options(options: &str) -> Result<Box<dyn Router>> {
        let mut options = Options::parse("session_hash", options)?;
        let bound = options.number("bound", 1.25, 1.0..=1000.0)?;
        options.finish()?;
        Ok(Box::new(Self { bound }))
    }
}

/// The key's nearest warm node that is within its allowance, else the least loaded.
///
/// # Errors
/// `InvalidInput` when there are no candidates.
pub fn choose_home(
    key: u64,
    bound: f64,
    request: &RouteRequest<'_>,
    candidates: &[Candidate],
    explain: &mut Explain<'_>,
) -> Result<RouteChoice> {
    let tier = pool::warmest(candidates);
    let warm = || candidates.iter().filter(|c| c.residency == tier);
    let total_load: u64 = warm().map(|c| u64::from(pool::load(c))).sum();
    let total_weight: f64 = warm().map(pool::weight).sum();
    let within = |candidate: &Candidate| {
        let allowance = rendezvous::allowance(bound, total_load, total_weight, candidate);
        f64::from(pool::load(candidate)) + 1.0 <= allowance
    };
    pool::least(
        request,
        candidates,
        explain,
        |_, candidate| {
            if within(candidate) {
                rendezvous::distance(key, candidate)
            } else {
                // Behind every node within its allowance, by load.
                1e6 + least_inflight::pressure(candidate)
            }
        },
        |_, candidate| {
            format!(
                "distance={:.4} load={} within_bound={}",
                rendezvous::distance(key, candidate),
                pool::load(candidate),
                within(candidate)
            )
        },
    )
}

impl Router for SessionHash {
    fn choose(
        &self,
        request: &RouteRequest<'_>,
        candidates: &[Candidate],
        explain: &mut Explain<'_>,
    ) -> Result<RouteChoice> {
        if request.session == 0 || pool::warmest(candidates) == Residency::LOADABLE {
            return least_inflight::LeastInflight.choose(request, candidates, explain);
        }
        choose_home(request.session ^ request.model, self.bound, request, candidates, explain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{candidate, choose, request};

    #[test]
    fn a_conversation_stays_until_its_node_is_overloaded() {
        let router = SessionHash::from_options("").expect("defaults");
        let mut nodes = [candidate(11), candidate(22), candidate(33)];
        for session in 1..50 {
            let request = RouteRequest { session, ..request() };
            let home = choose(&*router, &request, &nodes);
            for ordinal in 0..5 {
                assert_eq!(
                    choose(&*router, &RouteRequest { ordinal, seed: ordinal, ..request }, &nodes),
                    home
                );
            }
            nodes[home].inflight = 10;
            assert_ne!(choose(&*router, &request, &nodes), home);
            nodes[home].inflight = 0;
        }
    }

    #[test]
    fn without_a_conversation_load_decides() {
        let router = SessionHash::from_options("").expect("defaults");
        let nodes = [Candidate { inflight: 1, ..candidate(11) }, candidate(22)];
        assert_eq!(choose(&*router, &request(), &nodes), 1);
    }

    #[test]
    fn when_all_are_over_the_bound_the_least_loaded_takes_it() {
        let router = SessionHash::from_options(r#"{"bound":1.0}"#).expect("options");
        let nodes =
            [Candidate { inflight: 50, ..candidate(11) }, Candidate { inflight: 49, ..candidate(22) }];
        assert_eq!(choose(&*router, &RouteRequest { session: 3, ..request() }, &nodes), 1);
    }
}
