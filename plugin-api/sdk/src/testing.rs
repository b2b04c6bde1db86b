//! Doubles for an author's tests: drive a model, ask a strategy, and read what was logged, without a host.
//!
//! ```
//! use plugin_sdk::testing;
//! use plugin_sdk::{Candidate, Explain, Result, RouteChoice, RouteRequest, Router};
//!
//! struct First;
//!
//! impl Router for First {
//!     fn choose(&self, _: &RouteRequest<'_>, _: &[Candidate], explain: &mut Explain<'_>) -> Result<RouteChoice> {
//!         explain.because(0, || "it is the first".into());
//!         Ok(RouteChoice { index: 0 })
//!     }
//! }
//!
//! let (choice, reasons) = testing::route(&First, &testing::fleet(3)).unwrap();
//! assert_eq!((choice.index, reasons.as_str()), (0, "0\tit is the first\n"));
//! ```
//!
//! What a real host would notice is left to the conformance kit: `neuron plugin check`.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use plugin_abi::arch::{DeviceInfo, DeviceKind, WeightFormat};
use plugin_abi::strategy::{Candidate, Purpose, Residency, Resident};
use tracing_core::field::{Field, Visit};
use tracing_core::span::{Attributes, Id, Record};
use tracing_core::{Dispatch, Event, Metadata, Subscriber};

use crate::arch::{Batch, BatchRow, Model, Options, Source, Want};
use crate::error::{Error, Result};
use crate::strategy::{EvictChoice, EvictRequest, Evictor, Explain, RouteChoice, RouteRequest, Router};

/// A model without weight files, described by the text of a `config.json`.
pub fn source(config: &str) -> Source<'_> {
    Source { format: WeightFormat::NONE, config, preprocessor: "", files: &[] }
}

/// One rank on the CPU with small limits: 1024 tokens of context, 8 sequences, 256 tokens a step.
pub fn options() -> Options<'static> {
    const DEVICE: DeviceInfo = DeviceInfo {
        kind: DeviceKind::CPU,
        ordinal: 0,
        compute_capability: 0,
        driver: 0,
        cpu_level: 0,
        pci_address: 0,
        total_bytes: 1 << 34,
        free_bytes: 1 << 33,
    };
    Options {
        device: DEVICE,
        dtype: "auto",
        quantize: "",
        rank: 0,
        world: 1,
        communicator: &[0; 128],
        max_context: 1024,
        max_sequences: 8,
        max_step_tokens: 256,
        threads: 1,
        state_bytes: 0,
        options: "",
    }
}

/// Feeds `tokens` to one sequence of a model and returns the logits of the last, `[vocab]`.
///
/// # Errors
/// The step's, or the row's.
pub fn feed<M: Model>(model: &mut M, sequence: &mut M::Sequence, tokens: &[u32]) -> Result<Vec<f32>> {
    let logits = feed_all(model, vec![(sequence, tokens)])?;
    logits.into_iter().next().unwrap_or_else(|| Err(Error::Internal("the step had no row".into())))
}

/// Feeds several sequences in one step; each row's logits of its last token, or why it failed.
///
/// # Errors
/// The step's.
pub fn feed_all<'a, M: Model>(
    model: &mut M,
    rows: Vec<(&'a mut M::Sequence, &'a [u32])>,
) -> Result<Vec<Result<Vec<f32>>>> {
    let vocab = model.info().vocab_size;
    let mut memory = vec![0.0; rows.len() * vocab];
    let lent = memory.chunks_exact_mut(vocab.max(1));
    let rows = rows
        .into_iter()
        .zip(lent)
        .map(|((sequence, tokens), logits)| {
            let position = model.length(sequence);
            BatchRow::new(sequence, position, tokens, Want::LAST, logits)
        })
        .collect();
    let mut batch = Batch::new(rows);
    model.step(&mut batch)?;
    let results = batch.rows.iter().map(|row| match row.error() {
        Some(error) => Err(error.clone()),
        None => Ok(row.logits.to_vec()),
    });
    Ok(results.collect())
}

/// Greedy continuation of a prompt in a sequence of its own.
///
/// # Errors
/// The model's.
pub fn generate<M: Model>(model: &mut M, prompt: &[u32], count: usize) -> Result<Vec<u32>> {
    let mut sequence = model.sequence()?;
    let mut logits = feed(model, &mut sequence, prompt)?;
    let mut generated = Vec::with_capacity(count);
    while generated.len() < count {
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        let token = best.map_or(0, |(id, _)| id as u32);
        generated.push(token);
        logits = feed(model, &mut sequence, &[token])?;
    }
    Ok(generated)
}

