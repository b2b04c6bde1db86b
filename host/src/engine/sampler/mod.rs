//! Choosing the next token from a row of logits.
//!
//! The order is fixed: bias, repetition penalty, presence and frequency penalty, temperature, `top_k`,
//! `top_p`, `min_p`, choice. Log probabilities that are reported are those of the model itself: the softmax of
//! its logits before any of that, so they mean the same whatever the sampling parameters.
//!
//! Randomness is a pure function of (seed, position). A logit that is not a number, or plus infinity, is an
//! error and never a token.

mod history;
mod random;
mod truncate;

use thiserror::Error;

pub use history::History;
pub use random::uniform;

use crate::worker::message::{Sampling, TokenLogprob};

/// Why no token could be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SampleError {
    /// A logit is not a number or is infinite.
    #[error("the model computed a logit that is not a number")]
    NotANumber,
    /// Every token is ruled out.
    #[error("the model ruled out every token")]
    NothingLeft,
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Its id.
    pub token: u32,
    /// When asked for.
    pub logprob: Option<TokenLogprob>,
}

/// Chooses from `logits` `[vocab]`, which are left changed. `position` is the number of tokens before the
/// one that is chosen. `top_logprobs`: `None` for no log probabilities, otherwise how many alternatives.
pub fn choose(
    logits: &mut [f32],
    sampling: &Sampling,
    history: &History,
    position: u32,
    top_logprobs: Option<u8>,
) -> Result<Choice, SampleError> {
    check(logits)?;
    // The model's own distribution has to be read before anything changes it.
    let model = top_logprobs.map(|count| ModelDistribution::of(logits, count));
    let raw = top_logprobs.map(|_| logits.to_vec());
    adjust(logits, sampling, history);
    let token = if sampling.temperature <= 0.0 {
        likeliest(logits)?
    } else {
        let random = uniform(sampling.seed, position);
        truncate::sample(logits, sampling, random).ok_or(SampleError::NothingLeft)?
    };
    let logprob = model
        .zip(raw)
        .map(|(model, raw)| TokenLogprob { logprob: raw[token as usize] - model.log_sum, top: model.top });
    Ok(Choice { token, logprob })
}

/// Whether a token depends on nothing but the largest logit, so that the device may choose it.
pub fn is_plain_greedy(sampling: &Sampling, top_logprobs: Option<u8>) -> bool {
    sampling.temperature <= 0.0
        && top_logprobs.is_none()
        && sampling.logit_bias.is_empty()
        && sampling.presence_penalty == 0.0
        && sampling.frequency_penalty == 0.0
        && sampling.repetition_penalty == 1.0
}

fn check(logits: &[f32]) -> Result<(), SampleError> {
    // Whatever is not finite has all exponent bits set. Integer arithmetic, so that the compiler can do many
    // at a time; a row has up to a quarter of a million.
    let unusual = logits.iter().filter(|logit| logit.to_bits() & 0x7fff_ffff >= 0x7f80_0000).count();
    // Minus infinity is a legitimate mask.
    let bad = unusual > 0 && logits.iter().any(|&logit| logit.is_nan() || logit == f32::INFINITY);
    if bad { Err(SampleError::NotANumber) } else { Ok(()) }
}

/// The largest of logits that are numbers; minus infinity when there are none.
fn max_of(logits: &[f32]) -> f32 {
    // Lanes that do not depend on each other, for the compiler as above.
    const LANES: usize = 16;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = logits.chunks_exact(LANES);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    lanes.into_iter().fold(rest, f32::max)
}

fn adjust(logits: &mut [f32], sampling: &Sampling, history: &History) {
    for &(token, bias) in &sampling.logit_bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    if sampling.repetition_penalty != 1.0 {
        for token in history.seen() {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 {
                    *logit / sampling.repetition_penalty
                } else {
                    *logit * sampling.repetition_penalty
                };
            }
        }
    }
    if sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0 {
        for (token, count) in history.generated() {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit -= sampling.presence_penalty + sampling.frequency_penalty * count as f32;
            }
        }
    }
}

/// The largest logit's id, the first of equals.
fn likeliest(logits: &[f32]) -> Result<u32, SampleError> {
    let max = max_of(logits);
    let found = logits.iter().position(|&logit| logit == max && max > f32::NEG_INFINITY);
    found.map(|index| index as u32).ok_or(SampleError::NothingLeft)
}

/// What is reported of the model's own distribution.
struct ModelDistribution {
    /// Logarithm of the sum of the exponentials of all logits.
    log_sum: f32,
    /// The likeliest tokens with their log probabilities, likeliest first.
    top: Vec<(u32, f32)>,
}

