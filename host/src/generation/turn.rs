//! One request being answered: its sequences, and what they say as one stream of events.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use tokio_stream::{StreamExt, StreamMap};
use wire_api::openai::chat::FinishReason;
use wire_api::openai::usage::{Timings, TokenLogprob, TopLogprob, Usage};
use wire_api::{ApiError, ErrorKind, GenerationParameters};

use super::Served;
use super::error::of_sequence;
use super::prepare::Prepared;
use crate::lifecycle::SequenceStream;
use crate::output::{Delta, EarlyEnd, OutputStream};
use crate::prompt::{ModelText, TextTokenizer};
use crate::worker::message::{self, MissReason, SequenceEvent, Submission};

/// What happens in a turn.
#[derive(Debug, Clone, PartialEq)]
pub enum TurnEvent {
    /// The engine admitted an answer's sequence.
    Started,
    /// More of an answer.
    Delta {
        /// Which answer.
        choice: u32,
        /// What is new; nothing when only log probabilities are.
        delta: Option<Delta>,
        /// The tokens it was made of, if the request asked for their probabilities.
        logprobs: Vec<TokenLogprob>,
    },
    /// An answer ended.
    Ended {
        /// Which.
        choice: u32,
        /// How.
        ended: Ended,
    },
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Why.
    pub reason: FinishReason,
    /// The stop string that ended it.
    pub stop: Option<String>,
}

/// What is known of a turn besides its usage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Why not more of a prompt came from the prefix cache.
    pub miss_reason: Option<MissReason>,
}

/// One answer in the making.
#[derive(Debug)]
struct Choice {
    output: OutputStream,
    /// Log probabilities of tokens whose text has not come out yet.
    logprobs: Vec<TokenLogprob>,
    prompt: usize,
    prompt_tokens: u64,
    cached_tokens: u64,
    completion_tokens: u64,
    reasoning_tokens: u64,
}

/// See the module. Dropping it cancels what is still running.
#[derive(Debug)]
pub struct Turn {
    streams: StreamMap<u32, SequenceStream>,
    choices: Vec<Choice>,
    text: Arc<ModelText>,
    stops: Vec<String>,
    timings: Option<message::Timings>,
    counts: Counts,
    /// Events to be told before the next one is awaited.
    ready: VecDeque<TurnEvent>,
    /// Told after them; nothing follows.
    failure: Option<ApiError>,
    /// Tokens nobody has taken note of yet.
    log: Vec<u32>,
}

impl Turn {
    /// Submits every answer of every prompt. `emitted`: what the one answer has said elsewhere.
    pub(super) fn start(
        served: &Served,
        prompts: Vec<Prepared>,
        parameters: &GenerationParameters,
        emitted: Vec<u32>,
    ) -> Result<Self, ApiError> {
        let Served { model, text } = served;
        let context = model.info().facts.max_context;
        for prepared in &prompts {
            check_tokens(&prepared.prompt.ids, model.info().facts.vocab_size, context)?;
        }
        let seed = parameters.seed.map_or_else(random, |seed| seed as u64);
        let stop_tokens = if parameters.ignore_eos { Vec::new() } else { text.stop_tokens().to_vec() };
        let mut streams = StreamMap::new();
        let mut choices = Vec::new();
        for (prompt, prepared) in prompts.into_iter().enumerate() {
            let room = context - prepared.prompt.ids.len() as u32;
            for answer in 0..parameters.n {
                let submission = Submission {
                    prompt: prepared.prompt.ids.clone(),
                    images: prepared.images.clone(),
                    sampling: text.defaults().resolve(parameters, seed.wrapping_add(u64::from(answer))),
                    max_tokens: parameters.max_tokens.map_or(room, |most| most.min(room)),
                    stop_tokens: stop_tokens.clone(),
                    top_logprobs: parameters.logprobs.then_some(parameters.top_logprobs),
                    emitted: emitted.clone(),
                    boundaries: prepared.prompt.boundaries.clone(),
                };
                streams.insert(choices.len() as u32, model.submit(submission));
                choices.push(Choice {
                    output: OutputStream::new(text.tokenizer(), prepared.output.clone()),
                    logprobs: Vec::new(),
                    prompt,
                    prompt_tokens: 0,
                    cached_tokens: 0,
                    completion_tokens: 0,
                    reasoning_tokens: 0,
                });
            }
        }
        if let Some(strange) = emitted.iter().find(|id| **id >= model.info().facts.vocab_size) {
            return Err(ApiError::invalid("emitted", format!("{strange} is no token of this model")));
        }
        let mut turn = Self {
            streams,
            choices,
            text: Arc::clone(text),
            stops: parameters.stop.clone(),
            timings: None,
            counts: Counts::default(),
            ready: VecDeque::new(),
            failure: None,
            log: Vec::new(),
        };
        // Read as if they came now, so that what comes next is read as it would have been.
        for id in emitted {
            if turn.streams.is_empty() {
                break;
            }
            turn.take(0, SequenceEvent::Token { id, logprob: None });
        }
        turn.log.clear();
        Ok(turn)
    }

