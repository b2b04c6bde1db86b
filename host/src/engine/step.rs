//! One step: compose a batch, let the devices compute it, settle what came of every row.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use super::run::{Engine, Fatal, failed, failure_of, lost_count};
use super::sampler;
use super::schedule;
use super::sequence::{Advance, Running, Seat, Sequence};
use crate::device::group::{GroupAnswer, GroupJob};
use crate::device::rank::{DeviceError, Want};
use crate::device::thread::{Batch, BatchRow, ImagePlace, SequenceKey, StateOp, Stepped};
use crate::worker::message::{FailureCode, FinishReason, SequenceEvent};

/// A sequence the device had no room for so often, though it was alone, is failed.
pub(super) const MAX_REFUSALS: u32 = 3;

/// After so many steps a ledger that was shrunk gets some of its limit back.
const RELAX_EVERY: u64 = 256;

/// What a row of the batch was for.
struct Planned {
    id: u64,
    tokens: u32,
    want: Want,
}

impl Engine {
    /// Composes and runs one step, if anyone has something to feed.
    pub(super) fn step(&mut self) -> Result<(), Fatal> {
        let planned = self.plan();
        if planned.is_empty() {
            return Ok(());
        }
        let rows = planned.iter().filter_map(|row| self.row(row)).collect();
        let Some(mut stepped) = self.step_batch(rows)? else { return Ok(()) };
        self.totals.steps += 1;
        if self.totals.steps.is_multiple_of(RELAX_EVERY) {
            self.ledger.relax(self.ledger.planned() / 32);
        }
        if let Err(error) = stepped.outcome.clone() {
            self.settle_batch_failure(&planned, &error);
        } else {
            self.settle(&planned, &mut stepped);
        }
        self.group.recycle(std::mem::take(&mut stepped.logits));
        Ok(())
    }

    /// Decides who gets how much, after everyone who decodes has the bytes to grow.
    fn plan(&mut self) -> Vec<Planned> {
        loop {
            let candidates: Vec<_> = self.running.iter().map(Running::candidate).collect();
            let tokens = schedule::plan(&candidates, &self.step_limits);
            match self.running.iter_mut().zip(&tokens).find_map(|(running, &tokens)| {
                let length = running.seat.position + tokens;
                (tokens > 0).then(|| self.ledger.grow(&mut running.seat.charge, length)).and_then(Result::err)
            }) {
                None => return self.planned(&tokens),
                Some(_) if self.make_room(None) => {}
                Some(_) => self.give_way(),
            }
        }
    }

    fn planned(&self, tokens: &[u32]) -> Vec<Planned> {
        let rows = self.running.iter().zip(tokens).filter(|(_, tokens)| **tokens > 0);
        rows.map(|(running, &tokens)| {
            let sequence = &running.sequence;
            let want = if running.seat.position + tokens < sequence.length() {
                Want::NOTHING
            } else if self.device_chooses
                && sampler::is_plain_greedy(&sequence.sampling, sequence.top_logprobs)
            {
                Want::TOKEN
            } else {
                Want::LAST
            };
            Planned { id: sequence.id, tokens, want }
        })
        .collect()
    }

    fn row(&self, planned: &Planned) -> Option<BatchRow> {
        let Running { sequence, seat } = self.running.iter().find(|r| r.sequence.id == planned.id)?;
        let (start, end) = (seat.position, seat.position + planned.tokens);
        let images = sequence.prompt.images.iter().zip(&seat.images).filter_map(|(placed, hold)| {
            let overlaps = placed.position < end && placed.position + placed.tokens > start;
            overlaps.then_some(())?;
            Some(ImagePlace { image: hold.as_ref()?.key, position: placed.position, tokens: placed.tokens })
        });
        Some(BatchRow {
            sequence: seat.key,
            position: start,
            tokens: (start..end).map(|position| sequence.token(position)).collect(),
            want: planned.want,
            images: images.collect(),
        })
    }

