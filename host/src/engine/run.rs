//! The engine's loop: take mail, admit, step, settle.
//!
//! One thread runs it. It waits in one place only, the mailbox, and while the devices are busy it goes on
//! taking mail there, so a cancel is noticed during a step and a step that takes too long is noticed at all.
//! Whatever leaves an engine that cannot go on is a [`Fatal`]: the process has to be replaced, and the
//! sequences that were in the batch are named.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::images::Images;
use super::ledger::Ledger;
use super::prefix_cache::PrefixCache;
use super::prompt;
use super::queue::Queue;
use super::schedule::StepLimits;
use super::sequence::{Running, Sequence};
use crate::device::group::{Group, GroupAnswer, GroupJob};
use crate::device::rank::DeviceError;
use crate::device::thread::{Batch, Reply, SequenceKey, StateOp};
use crate::worker::message::{FailureCode, FinishReason, SequenceEvent, Submission, Timings};
use crate::worker::protocol::{EngineLimits, Heartbeat, ModelFacts};

/// What arrives in the engine's mailbox.
#[derive(Debug)]
pub enum Mail {
    /// Generate.
    Submit(u64, Box<Submission>),
    /// Nobody wants this any more.
    Cancel(u64),
    /// A rank has answered.
    Device(Reply),
    /// Fail what is under way and end.
    Close,
}

/// The engine cannot go on; the worker must be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fatal {
    /// Kind of the fault.
    pub code: FailureCode,
    /// One sentence.
    pub message: String,
    /// Sequences that were in the batch.
    pub suspects: Vec<u64>,
}

/// What others may look at while the engine runs.
#[derive(Debug)]
pub struct Gauge {
    started: Instant,
    /// Milliseconds after `started` when the current turn began, plus one; 0 while the engine waits for mail.
    turn: AtomicU64,
    latest: Mutex<Heartbeat>,
}

impl Default for Gauge {
    fn default() -> Self {
        Self { started: Instant::now(), turn: AtomicU64::new(0), latest: Mutex::default() }
    }
}

impl Gauge {
    /// The latest figures, with how long the engine has been at its current turn.
    pub fn read(&self) -> Heartbeat {
        let turn = self.turn.load(Ordering::Relaxed);
        let now = self.started.elapsed().as_millis() as u64 + 1;
        let latest = *self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        Heartbeat { busy_ms: if turn == 0 { 0 } else { now.saturating_sub(turn).max(1) }, ..latest }
    }

    fn begin_turn(&self) {
        self.turn.store(self.started.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    }

    fn rest(&self) {
        self.turn.store(0, Ordering::Relaxed);
    }

    fn publish(&self, heartbeat: Heartbeat) {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = heartbeat;
    }
}

/// Where events go.
pub type EventSink = Box<dyn FnMut(u64, SequenceEvent) + Send>;

/// See the module.
pub struct Engine {
    pub(super) group: Group,
    pub(super) facts: ModelFacts,
    pub(super) limits: EngineLimits,
    pub(super) step_limits: StepLimits,
    pub(super) device_chooses: bool,
    pub(super) inbox: Receiver<Mail>,
    pub(super) events: EventSink,
    pub(super) queue: Queue,
    pub(super) running: Vec<Running>,
    pub(super) ledger: Ledger,
    pub(super) cache: PrefixCache,
    pub(super) images: Images,
    /// State operations that go with the next job, in order.
    pub(super) pending: Vec<StateOp>,
    pub(super) totals: Heartbeat,
    pub(super) next_key: u64,
    in_flight: Option<InFlight>,
    arrived: VecDeque<(u64, Box<Submission>)>,
    in_hand: Option<InHand>,
    closing: bool,
    gauge: Arc<Gauge>,
}

/// What the devices are busy with, as far as a cancel concerns it.
struct InFlight {
    batch: Arc<Batch>,
    wanted: HashSet<u64>,
}

/// A sequence that is neither arrived nor waiting nor running, because the devices are asked something about
/// it. A cancel must find it all the same.
struct InHand {
    id: u64,
    cancelled: bool,
}

impl Engine {
    /// An engine for a loaded model. `max_step_tokens` is what the model was loaded for. `device_chooses`: let
    /// the device pick the token of plainly greedy sequences, which saves moving logits off a GPU.
    pub fn new(
        group: Group,
        limits: EngineLimits,
        max_step_tokens: u32,
        device_chooses: bool,
        inbox: Receiver<Mail>,
        events: EventSink,
        gauge: Arc<Gauge>,
    ) -> Self {
        let facts = group.facts();
        let (token, sequence) = (limits.kv_bytes_per_token, limits.state_bytes_per_sequence);
        Self {
            facts,
            step_limits: StepLimits {
                max_step_tokens: max_step_tokens.max(limits.max_running + 128),
                prefill_chunk: limits.prefill_chunk.max(128),
                max_row_tokens: facts.max_row_tokens,
            },
            device_chooses,
            inbox,
            events,
            queue: Queue::new(limits.queue_limit as usize),
            running: Vec::new(),
            ledger: Ledger::new(limits.state_bytes, token, sequence),
            cache: PrefixCache::new(facts.fork_any_length, limits.prefix_cache_bytes, token, sequence),
            images: Images::default(),
            pending: Vec::new(),
            totals: Heartbeat::default(),
            next_key: 0,
            in_flight: None,
            arrived: VecDeque::new(),
            in_hand: None,
            closing: false,
            group,
            limits,
            gauge,
        }
    }

