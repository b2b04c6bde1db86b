//! Which tokens remain, and drawing one of them.
//!
//! Without `top_k` and `top_p` nothing is sorted: one pass sums, a second draws. With them only as much of
//! the vocabulary is sorted as the nucleus turns out to need.

use crate::worker::message::Sampling;

/// A token and its logit.
type Candidate = (u32, f32);

/// Tokens sorted at first when looking for a nucleus; grows eightfold while it is too few.
const FIRST_CUT: usize = 256;

/// The `count` largest logits, largest first, the lower id first among equals.
pub(super) fn largest(logits: &[f32], count: usize) -> Vec<Candidate> {
    let mut candidates: Vec<Candidate> = logits.iter().enumerate().map(|(i, &l)| (i as u32, l)).collect();
    let count = count.min(candidates.len());
    if count == 0 {
        return Vec::new();
    }
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count - 1, descending);
        candidates.truncate(count);
    }
    candidates.sort_unstable_by(descending);
    candidates
}

fn descending(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Draws a token; `random` is in [0, 1). `None` when every logit is minus infinity.
pub(super) fn sample(logits: &[f32], sampling: &Sampling, random: f64) -> Option<u32> {
    let max = super::max_of(logits);
    if max == f32::NEG_INFINITY {
        return None;
    }
    let weight = |logit: f32| (f64::from(logit - max) / f64::from(sampling.temperature)).exp();
    let top_k = sampling.top_k as usize;
    let sorted = top_k > 0 && top_k < logits.len() || sampling.top_p < 1.0;
    if sorted {
        let kept = nucleus(logits, sampling, &weight);
        let floor = f64::from(sampling.min_p);
        draw(kept.iter().copied().filter(|&(_, weight)| weight >= floor), random)
    } else {
        // The largest weight is 1, so min_p compares with weights directly.
        let floor = f64::from(sampling.min_p);
        let weights = logits.iter().enumerate().map(|(token, &logit)| (token as u32, weight(logit)));
        draw(weights.filter(move |&(_, weight)| weight >= floor), random)
    }
}

/// Tokens within `top_k` and `top_p`, with their weights relative to the likeliest, likeliest first.
fn nucleus(logits: &[f32], sampling: &Sampling, weight: &impl Fn(f32) -> f64) -> Vec<(u32, f64)> {
    let top_k = if sampling.top_k == 0 { logits.len() } else { (sampling.top_k as usize).min(logits.len()) };
    if sampling.top_p >= 1.0 {
        return largest(logits, top_k).into_iter().map(|(token, logit)| (token, weight(logit))).collect();
    }
    let limited = top_k < logits.len();
    let all_mass: f64 = if limited { 0.0 } else { logits.iter().map(|&logit| weight(logit)).sum() };
    let mut cut = if limited { top_k } else { FIRST_CUT.min(top_k) };
    loop {
        let kept: Vec<(u32, f64)> =
            largest(logits, cut).into_iter().map(|(token, logit)| (token, weight(logit))).collect();
        let mass = if limited { kept.iter().map(|k| k.1).sum() } else { all_mass };
        let goal = mass * f64::from(sampling.top_p);
        let mut reached = 0.0;
        for (index, &(_, weight)) in kept.iter().enumerate() {
            reached += weight;
            if reached >= goal {
                return kept[..=index].to_vec();
            }
        }
        if cut >= top_k {
            return kept;
        }
        cut = (cut * 8).min(top_k);
    }
}

/// Draws proportionally to the weights.
fn draw(weights: impl Iterator<Item = (u32, f64)> + Clone, random: f64) -> Option<u32> {
    let total: f64 = weights.clone().map(|(_, weight)| weight).sum();
    let goal = total * random;
    let mut reached = 0.0;
    let mut last = None;
    for (token, weight) in weights {
        if weight <= 0.0 {
            continue;
        }
        reached += weight;
        last = Some(token);
        if reached > goal {
            return last;
        }
    }
    last // the sum of all weights rounded differently
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_nucleus_is_found_beyond_the_first_cut() {
        // All alike: 90 % of the mass is 90 % of the tokens.
        let logits = vec![1.0f32; 5000];
        let sampling = Sampling { temperature: 1.0, top_p: 0.9, ..Sampling::greedy() };
        let kept = nucleus(&logits, &sampling, &|_| 1.0);
        assert_eq!(kept.len(), 4500);
        assert_eq!(sample(&logits, &sampling, 0.999_999), Some(4499));
        assert_eq!(sample(&logits, &sampling, 0.0), Some(0));
    }

    #[test]
    fn largest_is_sorted_and_stable() {
        assert_eq!(largest(&[1.0, 3.0, 2.0, 3.0], 3), [(1, 3.0), (3, 3.0), (2, 2.0)]);
        assert_eq!(largest(&[1.0], 5), [(0, 1.0)]);
        assert_eq!(largest(&[1.0], 0), []);
    }
}