    /// The tokens that have come since this was last asked, of all answers.
    pub fn take_log(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.log)
    }

    /// The next event; `None` after the last. Cancelling a call loses nothing.
    ///
    /// # Errors
    ///
    /// Why one of the answers failed; the others are cancelled.
    pub async fn next(&mut self) -> Result<Option<TurnEvent>, ApiError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
            let Some((index, event)) = self.streams.next().await else { return Ok(None) };
            self.take(index, event);
        }
    }

    /// What the turn cost so far. A prompt counts once, however many answers it has.
    pub fn usage(&self) -> Usage {
        let mut prompts: Vec<(usize, u64, u64)> =
            self.choices.iter().map(|c| (c.prompt, c.prompt_tokens, c.cached_tokens)).collect();
        prompts.dedup_by_key(|(prompt, ..)| *prompt);
        let sum = |of: fn(&Choice) -> u64| self.choices.iter().map(of).sum();
        Usage::new(
            prompts.iter().map(|(_, tokens, _)| tokens).sum(),
            prompts.iter().map(|(.., cached)| cached).sum(),
            sum(|choice| choice.completion_tokens),
            sum(|choice| choice.reasoning_tokens),
        )
    }

    /// What else is known so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Where the time of the answer that ended last went, once one has ended by itself.
    pub fn timings(&self) -> Option<Timings> {
        let measured = self.timings?;
        let usage = self.usage();
        let per_second =
            |tokens: u64, ms: f32| if ms > 0.0 { tokens as f64 * 1000.0 / f64::from(ms) } else { 0.0 };
        let computed = usage.prompt_tokens.saturating_sub(usage.cached_tokens());
        Some(Timings {
            queue_ms: measured.queue_ms.into(),
            prefill_ms: measured.prefill_ms.into(),
            decode_ms: measured.decode_ms.into(),
            prefill_tokens_per_second: per_second(computed, measured.prefill_ms),
            decode_tokens_per_second: per_second(
                usage.completion_tokens.saturating_sub(1),
                measured.decode_ms,
            ),
        })
    }

    fn take(&mut self, index: u32, event: SequenceEvent) {
        let choice = &mut self.choices[index as usize];
        match event {
            SequenceEvent::Started { prompt_tokens, cached_tokens, miss_reason } => {
                choice.prompt_tokens = prompt_tokens.into();
                choice.cached_tokens = cached_tokens.into();
                self.counts.miss_reason = miss_reason;
                self.ready.push_back(TurnEvent::Started);
            }
            SequenceEvent::Token { id, logprob } => {
                choice.completion_tokens += 1;
                self.log.push(id);
                let tokenizer = self.text.tokenizer();
                choice.logprobs.extend(logprob.map(|logprob| describe(tokenizer, id, &logprob)));
                let deltas = choice.output.push(tokenizer, id);
                choice.reasoning_tokens = choice.output.reasoning_tokens().into();
                let ended = choice.output.early_end().is_some();
                self.tell(index, deltas, false);
                if ended {
                    self.end(index, FinishReason::Stop);
                }
            }
            SequenceEvent::Finished { reason, prompt_tokens, completion_tokens, cached_tokens, timings } => {
                choice.prompt_tokens = prompt_tokens.into();
                choice.cached_tokens = cached_tokens.into();
                choice.completion_tokens = completion_tokens.into();
                self.timings = Some(timings);
                let reason = match reason {
                    message::FinishReason::Stop => FinishReason::Stop,
                    message::FinishReason::Length => FinishReason::Length,
                    message::FinishReason::Cancelled => FinishReason::Abnormal,
                };
                self.end(index, reason);
            }
            SequenceEvent::Failed { code, message, retryable, retry_after_ms } => {
                self.fail(of_sequence(code, &message, retryable, retry_after_ms));
            }
        }
    }

    /// Ends one answer; dropping its stream cancels what the engine still does for it.
    fn end(&mut self, index: u32, reason: FinishReason) {
        self.streams.remove(&index);
        if reason == FinishReason::Abnormal {
            let gone = ApiError::new(
                ErrorKind::Unavailable,
                "the answer was cut off because the model was unloaded",
            );
            return self.fail(gone.with_retry_after(1));
        }
        let choice = &mut self.choices[index as usize];
        let deltas = choice.output.finish();
        let stop = match choice.output.early_end() {
            Some(EarlyEnd::StopString(which)) => self.stops.get(which).cloned(),
            _ => None,
        };
        let reason = match reason {
            FinishReason::Stop if choice.output.tool_calls() > 0 => FinishReason::ToolCalls,
            other => other,
        };
        self.tell(index, deltas, true);
        self.ready.push_back(TurnEvent::Ended { choice: index, ended: Ended { reason, stop } });
    }

    /// Tells deltas, the first with the probabilities of the tokens since the last; with `all` these are told
    /// even if no text came.
    fn tell(&mut self, index: u32, deltas: Vec<Delta>, all: bool) {
        let kept = &mut self.choices[index as usize].logprobs;
        let mut logprobs = if all || !deltas.is_empty() { std::mem::take(kept) } else { Vec::new() };
        if deltas.is_empty() && !logprobs.is_empty() {
            self.ready.push_back(TurnEvent::Delta { choice: index, delta: None, logprobs });
            return;
        }
        for delta in deltas {
            let logprobs = std::mem::take(&mut logprobs);
            self.ready.push_back(TurnEvent::Delta { choice: index, delta: Some(delta), logprobs });
        }
    }

    fn fail(&mut self, error: ApiError) {
        self.streams.clear();
        self.failure = Some(error);
    }
}

/// 64 bits nobody can foresee: the standard library seeds its hash maps with such.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn check_tokens(ids: &[u32], vocabulary: u32, context: u32) -> Result<(), ApiError> {
    if ids.is_empty() {
        return Err(ApiError::invalid("prompt", "there is nothing in it"));
    }
    if let Some(strange) = ids.iter().find(|id| **id >= vocabulary) {
        return Err(ApiError::invalid("prompt", format!("{strange} is no token of this model")));
    }
    if ids.len() as u64 >= u64::from(context) {
        return Err(ApiError::context_length(ids.len() as u64, context.into()));
    }
    Ok(())
}

fn describe(tokenizer: &TextTokenizer, id: u32, logprob: &message::TokenLogprob) -> TokenLogprob {
    let top = logprob.top.iter().map(|(id, logprob)| TopLogprob::new(tokenizer.piece(*id).bytes, *logprob));
    TokenLogprob::new(tokenizer.piece(id).bytes, logprob.logprob, top.collect())
}