    /// Runs until [`Mail::Close`] or the end of the mailbox. The model is freed before this returns, unless
    /// the devices are at fault and may never answer.
    pub fn run(mut self) -> Result<(), Fatal> {
        loop {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => break,
                Err(fatal) => {
                    std::mem::forget(self.group);
                    return Err(fatal);
                }
            }
        }
        let leftover: Vec<Sequence> =
            self.queue.drain().chain(self.running.drain(..).map(|running| running.sequence)).collect();
        for sequence in leftover {
            self.fail(&sequence, FailureCode::DeviceLost, "the model is being unloaded", true, None);
        }
        self.group.close();
        Ok(())
    }

    /// One turn. `Ok(false)`: it is over.
    fn turn(&mut self) -> Result<bool, Fatal> {
        if self.is_idle() {
            self.settle_down()?;
        }
        // Mail may have come in while the devices were settling.
        if self.is_idle() {
            self.gauge.rest();
            match self.inbox.recv() {
                Ok(mail) => self.take(mail),
                Err(_) => return Ok(false),
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(mail) => self.take(mail),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(false),
            }
        }
        if self.closing {
            return Ok(false);
        }
        self.gauge.begin_turn();
        self.receive()?;
        self.drop_cancelled();
        self.admit()?;
        self.step()?;
        self.publish();
        Ok(true)
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.queue.is_empty() && self.arrived.is_empty() && !self.closing
    }

    /// Before the engine rests: free on the devices what nobody needs, and look at what they hold.
    fn settle_down(&mut self) -> Result<(), Fatal> {
        if !self.pending.is_empty() {
            self.step_batch(Vec::new())?;
        }
        self.read_stats()?;
        self.publish();
        Ok(())
    }

    fn take(&mut self, mail: Mail) {
        match mail {
            Mail::Submit(id, submission) => self.arrived.push_back((id, submission)),
            Mail::Cancel(id) => self.cancel(id),
            Mail::Device(reply) => drop(self.group.collect(reply)),
            Mail::Close => self.closing = true,
        }
    }

