//! Rendezvous hashing with bounded load: a key has a favourite node, then a second, and so on.
//!
//! Every gateway computes the same order without sharing anything, and a node that leaves moves only
//! its own keys. A favourite whose load exceeds its fair share by `bound` is passed over, so one busy
//! conversation cannot bury a node.

use plugin_sdk::Candidate;

use crate::pool;
use crate::power_of_two::mix;

/// How much a node dislikes a key; the smallest of all nodes is the key's home. Weighted.
pub fn distance(key: u64, candidate: &Candidate) -> f64 {
    let bits = mix(key ^ mix(candidate.node));
    // A number in (0, 1): 53 bits, never 0.
    let uniform = ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -uniform.ln() / pool::weight(candidate)
}

/// Requests a node may have before it is passed over: `⌈bound · (F + 1) · w / W⌉`.
pub fn allowance(bound: f64, total_load: u64, total_weight: f64, candidate: &Candidate) -> f64 {
    let share = pool::weight(candidate) / total_weight.max(f64::MIN_POSITIVE);
    (bound * (total_load as f64 + 1.0) * share).ceil()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::candidate;

    fn home(key: u64, nodes: &[Candidate]) -> u64 {
        let distances = nodes.iter().map(|node| (distance(key, node), node.node));
        distances.min_by(|a, b| a.0.total_cmp(&b.0)).expect("nodes").1
    }

    #[test]
    fn keys_spread_evenly_and_by_weight() {
        let nodes = [candidate(11), candidate(22), Candidate { weight: 2.0, ..candidate(33) }];
        let mut counts = std::collections::BTreeMap::new();
        for key in 0..4000 {
            *counts.entry(home(key, &nodes)).or_insert(0u32) += 1;
        }
        assert!((800..1200).contains(&counts[&11]), "{counts:?}");
        assert!((1800..2200).contains(&counts[&33]), "{counts:?}");
    }

    #[test]
    fn a_node_that_leaves_moves_only_its_own_keys() {
        let all = [candidate(11), candidate(22), candidate(33)];
        let fewer = [candidate(11), candidate(33)];
        for key in 0..500 {
            let before = home(key, &all);
            if before != 22 {
                assert_eq!(home(key, &fewer), before);
            }
        }
    }

    #[test]
    fn the_allowance_is_a_fair_share_with_some_air() {
        assert_eq!(allowance(1.25, 0, 2.0, &candidate(1)), 1.0);
        assert_eq!(allowance(1.25, 15, 2.0, &candidate(1)), 10.0);
    }
}
