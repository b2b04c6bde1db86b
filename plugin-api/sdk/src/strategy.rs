//! Writing a strategy: [`Router`] chooses where a request goes, [`Evictor`] chooses what makes room.
//!
//! A strategy is a pure function of the snapshot it is given: no clock, no randomness of its own, no files,
//! no network, no memory of earlier calls. Equal inputs give equal answers.

use std::fmt::Write as _;

use plugin_abi::strategy::{Candidate, Purpose, Resident};

use crate::error::Result;

/// The request a router is asked about.
#[derive(Debug, Clone, Copy)]
pub struct RouteRequest<'a> {
    /// Stable hash of the model's id.
    pub model: u64,
    /// Stable hash of the conversation; 0 when unknown.
    pub session: u64,
    /// Counts routed requests; the rotating index of tie-breaks.
    pub ordinal: u64,
    /// Random bits for this request.
    pub seed: u64,
    /// Milliseconds since an arbitrary start.
    pub now_ms: u64,
    /// Estimated tokens of the prompt.
    pub prompt_tokens: u32,
    /// Most tokens the answer may have.
    pub max_tokens: u32,
    /// Tokens the answer is expected to have.
    pub expected_tokens: f32,
    /// Larger is more important.
    pub priority: i32,
    /// Chained hashes of the prompt's blocks, oldest first; empty when unknown.
    pub prefix_blocks: &'a [u64],
    /// Tokens in one block.
    pub block_tokens: u32,
}

/// A router's answer: an index into the candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteChoice {
    /// Index of the chosen candidate.
    pub index: usize,
}

/// Chooses where a request goes.
pub trait Router: Send + Sync + 'static {
    /// Chooses one of `candidates`, which is never empty. Scores and reasons go to `explain`.
    fn choose(
        &self,
        request: &RouteRequest<'_>,
        candidates: &[Candidate],
        explain: &mut Explain<'_>,
    ) -> Result<RouteChoice>;
}

/// What an evictor is asked for.
#[derive(Debug, Clone, Copy)]
pub struct EvictRequest {
    /// Why.
    pub purpose: Purpose,
    /// Residency class of the model that wants in; larger is higher.
    pub class: u32,
    /// Bytes that must become free, beyond what is free already.
    pub need_bytes: u64,
    /// Milliseconds since an arbitrary start.
    pub now_ms: u64,
    /// Priority of the model that wants in.
    pub priority: i32,
    /// Random bits for this decision.
    pub seed: u64,
    /// The memo of the last choice on this node; 0 at first.
    pub memo: f64,
}

/// An evictor's answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EvictChoice {
    /// Indices of victims, in the order they should go; empty when the need cannot be met.
    pub victims: Vec<usize>,
    /// One number the host keeps per node and hands back next time.
    pub memo: f64,
}

/// Chooses what makes room.
pub trait Evictor: Send + Sync + 'static {
    /// Chooses victims among the residents marked eligible. Scores and reasons go to `explain`.
    fn choose(
        &self,
        request: &EvictRequest,
        residents: &[Resident],
        explain: &mut Explain<'_>,
    ) -> Result<EvictChoice>;
}

/// Where a strategy says why. Costs nothing when nobody asked.
pub struct Explain<'a> {
    scores: &'a mut [f64],
    text: Option<&'a mut String>,
}

impl<'a> Explain<'a> {
    /// Writes scores into `scores` (may be empty) and reasons into `text` (may be absent).
    pub fn new(scores: &'a mut [f64], text: Option<&'a mut String>) -> Self {
        Self { scores, text }
    }

    /// Nobody asked.
    pub fn silent() -> Explain<'static> {
        Explain { scores: &mut [], text: None }
    }

    /// Whether reasons will be read.
    pub fn wanted(&self) -> bool {
        self.text.is_some()
    }

    /// Records the score of one candidate or resident; smaller is better.
    pub fn score(&mut self, index: usize, score: f64) {
        if let Some(slot) = self.scores.get_mut(index) {
            *slot = score;
        }
    }

    /// Records one line about a candidate or resident. `reason` is only built when it will be read.
    pub fn because(&mut self, index: usize, reason: impl FnOnce() -> String) {
        if let Some(text) = self.text.as_deref_mut() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{index}\t{}", reason().replace(['\n', '\t'], " "));
        }
    }
}
