//! Giving seats.
//!
//! Bytes come before the seat: a sequence gets one only when all the state its prompt needs is charged, so
//! that no two half-admitted sequences ever wait for each other. What does not fit waits at the head of the
//! queue until others leave; cached prefixes and unused images give way first. A sequence that would not fit
//! an empty engine was refused before it got here.

use std::sync::Arc;

use super::ledger::StateCharge;
use super::prefix_cache::{GRAIN, Hit, Lookup};
use super::run::{Engine, Fatal, failure_of, lost_count};
use super::sequence::{Running, Seat, Sequence};
use super::step::MAX_REFUSALS;
use crate::device::group::{GroupAnswer, GroupJob};
use crate::device::rank::DeviceError;
use crate::device::thread::{ImageKey, SequenceKey, StateOp};
use crate::engine::images::ImageHold;
use crate::worker::message::{FailureCode, ImagePixels};

/// A prompt waits for one that is being prefilled if they share this many tokens more than the cache has.
const WORTH_WAITING: u32 = 4 * GRAIN;

impl Engine {
    /// Admits as many waiting sequences as there are seats and bytes for, in order.
    pub(super) fn admit(&mut self) -> Result<(), Fatal> {
        while self.running.len() < self.limits.max_running as usize {
            let Some(head) = self.queue.front() else { break };
            if self.is_being_computed(head) {
                break;
            }
            let Some((lookup, charge)) = self.reserve() else {
                if self.running.is_empty() && self.give_up_head() {
                    continue;
                }
                break;
            };
            let Some(sequence) = self.queue.pop() else { break };
            self.seat(sequence, lookup, charge)?;
        }
        Ok(())
    }

    /// Whether most of the prompt is just being computed for another sequence, so that waiting is cheaper.
    fn is_being_computed(&self, head: &Sequence) -> bool {
        if !self.cache.is_enabled() {
            return false;
        }
        let mut cached = None;
        self.running.iter().filter(|other| other.seat.position < other.sequence.prompt.len()).any(|other| {
            let common = head.symbols.iter().zip(&other.sequence.symbols).take_while(|(a, b)| a == b).count();
            let reachable = if self.facts.fork_any_length {
                common as u32
            } else {
                // Only what will be frozen on the way helps.
                other.sequence.cuts.iter().rev().copied().find(|&cut| cut <= common as u32).unwrap_or(0)
            };
            reachable >= WORTH_WAITING
                && reachable >= *cached.get_or_insert_with(|| self.cache.peek(&head.symbols)) + WORTH_WAITING
        })
    }

    /// Charges the state the head of the queue needs, making room if it must. `None`: not now.
    fn reserve(&mut self) -> Option<(Lookup, StateCharge)> {
        loop {
            let head = self.queue.front()?;
            let tokens = head.length() + 1;
            let lookup = self.cache.find(&head.symbols);
            let parent = lookup.hit.and_then(|hit| Some((self.cache.charge(&hit)?, hit.length)));
            // Room for everyone who runs to grow by a block; otherwise the next step takes the seat back.
            let margin = self.running.len() as u64
                * u64::from(super::ledger::BLOCK_TOKENS)
                * self.limits.kv_bytes_per_token;
            let shared = parent.as_ref().map_or(0, |(_, length)| *length);
            let fits = self.ledger.used() + self.ledger.need(tokens, shared) + margin <= self.ledger.limit();
            if fits && let Ok(charge) = self.ledger.charge_sequence(parent, tokens) {
                return Some((lookup, charge));
            }
            let keep = lookup.hit.map(|hit| hit.key);
            if !(self.make_room(keep) || self.running.is_empty() && self.make_room(None)) {
                return None;
            }
        }
    }

    /// Frees a cached prefix other than `keep`, or an image nobody uses. Whether there was one.
    pub(super) fn make_room(&mut self, keep: Option<SequenceKey>) -> bool {
        if let Some(key) = self.cache.evict_one(keep) {
            self.pending.push(StateOp::Free(key));
            return true;
        }
        if let Some(key) = self.images.evict_one() {
            self.pending.push(StateOp::FreeImage(key));
            return true;
        }
        false
    }