    fn cancel(&mut self, id: u64) {
        if let Some(running) = self.running.iter_mut().find(|running| running.sequence.id == id) {
            running.sequence.cancelled = true;
        } else if let Some(index) = self.arrived.iter().position(|(arrived, _)| *arrived == id) {
            self.arrived.remove(index);
            self.emit_cancelled(id);
        } else if let Some(in_hand) = self.in_hand.as_mut().filter(|in_hand| in_hand.id == id) {
            in_hand.cancelled = true;
        } else {
            self.queue.cancel(id);
        }
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.wanted.remove(&id);
            if in_flight.wanted.is_empty() {
                in_flight.batch.cancel.store(1, Ordering::Relaxed);
            }
        }
    }

    /// Takes a sequence in hand until [`Engine::let_go`].
    pub(super) fn take_in_hand(&mut self, id: u64) {
        self.in_hand = Some(InHand { id, cancelled: false });
    }

    /// Whether the sequence in hand was cancelled meanwhile.
    pub(super) fn let_go(&mut self) -> bool {
        self.in_hand.take().is_some_and(|in_hand| in_hand.cancelled)
    }

    fn emit_cancelled(&mut self, id: u64) {
        let event = SequenceEvent::Finished {
            reason: FinishReason::Cancelled,
            prompt_tokens: 0,
            completion_tokens: 0,
            cached_tokens: 0,
            timings: Timings::default(),
        };
        self.emit(id, event);
    }

    /// Turns arrived submissions into sequences that wait, or refuses them.
    fn receive(&mut self) -> Result<(), Fatal> {
        while let Some((id, submission)) = self.arrived.pop_front() {
            self.take_in_hand(id);
            let prepared = self.prepare(id, *submission)?;
            if self.let_go() {
                self.emit_cancelled(id);
                continue;
            }
            match prepared {
                Ok(sequence) => self.queue.push(sequence),
                Err(refusal) => self.emit(id, refusal),
            }
        }
        Ok(())
    }

    fn prepare(
        &mut self,
        id: u64,
        mut submission: Submission,
    ) -> Result<Result<Sequence, SequenceEvent>, Fatal> {
        let invalid = |message| failed(FailureCode::InvalidInput, message, false, None);
        let (image_token, vocab) = (self.facts.image_token, self.facts.vocab_size);
        if let Err(rejection) = prompt::check(&submission, image_token, vocab) {
            return Ok(Err(invalid(rejection)));
        }
        if let Err(full) = self.queue.check()
            && submission.emitted.is_empty()
        {
            let message = format!("the queue of this model is full: {} requests wait", full.waiting);
            let retry_after = Some(full.retry_after.as_millis() as u32);
            return Ok(Err(failed(FailureCode::OutOfMemory, message, true, retry_after)));
        }
        let mut sizes = Vec::with_capacity(submission.images.len());
        for image in &submission.images {
            let measured = match self.ask(&GroupJob::Measure(image.width, image.height), &[id])? {
                GroupAnswer::Measured(measured) => measured,
                _ => return Err(lost_count(&[id])),
            };
            match measured {
                Ok(tokens) => sizes.push(tokens),
                Err(error @ DeviceError::DeviceLost(_)) => {
                    return Err(Fatal { code: error.code(), message: error.to_string(), suspects: vec![id] });
                }
                Err(error) => return Ok(Err(failure_of(&error))),
            }
        }
        let images = std::mem::take(&mut submission.images);
        let prompt = prompt::expand(&submission.prompt, images, &submission.boundaries, image_token, &sizes);
        let length = prompt.len() + submission.emitted.len() as u32;
        if length >= self.facts.max_context {
            let maximum = self.facts.max_context - 1;
            return Ok(Err(invalid(format!("prompt is too long: {length} tokens > {maximum} maximum"))));
        }
        let need = self.ledger.need(length + 1, 0);
        if need > self.limits.state_bytes {
            return Ok(Err(invalid(format!(
                "prompt is too long: its {length} tokens need {need} bytes of state, and this model was given {}",
                self.limits.state_bytes
            ))));
        }
        let every = (!self.facts.fork_any_length).then_some(self.limits.snapshot_every);
        let sequence = Sequence::new(id, submission, prompt, every);
        if sequence.emitted.len() as u32 >= sequence.max_tokens {
            return Ok(Err(sequence.finished(FinishReason::Length)));
        }
        Ok(Ok(sequence))
    }

    fn drop_cancelled(&mut self) {
        for sequence in self.queue.take_cancelled() {
            self.emit(sequence.id, sequence.finished(FinishReason::Cancelled));
        }
        let mut index = 0;
        while index < self.running.len() {
            if self.running[index].sequence.cancelled {
                let running = self.running.remove(index);
                self.emit(running.sequence.id, running.sequence.finished(FinishReason::Cancelled));
                self.leave(running);
            } else {
                index += 1;
            }
        }
    }

    /// Sends a job to the devices and waits for all ranks, taking mail meanwhile. `rows` are the sequences
    /// the job is for.
    pub(super) fn ask(&mut self, job: &GroupJob, rows: &[u64]) -> Result<GroupAnswer, Fatal> {
        let suspects = || rows.to_vec();
        self.group.start(job).map_err(|error| Fatal {
            code: FailureCode::DeviceLost,
            message: error.to_string(),
            suspects: suspects(),
        })?;
        if let GroupJob::Step(batch) = job
            && !rows.is_empty()
        {
            let wanted: HashSet<u64> = rows.iter().copied().collect();
            self.in_flight = Some(InFlight { batch: Arc::clone(batch), wanted });
        }
        let deadline = Instant::now() + Duration::from_millis(self.limits.step_deadline_ms);
        let answer = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.inbox.recv_timeout(left) {
                Ok(Mail::Device(reply)) => {
                    if let Some(answer) = self.group.collect(reply) {
                        break answer;
                    }
                }
                Ok(mail) => self.take(mail),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Fatal {
                        code: FailureCode::DeviceLost,
                        message: format!(
                            "the device did not answer within {} ms and is taken for hung",
                            self.limits.step_deadline_ms
                        ),
                        suspects: suspects(),
                    });
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Fatal {
                        code: FailureCode::DeviceLost,
                        message: "the device threads have ended".into(),
                        suspects: suspects(),
                    });
                }
            }
        };
        self.in_flight = None;
        Ok(answer)
    }

    pub(super) fn emit(&mut self, id: u64, event: SequenceEvent) {
        let is_end = matches!(event, SequenceEvent::Finished { .. } | SequenceEvent::Failed { .. });
        if is_end {
            self.queue.note_leave(Instant::now());
        }
        (self.events)(id, event);
    }

    pub(super) fn fail(
        &mut self,
        sequence: &Sequence,
        code: FailureCode,
        message: &str,
        retryable: bool,
        retry_after_ms: Option<u32>,
    ) {
        self.emit(sequence.id, failed(code, message.to_owned(), retryable, retry_after_ms));
    }

    pub(super) fn fresh_key(&mut self) -> SequenceKey {
        self.next_key += 1;
        SequenceKey(self.next_key)
    }

    fn read_stats(&mut self) -> Result<(), Fatal> {
        if let GroupAnswer::Stats(stats) = self.ask(&GroupJob::Stats, &[])? {
            self.totals.plugin_sequences = stats.sequences;
        }
        Ok(())
    }

    fn publish(&mut self) {
        self.totals.queued = self.queue.len() as u32;
        self.totals.running = self.running.len() as u32;
        let waiting = self.queue.iter().map(|sequence| u64::from(sequence.prompt.len())).sum::<u64>();
        let left = |running: &Running| running.sequence.prompt.len().saturating_sub(running.seat.position);
        let begun = self.running.iter().map(|running| u64::from(left(running))).sum::<u64>();
        self.totals.pending_prefill_tokens = waiting + begun;
        self.totals.state_bytes = self.ledger.used();
        self.totals.state_limit_bytes = self.ledger.limit();
        self.totals.prefix_cache_bytes = self.cache.bytes();
        self.totals.prefix_cache_entries = self.cache.len() as u32;
        self.gauge.publish(self.totals);
    }
}

/// A failure event.
pub(super) fn failed(
    code: FailureCode,
    message: String,
    retryable: bool,
    retry_after_ms: Option<u32>,
) -> SequenceEvent {
    SequenceEvent::Failed { code, message, retryable, retry_after_ms }
}

/// What a device's error means for the sequence it concerns.
pub(super) fn failure_of(error: &DeviceError) -> SequenceEvent {
    let retryable = matches!(error.code(), FailureCode::OutOfMemory | FailureCode::DeviceLost);
    failed(error.code(), error.to_string(), retryable, retryable.then_some(1000))
}

pub(super) fn lost_count(suspects: &[u64]) -> Fatal {
    Fatal {
        code: FailureCode::Internal,
        message: "a device answered something else than it was asked".into(),
        suspects: suspects.to_vec(),
    }
}