    /// Runs pending state operations and rows. `None` only when there were neither.
    pub(super) fn step_batch(&mut self, rows: Vec<BatchRow>) -> Result<Option<Stepped>, Fatal> {
        let before = std::mem::take(&mut self.pending);
        if before.is_empty() && rows.is_empty() {
            return Ok(None);
        }
        let keys: Vec<SequenceKey> = rows.iter().map(|row| row.sequence).collect();
        let ids: Vec<u64> =
            self.running.iter().filter(|r| keys.contains(&r.seat.key)).map(|r| r.sequence.id).collect();
        let batch = Arc::new(Batch { before, rows, cancel: Arc::new(AtomicU32::new(0)) });
        let GroupAnswer::Stepped(stepped) = self.ask(&GroupJob::Step(batch), &ids)? else {
            return Err(lost_count(&ids));
        };
        if let Err(error) = &stepped.outcome
            && error.poisons()
        {
            return Err(Fatal { code: error.code(), message: error.to_string(), suspects: ids });
        }
        // A device that is gone is gone for all, whichever call was the first to find out.
        let alone = stepped.rows.iter().filter_map(|row| row.as_ref().err());
        let mut all = alone.chain(stepped.unnamed.iter().map(|(_, error)| error));
        if let Some(error) = all.find(|error| matches!(error, DeviceError::DeviceLost(_))) {
            return Err(Fatal { code: error.code(), message: error.to_string(), suspects: ids });
        }
        self.requeue_unnamed(&stepped.unnamed);
        Ok(Some(stepped))
    }

    /// A sequence or a snapshot whose state could not be made on some rank exists on none from now on.
    fn requeue_unnamed(&mut self, unnamed: &[(SequenceKey, DeviceError)]) {
        for (key, error) in unnamed {
            self.pending.push(StateOp::Free(*key));
            if let Some(index) = self.running.iter().position(|running| running.seat.key == *key) {
                let running = self.running.remove(index);
                if matches!(error, DeviceError::OutOfMemory { .. }) {
                    self.ledger.shrink(self.ledger.used());
                    self.make_room(None);
                    self.refuse(running, error);
                } else {
                    self.emit(running.sequence.id, failure_of(error));
                }
            }
        }
    }

    fn settle(&mut self, planned: &[Planned], stepped: &mut Stepped) {
        let vocab = self.facts.vocab_size as usize;
        let mut logits = stepped.logits.chunks_exact_mut(vocab.max(1));
        let mut tokens = stepped.tokens.iter();
        let mut out_of_room = false;
        for (planned, row) in planned.iter().zip(&stepped.rows) {
            let output = match planned.want {
                Want::LAST => logits.next().map(Output::Logits),
                Want::TOKEN => tokens.next().map(|&token| Output::Token(token)),
                _ => None,
            };
            match row {
                // Back in the queue already, because it had no state to begin with.
                _ if !self.running.iter().any(|running| running.sequence.id == planned.id) => {}
                Ok(()) => self.settle_row(planned, output),
                Err(DeviceError::OutOfMemory { .. }) => {
                    out_of_room = true;
                    self.count_refusal(planned.id, row.as_ref().err());
                }
                Err(error) => {
                    let event = failure_of(error);
                    self.fail_running(planned.id, event);
                }
            }
        }
        if out_of_room {
            // The device is smaller than planned. Believe it, and let someone give way.
            self.ledger.shrink(self.ledger.used());
            if !self.make_room(None) && self.running.len() > 1 {
                self.give_way();
            }
        }
    }

    fn settle_row(&mut self, planned: &Planned, output: Option<Output<'_>>) {
        let Some(index) = self.running.iter().position(|running| running.sequence.id == planned.id) else {
            return;
        };
        let running = &mut self.running[index];
        running.seat.position += planned.tokens;
        running.sequence.refusals = 0;
        if running.seat.position <= running.sequence.prompt.len() {
            self.totals.prefill_tokens += u64::from(planned.tokens);
        }
        if running.at_cut()
            || (self.facts.fork_any_length && output.is_some() && !running.sequence.has_output())
        {
            self.freeze(index);
        }
        let Some(output) = output else { return };
        let running = &mut self.running[index];
        if running.sequence.cancelled {
            return; // dropped at the next turn
        }
        let sequence = &mut running.sequence;
        let choice = match output {
            Output::Token(token) => Ok(sampler::Choice { token, logprob: None }),
            Output::Logits(logits) => sampler::choose(
                logits,
                &sequence.sampling,
                &sequence.history,
                running.seat.position,
                sequence.top_logprobs,
            ),
        };
        let choice = match choice {
            Ok(choice) => choice,
            Err(error) => {
                let event = failed(FailureCode::Internal, error.to_string(), false, None);
                return self.fail_running(planned.id, event);
            }
        };
        let advance = sequence.advance(choice.token, self.facts.max_context);
        if advance != Advance::Stop {
            self.totals.decode_tokens += 1;
            self.emit(planned.id, SequenceEvent::Token { id: choice.token, logprob: choice.logprob });
        }
        if advance != Advance::Emit {
            let reason = if advance == Advance::Stop { FinishReason::Stop } else { FinishReason::Length };
            let running = self.running.remove(index);
            self.emit(running.sequence.id, running.sequence.finished(reason));
            self.leave(running);
        }
    }