impl ModelDistribution {
    fn of(logits: &[f32], count: u8) -> Self {
        let max = max_of(logits);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        let log_sum = (f64::from(max) + sum.ln()) as f32;
        let mut top = truncate::largest(logits, count as usize);
        top.iter_mut().for_each(|(_, logit)| *logit -= log_sum);
        Self { log_sum, top }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(logits: &[f32], sampling: &Sampling, history: &History) -> u32 {
        choose(&mut logits.to_vec(), sampling, history, 10, None).unwrap().token
    }

    fn warm() -> Sampling {
        Sampling { temperature: 1.0, ..Sampling::greedy() }
    }

    /// Share of 4000 draws that fell on each token.
    fn shares(logits: &[f32], sampling: &Sampling) -> Vec<f64> {
        let mut shares = vec![0.0; logits.len()];
        for position in 0..4000 {
            let choice = choose(&mut logits.to_vec(), sampling, &History::default(), position, None).unwrap();
            shares[choice.token as usize] += 1.0 / 4000.0;
        }
        shares
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(pick(&[0.0, 2.0, 2.0], &Sampling::greedy(), &History::default()), 1);
        for place in [0, 15, 16, 37, 99] {
            let mut logits = vec![-1.0; 100];
            logits[place] = 3.0;
            logits[99] = 3.0;
            assert_eq!(pick(&logits, &Sampling::greedy(), &History::default()), place as u32);
        }
    }

    #[test]
    fn bias_and_penalties_move_the_choice() {
        let mut history = History::default();
        history.prompt(&[0]);
        history.push(1);
        history.push(1);
        let logits = [1.0, 1.5, 0.9];
        let with = |change: &dyn Fn(&mut Sampling)| {
            let mut sampling = Sampling::greedy();
            change(&mut sampling);
            pick(&logits, &sampling, &history)
        };
        assert_eq!(with(&|_| {}), 1);
        assert_eq!(with(&|s| s.logit_bias = vec![(2, 5.0)]), 2);
        assert_eq!(with(&|s| s.logit_bias = vec![(1, -100.0)]), 0);
        assert_eq!(with(&|s| s.presence_penalty = 0.6), 0, "the prompt does not count as generated");
        assert_eq!(with(&|s| s.frequency_penalty = 0.2), 1, "1.5 - 2 * 0.2 is still the largest");
        assert_eq!(with(&|s| s.frequency_penalty = 0.3), 0);
        assert_eq!(with(&|s| s.repetition_penalty = 2.0), 2, "prompt and output both count");
    }

    #[test]
    fn temperature_and_truncation_shape_the_distribution() {
        let logits = [3.0f32, 2.0, 1.0, -1.0];
        let weights: Vec<f64> = logits.iter().map(|l| f64::from(*l).exp()).collect();
        let expect = |kept: usize| -> Vec<f64> {
            let sum: f64 = weights[..kept].iter().sum();
            (0..4).map(|i| if i < kept { weights[i] / sum } else { 0.0 }).collect()
        };
        let close = |got: Vec<f64>, want: Vec<f64>, what: &str| {
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() < 0.03, "{what}: {got} is not {want}");
            }
        };
        close(shares(&logits, &warm()), expect(4), "all");
        close(shares(&logits, &Sampling { top_k: 2, ..warm() }), expect(2), "top_k");
        // 0.66 < 0.7 <= 0.66 + 0.24
        close(shares(&logits, &Sampling { top_p: 0.7, ..warm() }), expect(2), "top_p");
        // exp(-2) = 0.135 < 0.2 < exp(-1)
        close(shares(&logits, &Sampling { min_p: 0.2, ..warm() }), expect(2), "min_p");
        close(shares(&logits, &Sampling { top_p: 1e-9, ..warm() }), expect(1), "top_p keeps one");
        let cold = shares(&logits, &Sampling { temperature: 0.05, ..warm() });
        assert!(cold[0] > 0.999, "a low temperature is nearly greedy: {cold:?}");
    }

    #[test]
    fn the_same_seed_and_position_choose_the_same_token() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.7).sin()).collect();
        let draw = |seed, position| {
            let sampling = Sampling { seed, ..warm() };
            choose(&mut logits.clone(), &sampling, &History::default(), position, None).unwrap().token
        };
        let first: Vec<_> = (0..64).map(|position| draw(1, position)).collect();
        let again: Vec<_> = (0..64).map(|position| draw(1, position)).collect();
        let other: Vec<_> = (0..64).map(|position| draw(2, position)).collect();
        assert_eq!(first, again);
        assert_ne!(first, other);
    }

    #[test]
    fn log_probabilities_are_the_models_own() {
        let logits = [2.0f32, 1.0, 0.0];
        let sampling =
            Sampling { logit_bias: vec![(2, 100.0)], temperature: 0.3, top_k: 1, ..Sampling::greedy() };
        let choice = choose(&mut logits.to_vec(), &sampling, &History::default(), 0, Some(2)).unwrap();
        let log_sum = logits.iter().map(|l| l.exp()).sum::<f32>().ln();
        let logprob = choice.logprob.unwrap();
        assert_eq!(choice.token, 2);
        assert!((logprob.logprob - (0.0 - log_sum)).abs() < 1e-5);
        assert_eq!(logprob.top.iter().map(|t| t.0).collect::<Vec<_>>(), [0, 1]);
        assert!((logprob.top[0].1 - (2.0 - log_sum)).abs() < 1e-5);
    }

    #[test]
    fn what_is_no_number_is_never_a_token() {
        for sampling in [Sampling::greedy(), warm()] {
            let choice = |logits: &[f32]| {
                choose(&mut logits.to_vec(), &sampling, &History::default(), 0, None).map(|c| c.token)
            };
            assert_eq!(choice(&[1.0, f32::NAN]), Err(SampleError::NotANumber));
            assert_eq!(choice(&[1.0, f32::INFINITY]), Err(SampleError::NotANumber));
            assert_eq!(choice(&[f32::NEG_INFINITY; 2]), Err(SampleError::NothingLeft));
            assert_eq!(choice(&[f32::NEG_INFINITY, 0.0]), Ok(1));
        }
    }
}
