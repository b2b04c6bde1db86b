//! The sampling parameters a model ships with.
//!
//! Whoever trained a model knows best how to sample from it, so `generation_config.json` decides whatever
//! the request leaves open. A model that says nothing gets a moderate truncation: sampling a whole
//! vocabulary at full temperature lets the noise of its tail through.

use serde_json::Value;
use wire_api::GenerationParameters;

use crate::worker::message::Sampling;

/// Defaults for what a request leaves open.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GenerationDefaults {
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus mass.
    pub top_p: f32,
    /// 0 keeps all tokens.
    pub top_k: u32,
    /// Relative probability floor.
    pub min_p: f32,
    /// 1 is off.
    pub repetition_penalty: f32,
}

impl GenerationDefaults {
    /// For a model that ships none.
    pub const MODERATE: Self =
        Self { temperature: 0.7, top_p: 0.95, top_k: 40, min_p: 0.05, repetition_penalty: 1.0 };

    /// What `generation_config.json` says; neutral where it says something but not about a parameter.
    pub fn from_config(config: Option<&Value>) -> Self {
        let number =
            |name: &str| config.and_then(|c| c.get(name)).and_then(Value::as_f64).filter(|v| v.is_finite());
        let names = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty"];
        let sampled = config.and_then(|c| c.get("do_sample")).and_then(Value::as_bool);
        if sampled.is_none() && names.iter().all(|name| number(name).is_none()) {
            return Self::MODERATE;
        }
        Self {
            temperature: if sampled == Some(false) {
                0.0
            } else {
                number("temperature").unwrap_or(1.0) as f32
            },
            top_p: number("top_p").filter(|p| *p > 0.0 && *p <= 1.0).unwrap_or(1.0) as f32,
            top_k: number("top_k").filter(|k| *k >= 0.0).unwrap_or(0.0) as u32,
            min_p: number("min_p").unwrap_or(0.0) as f32,
            repetition_penalty: number("repetition_penalty").filter(|p| *p > 0.0).unwrap_or(1.0) as f32,
        }
    }

    /// The request's parameters where it has them, these where it has none. `seed` is used as it is.
    pub fn resolve(&self, request: &GenerationParameters, seed: u64) -> Sampling {
        Sampling {
            temperature: request.temperature.unwrap_or(self.temperature),
            top_p: request.top_p.unwrap_or(self.top_p),
            top_k: request.top_k.unwrap_or(self.top_k),
            min_p: request.min_p.unwrap_or(self.min_p),
            seed,
            presence_penalty: request.presence_penalty.unwrap_or(0.0),
            frequency_penalty: request.frequency_penalty.unwrap_or(0.0),
            repetition_penalty: request.repetition_penalty.unwrap_or(self.repetition_penalty),
            logit_bias: request.logit_bias.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn request_wins_over_model_over_moderate() {
        let llama = json!({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 2]});
        let defaults = GenerationDefaults::from_config(Some(&llama));
        let expected = GenerationDefaults {
            temperature: 0.6,
            top_p: 0.9,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
        };
        assert_eq!(defaults, expected);
        let request = GenerationParameters { temperature: Some(0.0), top_k: Some(5), ..Default::default() };
        let sampling = defaults.resolve(&request, 9);
        assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed), (0.0, 0.9, 5, 9));

        assert_eq!(
            GenerationDefaults::from_config(Some(&json!({"eos_token_id": 2}))),
            GenerationDefaults::MODERATE
        );
        assert_eq!(GenerationDefaults::from_config(None), GenerationDefaults::MODERATE);
        assert_eq!(GenerationDefaults::from_config(Some(&json!({"do_sample": false}))).temperature, 0.0);
    }
}