    /// Keeps a copy of a running sequence's state for prompts that begin alike, if there is room for it.
    fn freeze(&mut self, index: usize) {
        let running = &self.running[index];
        let (position, source) = (running.seat.position, running.seat.key);
        if !self.cache.wants(&running.sequence.symbols[..position as usize]) {
            return;
        }
        let charge = loop {
            let parent = Some((&self.running[index].seat.charge, position));
            match self.ledger.charge_sequence(parent, position) {
                Ok(charge) => break charge,
                Err(_) if self.make_room(None) => {}
                Err(_) => return,
            }
        };
        let key = self.fresh_key();
        self.pending.push(StateOp::Fork { from: source, to: key, length: position });
        let superseded =
            self.cache.insert(&self.running[index].sequence.symbols[..position as usize], key, charge);
        self.pending.extend(superseded.into_iter().map(StateOp::Free));
    }

    /// A sequence has ended; its state is kept for the next turn of the conversation where that is possible.
    pub(super) fn leave(&mut self, running: Running) {
        let Running { sequence, seat: Seat { key, charge, position, .. } } = running;
        if self.facts.fork_any_length && self.cache.wants(&sequence.symbols[..position as usize]) {
            let superseded = self.cache.insert(&sequence.symbols[..position as usize], key, charge);
            self.pending.extend(superseded.into_iter().map(StateOp::Free));
        } else {
            self.pending.push(StateOp::Free(key));
        }
    }

    /// Ends a running sequence whose state is not to be trusted.
    fn fail_running(&mut self, id: u64, event: SequenceEvent) {
        if let Some(index) = self.running.iter().position(|running| running.sequence.id == id) {
            let running = self.running.remove(index);
            self.pending.push(StateOp::Free(running.seat.key));
            self.emit(id, event);
        }
    }

    /// The youngest running sequence goes back to the queue with what it has said so far.
    fn give_way(&mut self) {
        if let Some(running) = self.running.pop() {
            self.totals.preemptions += 1;
            self.pending.push(StateOp::Free(running.seat.key));
            self.queue.push_front(running.sequence);
        }
    }

    /// Notes that the device had no room for a row; too often though it was alone, and the sequence is failed.
    fn count_refusal(&mut self, id: u64, error: Option<&DeviceError>) {
        if self.running.len() > 1 || !self.cache.is_empty() {
            return;
        }
        let Some(running) = self.running.iter_mut().find(|running| running.sequence.id == id) else { return };
        running.sequence.refusals += 1;
        let give_up = running.sequence.refusals >= MAX_REFUSALS;
        if give_up && let Some(error) = error {
            let event = failure_of(error);
            self.fail_running(id, event);
        }
    }

    /// Puts a sequence whose state is gone back to the queue, or fails it if that happened too often.
    fn refuse(&mut self, running: Running, error: &DeviceError) {
        let mut sequence: Sequence = running.sequence;
        sequence.refusals += u32::from(self.running.is_empty() && self.cache.is_empty());
        if sequence.refusals >= MAX_REFUSALS {
            self.emit(sequence.id, failure_of(error));
        } else {
            self.totals.preemptions += 1;
            self.queue.push_front(sequence);
        }
    }

    /// The whole batch failed without harm to the model: it was cancelled, refused or did not fit.
    fn settle_batch_failure(&mut self, planned: &[Planned], error: &DeviceError) {
        let out_of_memory = matches!(error, DeviceError::OutOfMemory { .. });
        if out_of_memory {
            self.ledger.shrink(self.ledger.used() / 10 * 9);
            self.make_room(None);
        }
        for planned in planned.iter().rev() {
            let Some(index) = self.running.iter().position(|r| r.sequence.id == planned.id) else { continue };
            let running = self.running.remove(index);
            self.pending.push(StateOp::Free(running.seat.key));
            match error {
                DeviceError::OutOfMemory { .. } => self.refuse(running, error),
                DeviceError::Cancelled => self.queue.push_front(running.sequence),
                _ => self.emit(running.sequence.id, failure_of(error)),
            }
        }
    }
}

/// What a row yielded.
enum Output<'a> {
    Logits(&'a mut [f32]),
    Token(u32),
}
