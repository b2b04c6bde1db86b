//! A [`Decoder`] as the plugin SDK wants it.
//!
//! An architecture writes its mathematics as a decoder and its configuration; opening files, placing weights,
//! reporting progress, gathering a batch and handing out logits are the same for all and done here.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use candle_core::{D, Device, Tensor};
use plugin_sdk::arch::{Batch as HostBatch, BatchRow as HostRow};
use plugin_sdk::{Encoded, ImageView, Loaded, Model, Options, Phase, Source, Want, WeightFormat};

use crate::batch::{Batch, BatchRow, Cancel, Decoder, EncodedImage, ImageSpan};
use crate::comm::{self, Communicator};
use crate::device::{self, on_host};
use crate::error::{Error, Result};
use crate::kernel::pool;
use crate::placement::{Placement, Progress, Silent};
use crate::quant::Scheme;
use crate::sequences::SequenceState;
use crate::slice;
use crate::trace::Trace;
use crate::weights::{Container, Weights};

impl From<Error> for plugin_sdk::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidInput(text) => Self::InvalidInput(text),
            Error::Unsupported(text) => Self::Unsupported(text),
            Error::OutOfMemory(message) => Self::OutOfMemory { message, need_bytes: 0 },
            Error::DeviceLost(text) => Self::DeviceLost(text),
            Error::Cancelled => Self::Cancelled,
            Error::Internal(text) => Self::Internal(text),
        }
    }
}

impl From<plugin_sdk::Error> for Error {
    fn from(error: plugin_sdk::Error) -> Self {
        match error {
            plugin_sdk::Error::InvalidInput(text) => Self::InvalidInput(text),
            plugin_sdk::Error::Unsupported(text) => Self::Unsupported(text),
            plugin_sdk::Error::OutOfMemory { message, .. } => Self::OutOfMemory(message),
            plugin_sdk::Error::DeviceLost(text) => Self::DeviceLost(text),
            plugin_sdk::Error::Cancelled => Self::Cancelled,
            plugin_sdk::Error::Internal(text) => Self::Internal(text),
        }
    }
}

/// What a decoder turned out to be.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// Size of a row of logits.
    pub vocab_size: usize,
    /// Longest context the model was made for.
    pub max_context: usize,
    /// Token id that stands for an image in a prompt.
    pub image_token: Option<u32>,
    /// Whether a state can be cut back to any earlier length.
    pub fork_any_length: bool,
}

/// A decoder behind the SDK's trait.
pub struct Served<D> {
    decoder: D,
    loaded: Loaded,
    device: Device,
    comm: Arc<dyn Communicator>,
}

/// Opens a model's files and headers without loading anything, on one rank: for configuration and planning.
pub fn headers(source: &Source<'_>) -> Result<Weights> {
    open(source, Placement::cpu())
}

fn open(source: &Source<'_>, placement: Placement) -> Result<Weights> {
    let container = match source.format {
        WeightFormat::SAFETENSORS => Container::Safetensors,
        WeightFormat::GGUF => Container::Gguf,
        other => return Err(Error::Unsupported(format!("weight format {} is unknown", other.0))),
    };
    let files: Vec<PathBuf> = source.files.iter().map(PathBuf::from).collect();
    Weights::open(&files, container, placement)
}

/// The options of one architecture, of which only `known` keys may be set.
pub fn settings(options: &Options<'_>, known: &[&str]) -> Result<serde_json::Map<String, serde_json::Value>> {
    if options.options.trim().is_empty() {
        return Ok(serde_json::Map::new());
    }
    let settings: serde_json::Map<String, serde_json::Value> = serde_json::from_str(options.options)
        .map_err(|error| Error::InvalidInput(format!("the options are not a JSON object: {error}")))?;
    match settings.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) if known.is_empty() => {
            Err(Error::InvalidInput(format!("option `{key}` is unknown; this architecture has none")))
        }
        Some(key) => {
            Err(Error::InvalidInput(format!("option `{key}` is unknown; there is {}", known.join(", "))))
        }
        None => Ok(settings),
    }
}

/// Refuses options of one architecture by name: architectures served from here have none.
pub fn refuse_options(options: &Options<'_>) -> Result<()> {
    if options.options.trim().is_empty() {
        return Ok(());
    }
    let given: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(options.options).map_err(|error| {
            Error::InvalidInput(format!("the architecture's options are no JSON object: {error}"))
        })?;
    match given.keys().next() {
        Some(key) => Err(Error::Unsupported(format!("option `{key}` is unknown to this architecture"))),
        None => Ok(()),
    }
}

