//! A rank for tests: no weights, no arithmetic, every fault on demand.
//!
//! Its next token is a function of every token before it, so a sequence that was chunked, forked, cached,
//! preempted or replayed wrongly says something else.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::rank::{DeviceError, EncodedImage, ModelStats, OpenRank, Rank, Step, StepOutput, Want};
use crate::worker::message::ImagePixels;
use crate::worker::protocol::ModelFacts;

/// Size of the double's vocabulary.
pub const VOCAB: u32 = 97;
/// Token that stands for an image.
pub const IMAGE: u32 = 96;

/// What may be broken, shared by all ranks of a test.
#[derive(Clone, Default)]
pub struct Faults(Arc<FaultState>);

#[derive(Default)]
struct FaultState {
    steps: AtomicU64,
    models: AtomicI64,
    sequences: AtomicI64,
    images: AtomicI64,
    encodes: AtomicU64,
    tokens: AtomicU64,
    /// Tokens of all live sequences may not exceed this; 0 is no limit.
    token_capacity: AtomicU64,
    panic_on_token: AtomicI64,
    nan_on_token: AtomicI64,
    reject_token: AtomicI64,
    hang: AtomicBool,
    slow_images: AtomicBool,
    recurrent: AtomicBool,
    fail_new_on_rank: AtomicI64,
    fail_load_on_rank: AtomicI64,
    lose_on_new: AtomicBool,
    lose_on_token: AtomicI64,
    lose_on_measure: AtomicBool,
    batches: Mutex<Vec<Vec<usize>>>,
}

impl Faults {
    pub fn steps(&self) -> u64 {
        self.0.steps.load(Ordering::SeqCst)
    }
    /// Tokens fed so far.
    pub fn tokens_fed(&self) -> u64 {
        self.0.tokens.load(Ordering::SeqCst)
    }
    pub fn live_models(&self) -> i64 {
        self.0.models.load(Ordering::SeqCst)
    }
    pub fn live_sequences(&self) -> i64 {
        self.0.sequences.load(Ordering::SeqCst)
    }
    pub fn live_images(&self) -> i64 {
        self.0.images.load(Ordering::SeqCst)
    }
    pub fn images_encoded(&self) -> u64 {
        self.0.encodes.load(Ordering::SeqCst)
    }
    /// Row lengths of every batch so far.
    pub fn batches(&self) -> Vec<Vec<usize>> {
        self.0.batches.lock().unwrap().clone()
    }
    pub fn fail_new_on_rank(&self, rank: i64) {
        self.0.fail_new_on_rank.store(rank + 1, Ordering::SeqCst);
    }
    pub fn fail_load_on_rank(&self, rank: i64) {
        self.0.fail_load_on_rank.store(rank + 1, Ordering::SeqCst);
    }
    pub fn panic_on_token(&self, token: u32) {
        self.0.panic_on_token.store(i64::from(token) + 1, Ordering::SeqCst);
    }
    pub fn nan_on_token(&self, token: u32) {
        self.0.nan_on_token.store(i64::from(token) + 1, Ordering::SeqCst);
    }
    pub fn reject_token(&self, token: u32) {
        self.0.reject_token.store(i64::from(token) + 1, Ordering::SeqCst);
    }
    /// The device is found to be gone when a sequence is made.
    pub fn lose_on_new(&self) {
        self.0.lose_on_new.store(true, Ordering::SeqCst);
    }
    /// The device is found to be gone in one row alone.
    pub fn lose_on_token(&self, token: u32) {
        self.0.lose_on_token.store(i64::from(token) + 1, Ordering::SeqCst);
    }
    /// The device is found to be gone when an image is measured.
    pub fn lose_on_measure(&self) {
        self.0.lose_on_measure.store(true, Ordering::SeqCst);
    }
    pub fn hang(&self) {
        self.0.hang.store(true, Ordering::SeqCst);
    }
    pub fn slow_images(&self) {
        self.0.slow_images.store(true, Ordering::SeqCst);
    }
    pub fn recurrent(&self) {
        self.0.recurrent.store(true, Ordering::SeqCst);
    }
    pub fn token_capacity(&self, tokens: u64) {
        self.0.token_capacity.store(tokens, Ordering::SeqCst);
    }
}

