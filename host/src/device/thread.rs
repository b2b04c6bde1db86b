//! The thread that owns one rank.
//!
//! It takes jobs in order and answers each one exactly once, whatever happens inside: a panic is caught and
//! answered as [`DeviceError::Internal`]. Sequences and images are named by keys of the engine's choosing, so
//! that ranks need not agree on ids; a state operation that fails leaves its key unnamed, and a row that uses
//! an unnamed key fails alone.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::rank::{
    DeviceError, EncodedImage, ImageSpan, ModelStats, OpenRank, Rank, Row, Step, StepOutput, Want,
};
use crate::worker::message::ImagePixels;
use crate::worker::protocol::ModelFacts;

/// Names a sequence on every rank of a model. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceKey(pub u64);

/// Names an encoded image on every rank of a model. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageKey(pub u64);

/// A change of sequence or image state that needs no answer of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateOp {
    /// A sequence with no tokens.
    New(SequenceKey),
    /// `to` holds the first `length` tokens of `from`.
    Fork {
        /// Existing sequence.
        from: SequenceKey,
        /// New sequence.
        to: SequenceKey,
        /// Tokens.
        length: u32,
    },
    /// The key names nothing from now on.
    Free(SequenceKey),
    /// The key names nothing from now on.
    FreeImage(ImageKey),
}

/// An image's place in a row's sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImagePlace {
    /// Which.
    pub image: ImageKey,
    /// Position of its first token.
    pub position: u32,
    /// Number of its tokens.
    pub tokens: u32,
}

/// One sequence's part of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRow {
    /// Which.
    pub sequence: SequenceKey,
    /// Tokens it holds before the step.
    pub position: u32,
    /// Tokens to feed.
    pub tokens: Vec<u32>,
    /// What comes back.
    pub want: Want,
    /// Images that overlap `tokens`.
    pub images: Vec<ImagePlace>,
}

/// One forward pass, shared by all ranks.
#[derive(Debug, Default)]
pub struct Batch {
    /// State operations that come before the pass, in order.
    pub before: Vec<StateOp>,
    /// Rows. None: only the state operations are carried out.
    pub rows: Vec<BatchRow>,
    /// Turns non-zero when nobody wants the step any more.
    pub cancel: Arc<AtomicU32>,
}