/// Loads one rank: places weights as the options say, lets `build` make the decoder, and insists that every
/// tensor was used whose name does not begin with one of `ignored`.
pub fn load<D: Decoder>(
    source: &Source<'_>,
    options: &Options<'_>,
    progress: &plugin_sdk::Progress<'_>,
    ignored: &[&str],
    build: impl FnOnce(&Weights) -> Result<(D, Facts)>,
) -> Result<Served<D>> {
    refuse_options(options)?;
    if options.threads > 0 {
        pool::set_threads(options.threads);
    }
    let mut placement = placement(options)?;
    let (comm, device) = (placement.comm.clone(), placement.device.clone());
    let total = headers(source)?.total_bytes() / options.world.max(1) as u64;
    let phase = if options.quantize.is_empty() { Phase::READ } else { Phase::QUANTIZE };
    let meter = Arc::new(Meter::new(phase, total));
    placement.progress = meter.clone();
    let (decoder, facts) = meter.listened_by(progress, || {
        let weights = open(source, placement)?;
        let built = build(&weights)?;
        weights.finish(ignored)?;
        Ok(built)
    })?;
    let wanted = if options.max_context == 0 { usize::MAX } else { options.max_context };
    let loaded = Loaded {
        vocab_size: facts.vocab_size,
        max_context: facts.max_context.min(wanted),
        image_token: facts.image_token,
        fork_any_length: facts.fork_any_length,
        weight_bytes: meter.memory.load(Ordering::Relaxed),
    };
    Ok(Served { decoder, loaded, device, comm })
}

fn placement(options: &Options<'_>) -> Result<Placement> {
    let (dtype, quantize) = (device::dtype(options)?, Scheme::parse(options.quantize)?);
    let device = device::open(&options.device)?;
    Ok(Placement {
        comm: comm::join(&device, options.communicator, options.rank, options.world)?,
        device,
        dtype,
        quantize,
        progress: Arc::new(Silent),
    })
}

/// Counts what was loaded and tells the host, while it listens.
struct Meter {
    phase: Phase,
    total: u64,
    done: AtomicU64,
    memory: AtomicU64,
    /// The host's progress, and the thread it was lent to.
    listener: Mutex<Option<(*const plugin_sdk::Progress<'static>, ThreadId)>>,
}

// SAFETY: the pointer is followed only on the thread it was lent to, while it is lent.
unsafe impl Send for Meter {}
// SAFETY: as above.
unsafe impl Sync for Meter {}

impl Meter {
    fn new(phase: Phase, total: u64) -> Self {
        Self { phase, total, done: AtomicU64::new(0), memory: AtomicU64::new(0), listener: Mutex::new(None) }
    }

    fn listened_by<T>(
        &self,
        progress: &plugin_sdk::Progress<'_>,
        load: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        struct Deaf<'a>(&'a Meter);
        impl Drop for Deaf<'_> {
            fn drop(&mut self) {
                *self.0.listener.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
        }
        progress.report(self.phase, 0, self.total)?;
        let lent = std::ptr::from_ref(progress).cast();
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some((lent, thread::current().id()));
        let _deaf = Deaf(self);
        let loaded = load()?;
        progress.report(self.phase, self.total, self.total)?;
        Ok(loaded)
    }
}

impl Progress for Meter {
    fn loaded(&self, file_bytes: u64, memory_bytes: u64) -> Result<()> {
        self.memory.fetch_add(memory_bytes, Ordering::Relaxed);
        let done = self.done.fetch_add(file_bytes, Ordering::Relaxed) + file_bytes;
        let listener = *self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        match listener {
            Some((progress, thread)) if thread == thread::current().id() => {
                // SAFETY: the borrow lives until `listened_by` returns on this very thread, which forgets
                // the pointer first.
                let progress = unsafe { &*progress };
                Ok(progress.report(self.phase, done.min(self.total), self.total)?)
            }
            _ => Ok(()),
        }
    }
}

impl<D> Served<D> {
    /// The decoder itself.
    pub fn decoder(&self) -> &D {
        &self.decoder
    }
}

impl<D: Decoder + 'static> Served<D> {
    fn forward(
        &self,
        rows: &mut [HostRow<'_, D::State, EncodedImage>],
        wish: &dyn Fn() -> bool,
    ) -> Result<()> {
        let tokens: Vec<u32> = rows.iter().flat_map(|row| row.tokens).copied().collect();
        let mut logits_of = Vec::new();
        let mut steps = Vec::with_capacity(rows.len());
        let mut lent = Vec::with_capacity(rows.len());
        let mut offset = 0;
        for row in rows.iter_mut() {
            let len = row.tokens.len();
            let wanted = match row.want {
                Want::LAST | Want::TOKEN => offset + len - 1..offset + len,
                Want::ALL => offset..offset + len,
                _ => 0..0,
            };
            lent.push(Lent {
                rows: wanted.len(),
                logits: &mut *row.logits,
                token: (row.want == Want::TOKEN).then_some(&mut row.token),
            });
            logits_of.extend(wanted.map(|index| index as u32));
            let images = row.images.iter().map(|span| ImageSpan {
                position: span.position,
                embeddings: span.image.embeddings.clone(),
                grid: span.image.grid,
            });
            let images = images.collect();
            steps.push(BatchRow { state: &mut *row.sequence, offset, len, position: row.position, images });
            offset += len;
        }
        let cancel = Cancel::when(wish, &self.comm);
        let mut step = Batch { tokens: &tokens, rows: steps, logits_of, cancel };
        let logits = self.decoder.forward(&mut step, &Trace::off())?;
        if step.logits_of.is_empty() {
            // Whatever went wrong on the device is to be known now, not in somebody else's step.
            device::finish(&self.device)?;
            return self.comm.check();
        }
        hand_out(&logits, lent)?;
        self.comm.check()
    }
}