/// The token the double says after `history`, where an image's tokens count as its index bytes.
pub fn next_token(history: &[u64]) -> u32 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for &token in history {
        hash = (hash ^ token).wrapping_mul(0x0100_0000_01b3);
        hash ^= hash >> 29;
    }
    // Never the image token, and never token 0, which tests use as the end of a sequence.
    (hash % u64::from(VOCAB - 2)) as u32 + 1
}

/// See the module.
pub struct Double {
    faults: Faults,
    rank: usize,
    next: u64,
    sequences: HashMap<u64, Vec<u64>>,
    images: HashMap<u64, u64>,
}

impl Double {
    pub fn open(faults: Faults, rank: usize) -> OpenRank {
        Box::new(move || {
            if faults.0.fail_load_on_rank.load(Ordering::SeqCst) == rank as i64 + 1 {
                return Err(DeviceError::OutOfMemory {
                    message: "no room for weights".into(),
                    need_bytes: 10,
                });
            }
            faults.0.models.fetch_add(1, Ordering::SeqCst);
            // Ranks number differently on purpose: nothing may rely on equal ids.
            let next = 1000 * (rank as u64 + 1);
            Ok(Box::new(Self { faults, rank, next, sequences: HashMap::new(), images: HashMap::new() })
                as Box<dyn Rank>)
        })
    }

    fn insert(&mut self, state: Vec<u64>) -> u64 {
        self.next += 1;
        self.faults.0.sequences.fetch_add(1, Ordering::SeqCst);
        self.sequences.insert(self.next, state);
        self.next
    }

    fn is(&self, fault: &AtomicI64, tokens: &[u32]) -> bool {
        let wanted = fault.load(Ordering::SeqCst) - 1;
        wanted >= 0 && tokens.iter().any(|&token| i64::from(token) == wanted)
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        self.faults.0.models.fetch_sub(1, Ordering::SeqCst);
        self.faults.0.sequences.fetch_sub(self.sequences.len() as i64, Ordering::SeqCst);
        self.faults.0.images.fetch_sub(self.images.len() as i64, Ordering::SeqCst);
    }
}

impl Rank for Double {
    fn facts(&self) -> ModelFacts {
        ModelFacts {
            vocab_size: VOCAB,
            max_context: 4096,
            image_token: Some(IMAGE),
            fork_any_length: !self.faults.0.recurrent.load(Ordering::SeqCst),
            max_row_tokens: 0,
            weight_bytes: 100,
            resident_bytes: 0,
            world: 1,
        }
    }

    fn sequence_new(&mut self) -> Result<u64, DeviceError> {
        if self.faults.0.fail_new_on_rank.load(Ordering::SeqCst) == self.rank as i64 + 1 {
            return Err(DeviceError::OutOfMemory { message: "no room".into(), need_bytes: 0 });
        }
        if self.faults.0.lose_on_new.load(Ordering::SeqCst) {
            return Err(DeviceError::DeviceLost("the card is gone".into()));
        }
        Ok(self.insert(Vec::new()))
    }

