//! Expected seconds of a request on a warm node: what `least_tokens` and `fit` share.
//!
//! `(P + n − m) / π + o · (r + 1) / μ`: prompt tokens waiting there and of this request, less what is
//! cached, at the prefill speed; then the expected answer at the decode speed shared with the
//! requests already running. A barrier `0.15 · k / (1 − k)` on KV memory explodes only near full.

use plugin_sdk::{Candidate, Result, RouteRequest};
use strategy_options::Options;

use crate::pool;

/// Speeds assumed where a node has not reported any yet.
#[derive(Debug, Clone, Copy)]
pub struct Speeds {
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
    kv_barrier_s: f64,
}

/// The terms of one estimate, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Seconds {
    /// Until the first token.
    pub prefill_s: f64,
    /// From the first to the last token.
    pub decode_s: f64,
    /// Penalty for nearly full KV memory.
    pub kv_s: f64,
}

impl Seconds {
    /// The sum.
    pub fn total(self) -> f64 {
        self.prefill_s + self.decode_s + self.kv_s
    }
}

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "prefill_s={:.3} decode_s={:.3} kv_s={:.3}", self.prefill_s, self.decode_s, self.kv_s)
    }
}

impl Speeds {
    /// Reads `prefill_tokens_per_s` (2000), `decode_tokens_per_s` (30) and `kv_barrier_s` (0.15).
    ///
    /// # Errors
    /// `InvalidInput` when one is out of range.
    pub fn from_options(options: &mut Options) -> Result<Self> {
        Ok(Self {
            prefill_tokens_per_s: options.number("prefill_tokens_per_s", 2000.0, 0.001..=1e9)?,
            decode_tokens_per_s: options.number("decode_tokens_per_s", 30.0, 0.001..=1e9)?,
            kv_barrier_s: options.number("kv_barrier_s", 0.15, 0.0..=3600.0)?,
        })
    }

    /// Expected seconds of the request on this node, once the model is there.
    pub fn estimate(&self, request: &RouteRequest<'_>, candidate: &Candidate) -> Seconds {
        let prefill_speed = known(candidate.prefill_tokens_per_s, self.prefill_tokens_per_s);
        let decode_speed = known(candidate.decode_tokens_per_s, self.decode_tokens_per_s);
        let uncached = f64::from(request.prompt_tokens.saturating_sub(candidate.cached_tokens));
        let others = f64::from(pool::load(candidate));
        let kv_used = f64::from(candidate.kv_used).clamp(0.0, 0.999);
        let weight = pool::weight(candidate);
        Seconds {
            prefill_s: (candidate.pending_prefill_tokens as f64 + uncached) / prefill_speed / weight,
            decode_s: f64::from(request.expected_tokens.max(1.0)) * (others + 1.0) / decode_speed / weight,
            kv_s: self.kv_barrier_s * kv_used / (1.0 - kv_used),
        }
    }
}

fn known(reported: f32, assumed: f64) -> f64 {
    let reported = f64::from(reported);
    if reported.is_finite() && reported > 0.0 { reported } else { assumed }
}
