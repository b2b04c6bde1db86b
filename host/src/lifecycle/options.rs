//! How this node treats its models.

use std::time::Duration;

use wire_api::node::load::LoadRequest;

use super::memory::Wishes;
use crate::worker::environment::CudaOptions;
use crate::worker::process::WorkerCommand;

/// Settings of [`Models`](super::Models).
#[derive(Debug, Clone)]
pub struct ModelsOptions {
    /// How a worker is started.
    pub worker: WorkerCommand,
    /// Threads a model may keep busy; `None` takes the physical cores this process may use.
    pub threads: Option<u32>,
    /// Memory this node's models may use; `None` takes the machine's.
    pub memory_bytes: Option<u64>,
    /// Sequences at once, unless a load says otherwise.
    pub slots: u32,
    /// Sequences that may wait for a slot of one model.
    pub queue_limit: u32,
    /// Most tokens of one step.
    pub max_step_tokens: u32,
    /// Prefill tokens of a step while other sequences decode.
    pub prefill_chunk: u32,
    /// Share of the free memory a model may take for state when nobody said how much, 0 to 1.
    pub state_share: f64,
    /// Share of a model's state that cached prefixes may hold, 0 to 1; 0 switches the prefix cache off.
    pub prefix_cache_share: f64,
    /// Recurrent state is frozen at least every so many prompt tokens.
    pub snapshot_every: u32,
    /// Frozen sequences a plugin has to reckon with, beside the running ones.
    pub max_snapshots: u32,
    /// A step that takes longer is taken for hung.
    pub step_deadline: Duration,
    /// A load that makes no progress for so long is taken for hung.
    pub load_patience: Duration,
    /// A worker that is silent for so long is taken for hung.
    pub worker_patience: Duration,
    /// An idle model is asked for a token this often, so that readiness stays proved.
    pub prove_every: Duration,
    /// How long an unload lets work in flight go on, unless it says otherwise.
    pub drain_timeout: Duration,
    /// Requests that were in the batch when a worker died go on with the next one, unnoticed, instead of
    /// failing with an error that says to try again.
    pub replay: bool,
    /// First pause before a model is tried again; it doubles up to `longest_pause`.
    pub first_pause: Duration,
    /// Longest pause before a model is tried again.
    pub longest_pause: Duration,
    /// Options of architectures, as a JSON object; empty for none.
    pub architecture_options: String,
    /// Where workers find CUDA's libraries and keep compiled kernels.
    pub cuda: CudaOptions,
}

impl ModelsOptions {
    /// The defaults, with workers started by `worker`.
    pub fn new(worker: WorkerCommand) -> Self {
        Self {
            worker,
            threads: None,
            memory_bytes: None,
            slots: 16,
            queue_limit: 256,
            max_step_tokens: 512,
            prefill_chunk: 256,
            state_share: 0.5,
            prefix_cache_share: 0.5,
            snapshot_every: 1024,
            max_snapshots: 1024,
            step_deadline: Duration::from_secs(120),
            load_patience: Duration::from_secs(600),
            worker_patience: Duration::from_secs(30),
            prove_every: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(30),
            replay: false,
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(60),
            architecture_options: String::new(),
            cuda: CudaOptions::default(),
        }
    }

    /// The pause after so many failures in a row.
    pub(super) fn pause_after(&self, attempts: u32) -> Duration {
        let doublings = attempts.saturating_sub(1).min(16);
        self.first_pause.saturating_mul(1 << doublings).min(self.longest_pause)
    }

    /// What a request asks for, with this node's defaults.
    pub(super) fn wishes(&self, request: &LoadRequest) -> Wishes {
        Wishes {
            context: request.context_tokens.map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX)),
            slots: request.slots.unwrap_or(self.slots).max(1),
            max_step_tokens: self.max_step_tokens,
            prefill_chunk: self.prefill_chunk,
            queue_limit: self.queue_limit,
            state_share: self.state_share,
            prefix_cache_share: self.prefix_cache_share,
            prefix_cache_bytes: request.prefix_cache_bytes,
            snapshot_every: self.snapshot_every,
            step_deadline_ms: self.step_deadline.as_millis() as u64,
        }
    }
}
