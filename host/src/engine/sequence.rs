//! One sequence on its way through the engine.

use std::time::Instant;

use super::images::ImageHold;
use super::ledger::StateCharge;
use super::prefix_cache::cut_points;
use super::prompt::{Prompt, Symbol};
use super::sampler::History;
use super::schedule::Candidate;
use crate::device::thread::SequenceKey;
use crate::worker::message::{FinishReason, MissReason, Sampling, SequenceEvent, Submission, Timings};

/// A sequence that waits, or waits again. It holds nothing on the devices.
#[derive(Debug)]
pub struct Sequence {
    /// What the supervisor calls it.
    pub id: u64,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// Most tokens to emit.
    pub max_tokens: u32,
    /// Ids that end it.
    pub stop_tokens: Vec<u32>,
    /// Log probabilities asked for.
    pub top_logprobs: Option<u8>,
    /// What it begins with.
    pub prompt: Prompt,
    /// Symbols of prompt and emitted tokens.
    pub symbols: Vec<Symbol>,
    /// Hard cuts of the prompt, for recurrent state.
    pub cuts: Vec<u32>,
    /// Tokens chosen so far, here or elsewhere.
    pub emitted: Vec<u32>,
    /// For the penalties.
    pub history: History,
    /// Nobody wants it any more.
    pub cancelled: bool,
    /// Times the device had no room for it.
    pub refusals: u32,
    /// What the prefix cache gave at first admission.
    pub cached: Option<(u32, Option<MissReason>)>,
    submitted: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
}

/// What a running sequence holds on the devices.
#[derive(Debug)]
pub struct Seat {
    /// Its state.
    pub key: SequenceKey,
    /// The bytes of it.
    pub charge: StateCharge,
    /// Tokens it holds.
    pub position: u32,
    /// Images its prompt shows, in the prompt's order; `None` for those that lie in a cached prefix.
    pub images: Vec<Option<ImageHold>>,
}

/// A sequence that is prefilled or decoded.
#[derive(Debug)]
pub struct Running {
    /// What it is.
    pub sequence: Sequence,
    /// What it holds.
    pub seat: Seat,
}

/// What choosing a token led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advance {
    /// The token is part of the output; go on.
    Emit,
    /// The token is the last of the output.
    EmitLast,
    /// The token ends the sequence and is no output.
    Stop,
}

impl Sequence {
    /// A sequence made of a checked submission. `snapshot_every`: `Some` for recurrent state.
    pub fn new(id: u64, submission: Submission, prompt: Prompt, snapshot_every: Option<u32>) -> Self {
        let mut history = History::default();
        history.prompt(&prompt.tokens);
        submission.emitted.iter().for_each(|&token| history.push(token));
        let mut symbols = prompt.symbols();
        symbols.extend(submission.emitted.iter().map(|&token| Symbol::from(token)));
        let cuts =
            snapshot_every.map_or_else(Vec::new, |every| cut_points(prompt.len(), &prompt.boundaries, every));
        Self {
            id,
            sampling: submission.sampling,
            max_tokens: submission.max_tokens,
            stop_tokens: submission.stop_tokens,
            top_logprobs: submission.top_logprobs,
            symbols,
            cuts,
            emitted: submission.emitted,
            history,
            prompt,
            cancelled: false,
            refusals: 0,
            cached: None,
            submitted: Instant::now(),
            admitted: None,
            first_token: None,
        }
    }

    /// Tokens that have to be fed before the next one can be chosen.
    pub fn length(&self) -> u32 {
        self.symbols.len() as u32
    }

    /// Token at a position of prompt and output.
    pub fn token(&self, position: u32) -> u32 {
        let position = position as usize;
        match position.checked_sub(self.prompt.tokens.len()) {
            None => self.prompt.tokens[position],
            Some(index) => self.emitted[index],
        }
    }

    /// Whether a token has been chosen here or elsewhere.
    pub fn has_output(&self) -> bool {
        !self.emitted.is_empty()
    }

    /// It got a seat; `cached` is what the prefix cache gave. The event to send, the first time.
    pub fn admit(&mut self, cached: u32, miss: Option<MissReason>) -> Option<SequenceEvent> {
        if self.cached.is_some() {
            return None;
        }
        self.admitted = Some(Instant::now());
        let cached_of_prompt = cached.min(self.prompt.len());
        self.cached = Some((cached_of_prompt, miss));
        Some(SequenceEvent::Started {
            prompt_tokens: self.prompt.len(),
            cached_tokens: cached_of_prompt,
            miss_reason: miss,
        })
    }

    /// Takes in a chosen token. `context` is the most tokens a sequence may have.
    pub fn advance(&mut self, token: u32, context: u32) -> Advance {
        self.first_token.get_or_insert_with(Instant::now);
        if self.stop_tokens.contains(&token) {
            return Advance::Stop;
        }
        self.emitted.push(token);
        self.symbols.push(Symbol::from(token));
        self.history.push(token);
        if self.emitted.len() as u32 >= self.max_tokens || self.length() >= context {
            Advance::EmitLast
        } else {
            Advance::Emit
        }
    }

    /// The event that ends it.
    pub fn finished(&self, reason: FinishReason) -> SequenceEvent {
        SequenceEvent::Finished {
            reason,
            prompt_tokens: self.prompt.len(),
            completion_tokens: self.emitted.len() as u32,
            cached_tokens: self.cached.map_or(0, |(tokens, _)| tokens),
            timings: self.timings(),
        }
    }

    fn timings(&self) -> Timings {
        let now = Instant::now();
        let between = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f32() * 1000.0;
        let admitted = self.admitted.unwrap_or(now);
        let first_token = self.first_token.unwrap_or(now);
        Timings {
            queue_ms: between(self.submitted, admitted),
            prefill_ms: between(admitted, first_token),
            decode_ms: between(first_token, now),
        }
    }
}

impl Running {
    /// What the schedule needs to know.
    pub fn candidate(&self) -> Candidate {
        let position = self.seat.position;
        let next = self.sequence.cuts.partition_point(|&cut| cut <= position);
        Candidate {
            position,
            remaining: self.sequence.length() - position,
            segment: next.checked_sub(1).map_or(0, |last| self.sequence.cuts[last]),
            to_cut: self.sequence.cuts.get(next).map(|cut| cut - position),
        }
    }

    /// Whether its state stands at a hard cut.
    pub fn at_cut(&self) -> bool {
        self.sequence.cuts.binary_search(&self.seat.position).is_ok()
    }
}
