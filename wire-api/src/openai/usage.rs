//! What an answer cost and how sure the model was: token counts, timings, log-probabilities.

use serde::{Deserialize, Serialize};

/// Token counts of one request. `total_tokens` is always the sum.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt, cached ones included.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Tokens generated, reasoning included.
    #[serde(default)]
    pub completion_tokens: u64,
    /// Both.
    #[serde(default)]
    pub total_tokens: u64,
    /// How the prompt divides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptTokensDetails>,
    /// How the completion divides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens_details: Option<CompletionTokensDetails>,
}

/// How a prompt divides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTokensDetails {
    /// Tokens that were not computed again.
    #[serde(default, deserialize_with = "super::lenient::or_default")]
    pub cached_tokens: u64,
    /// Tokens newly written to a cache that is billed apart.
    #[serde(default, deserialize_with = "super::lenient::or_default", skip_serializing_if = "is_zero")]
    pub cache_write_tokens: u64,
}

/// How a completion divides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletionTokensDetails {
    /// Tokens of reasoning.
    #[serde(default, deserialize_with = "super::lenient::or_default")]
    pub reasoning_tokens: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Usage {
    /// Counts with both details filled in, so that clients find the same fields every time.
    pub fn new(
        prompt_tokens: u64,
        cached_tokens: u64,
        completion_tokens: u64,
        reasoning_tokens: u64,
    ) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: Some(PromptTokensDetails { cached_tokens, cache_write_tokens: 0 }),
            completion_tokens_details: Some(CompletionTokensDetails { reasoning_tokens }),
        }
    }

    /// Prompt tokens that came from a cache.
    pub fn cached_tokens(&self) -> u64 {
        self.prompt_tokens_details.as_ref().map_or(0, |details| details.cached_tokens)
    }

    /// Prompt tokens written to a cache that is billed apart.
    pub fn cache_write_tokens(&self) -> u64 {
        self.prompt_tokens_details.as_ref().map_or(0, |details| details.cache_write_tokens)
    }

    /// Generated tokens that were reasoning, where the server says.
    pub fn reasoning_tokens(&self) -> Option<u64> {
        self.completion_tokens_details.as_ref().map(|details| details.reasoning_tokens)
    }
}

/// How long the parts of an answer took, as the server measured them. Sent with the usage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Waiting for a place in the batch.
    pub queue_ms: f64,
    /// From admission to the first token.
    pub prefill_ms: f64,
    /// From the first token to the last.
    pub decode_ms: f64,
    /// Prompt tokens computed (cached ones left out) per second.
    pub prefill_tokens_per_second: f64,
    /// Generated tokens per second after the first.
    pub decode_tokens_per_second: f64,
}

/// Log-probabilities of a choice or of the piece of it in one chunk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ChoiceLogprobs {
    /// One entry per token.
    #[serde(default)]
    pub content: Option<Vec<TokenLogprob>>,
}

/// A token and how likely it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// Its text; replacement characters where it is part of a character.
    pub token: String,
    /// Natural logarithm of its probability, never below [`LOGPROB_FLOOR`].
    pub logprob: f32,
    /// Its bytes.
    #[serde(default)]
    pub bytes: Option<Vec<u8>>,
    /// The likeliest tokens in its place, likeliest first.
    #[serde(default)]
    pub top_logprobs: Vec<TopLogprob>,
}

/// An alternative to a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob {
    /// Its text.
    pub token: String,
    /// Natural logarithm of its probability, never below [`LOGPROB_FLOOR`].
    pub logprob: f32,
    /// Its bytes.
    #[serde(default)]
    pub bytes: Option<Vec<u8>>,
}

/// Stands for minus infinity, which JSON cannot write.
pub const LOGPROB_FLOOR: f32 = -9999.0;

fn representable(logprob: f32) -> f32 {
    if logprob > LOGPROB_FLOOR { logprob } else { LOGPROB_FLOOR }
}

impl TokenLogprob {
    /// A token by its bytes, with alternatives.
    pub fn new(bytes: &[u8], logprob: f32, top_logprobs: Vec<TopLogprob>) -> Self {
        let TopLogprob { token, logprob, bytes } = TopLogprob::new(bytes, logprob);
        Self { token, logprob, bytes, top_logprobs }
    }
}

impl TopLogprob {
    /// A token by its bytes.
    pub fn new(bytes: &[u8], logprob: f32) -> Self {
        let token = String::from_utf8_lossy(bytes).into_owned();
        Self { token, logprob: representable(logprob), bytes: Some(bytes.to_vec()) }
    }
}