/// What a device thread can be asked.
#[derive(Debug)]
pub enum Job {
    /// State operations and a forward pass.
    Step {
        /// The same on all ranks.
        batch: Arc<Batch>,
        /// Memory for logits, `Some` on rank 0.
        logits: Option<Vec<f32>>,
    },
    /// Tokens an image takes.
    Measure {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// Run the vision tower and name the result.
    Encode {
        /// Its name.
        key: ImageKey,
        /// The picture.
        image: Arc<ImagePixels>,
    },
    /// What the model holds.
    Stats,
}

/// What came of a job on one rank.
#[derive(Debug)]
pub enum Answer {
    /// To [`Job::Step`].
    Stepped(Stepped),
    /// To [`Job::Measure`].
    Measured(Result<u32, DeviceError>),
    /// To [`Job::Encode`].
    Encoded(Result<EncodedImage, DeviceError>),
    /// To [`Job::Stats`].
    Stats(ModelStats),
}

/// What came of a forward pass on one rank.
#[derive(Debug)]
pub struct Stepped {
    /// The batch as a whole.
    pub outcome: Result<(), DeviceError>,
    /// Each row.
    pub rows: Vec<Result<(), DeviceError>>,
    /// Keys whose `New` or `Fork` failed; they name nothing.
    pub unnamed: Vec<(SequenceKey, DeviceError)>,
    /// The memory that was lent, filled in row order; empty on ranks other than 0.
    pub logits: Vec<f32>,
    /// Ids for [`Want::TOKEN`], in row order.
    pub tokens: Vec<u32>,
}

/// An answer on its way back.
#[derive(Debug)]
pub struct Reply {
    /// Who answers.
    pub rank: usize,
    /// To which job.
    pub ticket: u64,
    /// What.
    pub answer: Answer,
}

/// Where replies go.
pub type ReplySink = Arc<dyn Fn(Reply) + Send + Sync>;

/// The engine's hold on a device thread. Dropping it ends the thread once it is idle, which drops the model.
#[derive(Debug)]
pub struct DeviceThread {
    jobs: Option<Sender<(u64, Job)>>,
    thread: Option<JoinHandle<()>>,
}

impl DeviceThread {
    /// Starts the thread; the rank is opened on it. `opened` gets the rank and the outcome of that, once.
    pub fn start(
        name: String,
        rank: usize,
        open: OpenRank,
        opened: Sender<(usize, Result<ModelFacts, DeviceError>)>,
        sink: ReplySink,
    ) -> std::io::Result<Self> {
        let (jobs, inbox) = channel();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let model = catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|payload| Err(panicked(payload)));
            match model {
                Ok(model) => {
                    let facts = model.facts();
                    if opened.send((rank, Ok(facts))).is_ok() {
                        drop(opened);
                        Owner::new(model, facts.vocab_size as usize).run(rank, &inbox, &sink);
                    }
                }
                Err(error) => drop(opened.send((rank, Err(error)))),
            }
        })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Queues a job. An error means that the thread is gone.
    pub fn send(&self, ticket: u64, job: Job) -> Result<(), DeviceError> {
        self.jobs
            .as_ref()
            .and_then(|jobs| jobs.send((ticket, job)).ok())
            .ok_or_else(|| DeviceError::DeviceLost("the device thread has ended".into()))
    }

    /// Lets the thread run out of work, drop the model and end, and waits for that.
    pub fn close(mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn panicked(payload: Box<dyn std::any::Any + Send>) -> DeviceError {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    DeviceError::Internal(format!("the device thread panicked: {text}"))
}

/// State of a device thread.
struct Owner {
    model: Box<dyn Rank>,
    vocab: usize,
    sequences: HashMap<SequenceKey, u64>,
    images: HashMap<ImageKey, EncodedImage>,
}

impl Owner {
    fn new(model: Box<dyn Rank>, vocab: usize) -> Self {
        Self { model, vocab, sequences: HashMap::new(), images: HashMap::new() }
    }

    fn run(&mut self, rank: usize, inbox: &Receiver<(u64, Job)>, sink: &ReplySink) {
        while let Ok((ticket, job)) = inbox.recv() {
            let answer = match job {
                Job::Step { batch, logits } => Answer::Stepped(self.step(&batch, logits)),
                Job::Measure { width, height } => {
                    Answer::Measured(caught(|| self.model.image_measure(width, height)))
                }
                Job::Encode { key, image } => Answer::Encoded(self.encode(key, &image)),
                Job::Stats => Answer::Stats(self.model.stats()),
            };
            sink(Reply { rank, ticket, answer });
        }
        for (_, image) in self.images.drain() {
            self.model.image_free(image.image);
        }
        for (_, sequence) in self.sequences.drain() {
            self.model.sequence_free(sequence);
        }
    }

    fn encode(&mut self, key: ImageKey, image: &ImagePixels) -> Result<EncodedImage, DeviceError> {
        let encoded = caught(|| self.model.image_encode(image))?;
        self.images.insert(key, encoded);
        Ok(encoded)
    }

    fn apply(&mut self, op: StateOp) -> Result<(), (SequenceKey, DeviceError)> {
        match op {
            StateOp::New(key) => {
                let id = caught(|| self.model.sequence_new()).map_err(|error| (key, error))?;
                self.sequences.insert(key, id);
            }
            StateOp::Fork { from, to, length } => {
                let source = self.sequences.get(&from).copied().ok_or_else(|| (to, unnamed(from)))?;
                let id = caught(|| self.model.fork(source, length)).map_err(|error| (to, error))?;
                self.sequences.insert(to, id);
            }
            StateOp::Free(key) => {
                if let Some(id) = self.sequences.remove(&key) {
                    self.model.sequence_free(id);
                }
            }
            StateOp::FreeImage(key) => {
                if let Some(image) = self.images.remove(&key) {
                    self.model.image_free(image.image);
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, batch: &Batch, logits: Option<Vec<f32>>) -> Stepped {
        let unnamed_keys: Vec<_> = batch.before.iter().filter_map(|&op| self.apply(op).err()).collect();
        let writes = logits.is_some();
        let mut logits = logits.unwrap_or_default();
        let mut rows: Vec<Result<(), DeviceError>> = Vec::with_capacity(batch.rows.len());
        let mut flat = FlatBatch::default();
        for row in &batch.rows {
            let placed = self.place(row, &mut flat);
            rows.push(placed.map_err(|error| {
                // Why the key is unnamed says more than that it is.
                unnamed_keys
                    .iter()
                    .find(|(key, _)| *key == row.sequence)
                    .map_or(error, |(_, why)| why.clone())
            }));
        }
        let mut tokens = vec![0; if writes { flat.token_outputs as usize } else { 0 }];
        logits.resize(if writes { flat.logits_rows as usize * self.vocab } else { 0 }, 0.0);
        let mut row_results = vec![Ok(()); flat.rows.len()];
        let outcome = if flat.rows.is_empty() {
            Ok(())
        } else {
            let step =
                Step { rows: &flat.rows, tokens: &flat.tokens, images: &flat.images, cancel: &batch.cancel };
            let mut output = StepOutput { rows: &mut row_results, logits: &mut logits, tokens: &mut tokens };
            caught(|| self.model.step(&step, &mut output))
        };
        for (slot, result) in rows.iter_mut().filter(|row| row.is_ok()).zip(row_results) {
            *slot = result;
        }
        Stepped { outcome, rows, unnamed: unnamed_keys, logits, tokens }
    }

    /// Appends one row to the flat batch, or says why it cannot be there. It takes its place in the output
    /// either way, so that the engine finds the others' without knowing which failed.
    fn place(&self, row: &BatchRow, flat: &mut FlatBatch) -> Result<(), DeviceError> {
        let output = match row.want {
            Want::LAST => take(&mut flat.logits_rows, 1),
            Want::ALL => take(&mut flat.logits_rows, row.tokens.len() as u32),
            Want::TOKEN => take(&mut flat.token_outputs, 1),
            _ => 0,
        };
        let sequence = *self.sequences.get(&row.sequence).ok_or_else(|| unnamed(row.sequence))?;
        let mut images = Vec::with_capacity(row.images.len());
        for place in &row.images {
            let image = self
                .images
                .get(&place.image)
                .ok_or_else(|| DeviceError::Internal(format!("image {} is not encoded", place.image.0)))?;
            images.push(ImageSpan {
                image: image.image,
                position: place.position,
                token_count: place.tokens,
            });
        }
        flat.rows.push(Row {
            sequence,
            position: row.position,
            token_offset: flat.tokens.len() as u32,
            token_count: row.tokens.len() as u32,
            want: row.want,
            output,
            image_offset: flat.images.len() as u32,
            image_count: images.len() as u32,
            reserved: 0,
        });
        flat.tokens.extend_from_slice(&row.tokens);
        flat.images.extend(images);
        Ok(())
    }
}

/// Hands out the next `count` places.
fn take(next: &mut u32, count: u32) -> u32 {
    let first = *next;
    *next += count;
    first
}

fn unnamed(key: SequenceKey) -> DeviceError {
    DeviceError::Internal(format!("sequence {} does not exist on the device", key.0))
}

fn caught<T>(body: impl FnOnce() -> Result<T, DeviceError>) -> Result<T, DeviceError> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| Err(panicked(payload)))
}

/// A batch in the shape that crosses the ABI.
#[derive(Default)]
struct FlatBatch {
    rows: Vec<Row>,
    tokens: Vec<u32>,
    images: Vec<ImageSpan>,
    logits_rows: u32,
    token_outputs: u32,
}