    fn sequence_free(&mut self, sequence: u64) {
        if self.sequences.remove(&sequence).is_some() {
            self.faults.0.sequences.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn fork(&mut self, sequence: u64, length: u32) -> Result<u64, DeviceError> {
        let state = self.sequences.get(&sequence).expect("the device thread knows its sequences");
        assert!(length as usize <= state.len());
        if self.faults.0.recurrent.load(Ordering::SeqCst) {
            assert_eq!(length as usize, state.len(), "recurrent state forks only where it stands");
        }
        let forked = state[..length as usize].to_vec();
        Ok(self.insert(forked))
    }

    fn trim(&mut self, sequence: u64, length: u32) -> Result<(), DeviceError> {
        if let Some(state) = self.sequences.get_mut(&sequence) {
            state.truncate(length as usize);
        }
        Ok(())
    }

    fn step(&mut self, step: &Step<'_>, output: &mut StepOutput<'_>) -> Result<(), DeviceError> {
        let state = Arc::clone(&self.faults.0);
        state.steps.fetch_add(1, Ordering::SeqCst);
        while state.hang.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.is(&state.panic_on_token, step.tokens) {
            panic!("told to panic");
        }
        if self.rank == 0 {
            let lengths = step.rows.iter().map(|row| row.token_count as usize).collect();
            state.batches.lock().unwrap().push(lengths);
        }
        let capacity = state.token_capacity.load(Ordering::SeqCst);
        for (row, result) in step.rows.iter().zip(output.rows.iter_mut()) {
            let tokens = &step.tokens[row.token_offset as usize..][..row.token_count as usize];
            let held: usize = self.sequences.values().map(Vec::len).sum();
            if capacity > 0 && held + tokens.len() > capacity as usize {
                *result =
                    Err(DeviceError::OutOfMemory { message: "no room for a row".into(), need_bytes: 0 });
                continue;
            }
            if self.is(&state.lose_on_token, tokens) {
                *result = Err(DeviceError::DeviceLost("the card is gone".into()));
                continue;
            }
            if self.is(&state.reject_token, tokens) {
                *result = Err(DeviceError::InvalidInput("this token is not welcome".into()));
                continue;
            }
            let spans = &step.images[row.image_offset as usize..][..row.image_count as usize];
            let history =
                self.sequences.get_mut(&row.sequence).expect("the device thread knows its sequences");
            assert_eq!(history.len(), row.position as usize, "the engine lost count");
            for (&token, position) in tokens.iter().zip(row.position..) {
                let image =
                    spans.iter().find(|s| (s.position..s.position + s.token_count).contains(&position));
                let symbol = match image {
                    Some(span) => {
                        assert_eq!(token, IMAGE);
                        self.images[&span.image] + u64::from(position - span.position)
                    }
                    None => {
                        assert_ne!(token, IMAGE, "an image token without its image");
                        u64::from(token)
                    }
                };
                history.push(symbol);
            }
            if self.rank == 0 {
                state.tokens.fetch_add(tokens.len() as u64, Ordering::SeqCst);
            }
            if output.logits.is_empty() || row.want != Want::LAST {
                continue;
            }
            let logits = &mut output.logits[(row.output * VOCAB) as usize..][..VOCAB as usize];
            let history = &self.sequences[&row.sequence];
            for (token, logit) in logits.iter_mut().enumerate() {
                *logit = -((token as f32) * 0.01);
            }
            logits[next_token(history) as usize] = 4.0;
            if self.is(&state.nan_on_token, tokens) {
                logits[3] = f32::NAN;
            }
        }
        Ok(())
    }

    fn image_measure(&mut self, width: u32, height: u32) -> Result<u32, DeviceError> {
        if self.faults.0.lose_on_measure.load(Ordering::SeqCst) {
            return Err(DeviceError::DeviceLost("the card is gone".into()));
        }
        if width > 100 {
            return Err(DeviceError::InvalidInput("an image may be 100 pixels wide".into()));
        }
        Ok(width * height)
    }

    fn image_encode(&mut self, image: &ImagePixels) -> Result<EncodedImage, DeviceError> {
        if self.faults.0.slow_images.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(30));
        }
        self.next += 1;
        self.faults.0.images.fetch_add(1, Ordering::SeqCst);
        if self.rank == 0 {
            self.faults.0.encodes.fetch_add(1, Ordering::SeqCst);
        }
        self.images.insert(self.next, 1000 * u64::from(image.sha256[0]));
        Ok(EncodedImage { image: self.next, token_count: image.width * image.height, reserved: 0, bytes: 10 })
    }

    fn image_free(&mut self, image: u64) {
        if self.images.remove(&image).is_some() {
            self.faults.0.images.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn stats(&mut self) -> ModelStats {
        ModelStats {
            sequences: self.sequences.len() as u64,
            state_bytes: self.sequences.values().map(|state| state.len() as u64).sum(),
            images: self.images.len() as u64,
            image_bytes: 10 * self.images.len() as u64,
            device_free_bytes: 0,
        }
    }
}