/// Where a row's results go.
struct Lent<'a> {
    /// Rows of logits it wanted.
    rows: usize,
    logits: &'a mut [f32],
    /// Set when it wants the likeliest token instead of its logits.
    token: Option<&'a mut Option<u32>>,
}

/// Brings home what the rows want of `logits [rows, vocab]`: of those that want a token, only that.
fn hand_out(logits: &Tensor, lent: Vec<Lent<'_>>) -> Result<()> {
    let vocab = logits.dim(D::Minus1)?;
    if lent.iter().any(|row| row.token.is_some()) {
        return hand_out_tokens(logits, lent);
    }
    let logits = slice::contiguous(&logits.to_device(&Device::Cpu)?)?;
    slice::lend(&logits, |mut values| {
        for row in lent {
            let (mine, rest) = values.split_at(row.rows * vocab);
            values = rest;
            // Ranks other than 0 are lent nothing.
            if row.logits.len() == mine.len() {
                row.logits.copy_from_slice(mine);
            }
        }
    })
}

fn hand_out_tokens(logits: &Tensor, lent: Vec<Lent<'_>>) -> Result<()> {
    let best = logits.argmax(D::Minus1)?;
    let heights: Vec<f32> = logits.max(D::Minus1)?.to_vec1()?;
    let best: Vec<u32> = best.to_vec1()?;
    let mut first = 0;
    for row in lent {
        match row.token {
            Some(token) if heights[first].is_finite() => *token = Some(best[first]),
            Some(_) => return Err(Error::Internal("no logit is a number".into())),
            None if row.logits.is_empty() => {}
            None => {
                let mine = logits.narrow(0, first, row.rows)?.flatten_all()?.to_vec1::<f32>()?;
                if row.logits.len() == mine.len() {
                    row.logits.copy_from_slice(&mine);
                }
            }
        }
        first += row.rows;
    }
    Ok(())
}

/// Tells the other ranks when this one leaves a call early, by error or by panic.
struct Together<'a> {
    comm: &'a dyn Communicator,
    done: bool,
}

impl Together<'_> {
    /// Runs one call that all ranks make.
    fn run<T>(comm: &dyn Communicator, call: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut together = Together { comm, done: false };
        let outcome = call();
        // All ranks agree on a cancelled step and find the same fault in the same input.
        together.done =
            matches!(outcome, Ok(_) | Err(Error::Cancelled | Error::InvalidInput(_) | Error::Unsupported(_)));
        if let (false, Err(error)) = (together.done, &outcome) {
            comm.abort(&error.to_string());
            together.done = true;
        }
        outcome
    }
}

impl Drop for Together<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.comm.abort("it panicked");
        }
    }
}

impl<D: Decoder + 'static> Model for Served<D>
where
    D::State: 'static,
{
    type Sequence = D::State;
    type Image = EncodedImage;

    fn info(&self) -> Loaded {
        self.loaded
    }

    fn sequence(&mut self) -> plugin_sdk::Result<D::State> {
        Ok(self.decoder.new_state())
    }

    fn length(&self, sequence: &D::State) -> usize {
        sequence.len()
    }

    fn fork(&mut self, sequence: &D::State, length: usize) -> plugin_sdk::Result<D::State> {
        Ok(sequence.fork(length)?)
    }

    fn trim(&mut self, sequence: &mut D::State, length: usize) -> plugin_sdk::Result<()> {
        Ok(sequence.trim(length)?)
    }

    fn bytes(&self, sequence: &D::State) -> u64 {
        sequence.bytes()
    }

    fn chooses_tokens(&self) -> bool {
        !on_host(&self.device)
    }

    fn device_free_bytes(&self) -> u64 {
        device::free_bytes(&self.device)
    }

    fn step(&mut self, batch: &mut HostBatch<'_, D::State, EncodedImage>) -> plugin_sdk::Result<()> {
        let mut rows = std::mem::take(&mut batch.rows);
        let wish = || batch.check_cancelled().is_err();
        let outcome = Together::run(&*self.comm, || self.forward(&mut rows, &wish));
        batch.rows = rows;
        Ok(outcome?)
    }

    fn measure_image(&self, width: usize, height: usize) -> plugin_sdk::Result<usize> {
        Ok(self.decoder.measure_image(width, height)?)
    }

    fn encode_image(&mut self, image: ImageView<'_>) -> plugin_sdk::Result<Encoded<EncodedImage>> {
        let encoded =
            Together::run(&*self.comm, || self.decoder.encode_image(image.width, image.height, image.rgb))?;
        let tokens = encoded.embeddings.dim(0).map_err(Error::from)?;
        let bytes = (encoded.embeddings.elem_count() * encoded.embeddings.dtype().size_in_bytes()) as u64;
        Ok(Encoded { image: encoded, tokens, bytes })
    }
}