/// A node that is there and idle, and of which nothing else is known.
pub fn candidate(node: u64) -> Candidate {
    Candidate {
        node,
        residency: Residency::RESIDENT,
        slots: 8,
        inflight: 0,
        running: 0,
        queued: 0,
        cached_tokens: 0,
        pending_prefill_tokens: 0,
        active_tokens: 0,
        prefill_tokens_per_s: 0.0,
        decode_tokens_per_s: 0.0,
        kv_used: 0.0,
        first_token_s: 0.0,
        inter_token_s: 0.0,
        weight: 1.0,
        metrics_age_ms: 0,
        load_s: 0.0,
        eviction_regret_s: 0.0,
        evictions: 0,
        priority_violation: 0,
        devices: 1,
        free_bytes: 0,
        total_bytes: 80 << 30,
        need_bytes: 0,
        reserved: [0; 4],
    }
}

/// A small fleet: each node has less work and less free memory than the one before.
pub fn fleet(nodes: u64) -> Vec<Candidate> {
    let node = |place: u64| Candidate {
        running: (nodes - place) as u32,
        active_tokens: 1000 * (nodes - place),
        pending_prefill_tokens: 500 * (nodes - place),
        prefill_tokens_per_s: 2000.0,
        decode_tokens_per_s: 50.0,
        free_bytes: (1 + nodes - place) << 30,
        ..candidate(place + 1)
    };
    (0..nodes).map(node).collect()
}

/// A request of ordinary size.
pub fn request() -> RouteRequest<'static> {
    RouteRequest {
        model: 1,
        session: 0,
        ordinal: 0,
        seed: 0,
        now_ms: 0,
        prompt_tokens: 512,
        max_tokens: 256,
        expected_tokens: 128.0,
        priority: 0,
        prefix_blocks: &[],
        block_tokens: 16,
    }
}

/// Asks a router about an ordinary request: its choice, and its reasons.
///
/// # Errors
/// The router's.
pub fn route(router: &dyn Router, candidates: &[Candidate]) -> Result<(RouteChoice, String)> {
    let (mut scores, mut reasons) = (vec![f64::NAN; candidates.len()], String::new());
    let choice = router.choose(&request(), candidates, &mut Explain::new(&mut scores, Some(&mut reasons)))?;
    Ok((choice, reasons))
}

/// A model of this many GiB that may go: loaded an hour ago, idle since a minute.
pub fn resident(model: u64, gib: u64) -> Resident {
    Resident {
        model,
        bytes: gib << 30,
        loaded_ms: 0,
        last_used_ms: 3_540_000,
        uses: 10,
        inflight: 0,
        class: 0,
        priority: 0,
        eligible: 1,
        rate_per_s: 0.1,
        reload_s: 10.0,
        warm_s: 0.0,
        reserved32: 0,
        idle_limit_ms: 0,
        reserved: [0; 4],
    }
}

/// Asks an evictor for this many GiB: its choice, and its reasons.
///
/// # Errors
/// The evictor's.
pub fn evict(evictor: &dyn Evictor, residents: &[Resident], gib: u64) -> Result<(EvictChoice, String)> {
    let request = EvictRequest {
        purpose: Purpose::NEED,
        class: 0,
        need_bytes: gib << 30,
        now_ms: 3_600_000,
        priority: 0,
        seed: 0,
        memo: 0.0,
    };
    let (mut scores, mut reasons) = (vec![f64::NAN; residents.len()], String::new());
    let choice = evictor.choose(&request, residents, &mut Explain::new(&mut scores, Some(&mut reasons)))?;
    Ok((choice, reasons))
}

/// What `body` logs through `tracing` on this thread, a line each: `LEVEL target: message key=value`.
///
/// ```
/// let (_, log) = plugin_sdk::testing::recording(|| tracing::info!(rank = 0, "ready"));
/// assert!(log[0].starts_with("INFO ") && log[0].ends_with(": ready rank=0"), "{log:?}");
/// ```
pub fn recording<T>(body: impl FnOnce() -> T) -> (T, Vec<String>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let dispatch = Dispatch::new(Recorder(lines.clone()));
    let value = tracing_core::dispatcher::with_default(&dispatch, body);
    let lines = std::mem::take(&mut *lines.lock().unwrap_or_else(PoisonError::into_inner));
    (value, lines)
}

struct Recorder(Arc<Mutex<Vec<String>>>);

impl Subscriber for Recorder {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new(), String::new());
        event.record(&mut line);
        let metadata = event.metadata();
        let text = format!("{} {}: {}{}", metadata.level(), metadata.target(), line.0, line.1);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Message, and fields.
struct Line(String, String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.1, " {name}={value:?}"),
        };
    }
}
