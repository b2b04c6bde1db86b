//! Which candidates a strategy looks at, and how ties between equal scores are broken.
//!
//! The warmest residency wins: a node that has the model before one that is loading it before one
//! that could. Ties go to the node with fewer of this gateway's requests under way, then to a
//! rotating index and never to the first in the list: a fleet of idle nodes must not send
//! everything to the node whose name sorts first.

use plugin_sdk::{Candidate, Error, Explain, Residency, Result, RouteChoice, RouteRequest};

/// Seconds that displacing a model of higher class counts for: more than any real wait.
pub const PRIORITY_VIOLATION_S: f64 = 1e6;

/// The warmest residency among the candidates.
pub fn warmest(candidates: &[Candidate]) -> Residency {
    candidates.iter().map(|c| c.residency).min_by_key(|r| r.0).unwrap_or(Residency::LOADABLE)
}

/// Chooses by score among the warmest candidates; cold ones are scored by [`cold_seconds`].
///
/// `score` gives a number, smaller is better, and its terms for people.
///
/// # Errors
/// `InvalidInput` when there are no candidates.
pub fn least(
    request: &RouteRequest<'_>,
    candidates: &[Candidate],
    explain: &mut Explain<'_>,
    score: impl Fn(usize, &Candidate) -> f64,
    terms: impl Fn(usize, &Candidate) -> String,
) -> Result<RouteChoice> {
    let tier = warmest(candidates);
    if tier == Residency::LOADABLE {
        return coldest_bill(request, candidates, explain);
    }
    for (index, candidate) in candidates.iter().enumerate() {
        if candidate.residency == tier {
            explain.score(index, score(index, candidate));
            explain.because(index, || terms(index, candidate));
        } else {
            explain.score(index, f64::INFINITY);
            explain.because(index, || "skipped=a-warmer-node-exists".to_owned());
        }
    }
    best(request, candidates, |index, candidate| {
        (candidate.residency == tier).then(|| score(index, candidate))
    })
}

/// What making the model resident on a cold node costs, in seconds.
pub fn cold_seconds(candidate: &Candidate) -> f64 {
    f64::from(candidate.load_s)
        + f64::from(candidate.eviction_regret_s)
        + f64::from(candidate.priority_violation) * PRIORITY_VIOLATION_S
}

/// The cheapest node to load on: seconds first, then the tightest fit, which leaves large holes whole.
fn coldest_bill(
    request: &RouteRequest<'_>,
    candidates: &[Candidate],
    explain: &mut Explain<'_>,
) -> Result<RouteChoice> {
    for (index, candidate) in candidates.iter().enumerate() {
        explain.score(index, cold_seconds(candidate));
        explain.because(index, || {
            format!(
                "load_s={:.2} regret_s={:.2} evictions={} violation={} free={} need={}",
                candidate.load_s,
                candidate.eviction_regret_s,
                candidate.evictions,
                candidate.priority_violation,
                candidate.free_bytes,
                candidate.need_bytes
            )
        });
    }
    let cheapest = candidates.iter().map(cold_seconds).fold(f64::INFINITY, f64::min);
    best(request, candidates, |_, candidate| {
        (cold_seconds(candidate) <= cheapest).then(|| {
            let left = candidate.free_bytes.saturating_sub(candidate.need_bytes);
            f64::from(candidate.evictions) * 1e18 + left as f64
        })
    })
}

/// The smallest score; candidates without one are out. Ties by requests under way, then rotating.
///
/// # Errors
/// `InvalidInput` when no candidate has a score.
pub fn best(
    request: &RouteRequest<'_>,
    candidates: &[Candidate],
    score: impl Fn(usize, &Candidate) -> Option<f64>,
) -> Result<RouteChoice> {
    let count = candidates.len();
    let start = if count == 0 { 0 } else { (request.ordinal % count as u64) as usize };
    let mut found: Option<(f64, u32, usize)> = None;
    for step in 0..count {
        let index = (start + step) % count;
        let candidate = &candidates[index];
        let Some(score) = score(index, candidate) else { continue };
        // A score that is not a number is the worst, not the best.
        let score = if score.is_nan() { f64::INFINITY } else { score };
        let better = found.is_none_or(|(least, inflight, _)| {
            score < least || (score == least && candidate.inflight < inflight)
        });
        if better {
            found = Some((score, candidate.inflight, index));
        }
    }
    match found {
        Some((_, _, index)) => Ok(RouteChoice { index }),
        None => Err(Error::InvalidInput("there is no candidate to choose from".into())),
    }
}

/// Requests a node has under way for the model: its own count or this gateway's, whichever is larger.
pub fn load(candidate: &Candidate) -> u32 {
    candidate.inflight.max(candidate.running.saturating_add(candidate.queued))
}

/// The operator's weight; a nonsensical one counts as 1.
pub fn weight(candidate: &Candidate) -> f64 {
    let weight = f64::from(candidate.weight);
    if weight.is_finite() && weight > 0.0 { weight } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{candidate, cold, request};

    #[test]
    fn equal_idle_nodes_take_turns() {
        let nodes = [candidate(1), candidate(2), candidate(3)];
        let chosen: Vec<_> = (0..6)
            .map(|ordinal| {
                best(&RouteRequest { ordinal, ..request() }, &nodes, |_, _| Some(0.0)).expect("one").index
            })
            .collect();
        assert_eq!(chosen, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_tie_goes_to_the_node_with_fewer_requests() {
        let nodes = [Candidate { inflight: 2, ..candidate(1) }, Candidate { inflight: 1, ..candidate(2) }];
        for ordinal in 0..4 {
            let chosen = best(&RouteRequest { ordinal, ..request() }, &nodes, |_, _| Some(1.0)).expect("one");
            assert_eq!(chosen.index, 1);
        }
    }

    #[test]
    fn a_score_that_is_not_a_number_never_wins() {
        let nodes = [candidate(1), candidate(2)];
        let chosen = best(&request(), &nodes, |index, _| Some(if index == 0 { f64::NAN } else { 9.0 }));
        assert_eq!(chosen.expect("one").index, 1);
        assert!(best(&request(), &[], |_, _| Some(0.0)).is_err());
    }

    #[test]
    fn cold_nodes_are_chosen_by_seconds_then_by_fit() {
        let choose = |nodes: &[Candidate]| {
            least(&request(), nodes, &mut Explain::silent(), |_, _| 0.0, |_, _| String::new())
                .expect("one")
                .index
        };
        let slow = Candidate { load_s: 30.0, ..cold(1) };
        let quick = Candidate { load_s: 10.0, ..cold(2) };
        assert_eq!(choose(&[slow, quick]), 1);
        let regretful = Candidate { eviction_regret_s: 60.0, evictions: 1, ..quick };
        assert_eq!(choose(&[slow, regretful]), 0);
        let violating = Candidate { priority_violation: 1, load_s: 0.1, ..cold(3) };
        assert_eq!(choose(&[slow, violating]), 0);
        let roomy = Candidate { free_bytes: 90 << 30, need_bytes: 1 << 30, ..quick };
        let tight = Candidate { free_bytes: 2 << 30, need_bytes: 1 << 30, ..quick };
        assert_eq!(choose(&[roomy, tight]), 1);
    }

    #[test]
    fn warm_nodes_win_over_cold_ones() {
        let loading = Candidate { residency: Residency::LOADING, load_s: 100.0, ..candidate(2) };
        let nodes = [cold(1), loading];
        let chosen = least(&request(), &nodes, &mut Explain::silent(), |_, _| 0.0, |_, _| String::new());
        assert_eq!(chosen.expect("one").index, 1);
    }
}