    /// The head does not fit though nothing else is there, because the device proved smaller than planned.
    /// It is tried all the same, a few times, because the device may have room again.
    fn give_up_head(&mut self) -> bool {
        let Some(mut sequence) = self.queue.pop() else { return false };
        sequence.refusals += 1;
        if sequence.refusals < MAX_REFUSALS && self.ledger.limit() < self.ledger.planned() {
            self.ledger.relax(u64::MAX);
            self.queue.push_front(sequence);
            return true;
        }
        let message = format!(
            "{} tokens need {} bytes of state, and the device has room for {}",
            sequence.length(),
            self.ledger.need(sequence.length() + 1, 0),
            self.ledger.limit()
        );
        self.fail(&sequence, FailureCode::OutOfMemory, &message, true, Some(5000));
        true
    }

    fn seat(&mut self, mut sequence: Sequence, lookup: Lookup, charge: StateCharge) -> Result<(), Fatal> {
        let position = lookup.hit.map_or(0, |hit| hit.length);
        // Named before the images are encoded, so that making room for those cannot take the prefix away.
        let key = self.open_state(lookup.hit);
        self.take_in_hand(sequence.id);
        let held = self.hold_images(&sequence, position)?;
        sequence.cancelled |= self.let_go(); // it gets its seat, and loses it at the next turn
        let images = match held {
            Ok(images) => images,
            Err(error) => {
                self.pending.push(StateOp::Free(key));
                self.emit(sequence.id, failure_of(&error));
                return Ok(());
            }
        };
        if let Some(started) = sequence.admit(position, lookup.miss) {
            self.totals.cached_tokens += u64::from(position);
            self.emit(sequence.id, started);
        }
        self.running.push(Running { sequence, seat: Seat { key, charge, position, images } });
        Ok(())
    }

    fn open_state(&mut self, hit: Option<Hit>) -> SequenceKey {
        let key = self.fresh_key();
        self.pending.push(match hit {
            Some(hit) => StateOp::Fork { from: hit.key, to: key, length: hit.length },
            None => StateOp::New(key),
        });
        key
    }

    /// Encodes the images of a prompt that reach beyond its cached prefix.
    #[allow(clippy::type_complexity)]
    fn hold_images(
        &mut self,
        sequence: &Sequence,
        cached: u32,
    ) -> Result<Result<Vec<Option<ImageHold>>, DeviceError>, Fatal> {
        let mut holds = Vec::with_capacity(sequence.prompt.images.len());
        for placed in &sequence.prompt.images {
            if placed.position + placed.tokens <= cached {
                holds.push(None);
                continue;
            }
            let hold = match self.images.find(&placed.pixels.sha256) {
                Some(hold) => Ok(hold),
                None => self.encode(sequence.id, &placed.pixels)?,
            };
            match hold {
                Ok(hold) => holds.push(Some(hold)),
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(holds))
    }

    fn encode(
        &mut self,
        id: u64,
        pixels: &Arc<ImagePixels>,
    ) -> Result<Result<ImageHold, DeviceError>, Fatal> {
        // Frees that are pending may be what the encoder needs.
        if !self.pending.is_empty() {
            self.step_batch(Vec::new())?;
        }
        let key = self.images.fresh_key();
        let encoded = loop {
            match self.ask(&GroupJob::Encode(key, Arc::clone(pixels)), &[id])? {
                GroupAnswer::Encoded(Err(DeviceError::OutOfMemory { .. })) if self.make_room(None) => {
                    self.step_batch(Vec::new())?;
                }
                GroupAnswer::Encoded(encoded) => break encoded,
                _ => return Err(lost_count(&[id])),
            }
        };
        match encoded {
            Ok(encoded) => Ok(self.keep_image(key, pixels, encoded.bytes)),
            Err(error) if error.poisons() => {
                Err(Fatal { code: error.code(), message: error.to_string(), suspects: vec![id] })
            }
            Err(error) => {
                self.pending.push(StateOp::FreeImage(key)); // another rank may have it
                Ok(Err(error))
            }
        }
    }

    fn keep_image(
        &mut self,
        key: ImageKey,
        pixels: &ImagePixels,
        bytes: u64,
    ) -> Result<ImageHold, DeviceError> {
        loop {
            match self.ledger.charge(bytes) {
                Ok(charge) => return Ok(self.images.insert(pixels.sha256, key, charge)),
                Err(_) if self.make_room(None) => {}
                Err(missing) => {
                    self.pending.push(StateOp::FreeImage(key));
                    return Err(DeviceError::OutOfMemory {
                        message: format!("an image's embedding takes {bytes} bytes, {} too many", missing.0),
                        need_bytes: missing.0,
                    });
                }
            }
        }
    }
}
