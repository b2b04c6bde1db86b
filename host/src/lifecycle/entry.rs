//! One model as everybody sees it: where it stands, and its figures.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use wire_api::node::ModelId;
use wire_api::node::load::LoadRequest;
use wire_api::node::models::{
    Activity, Failure, ModelDetails, ModelMemory, ModelState, ModelStatus, Throughput,
};

use super::keeper::Command;
use super::memory::Reservation;
use super::progress::Progress;
use crate::worker::protocol::{Heartbeat, ModelFacts};

/// What a loaded model is, for those who use it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// What requests call it.
    pub id: ModelId,
    /// Its folder or GGUF file.
    pub path: PathBuf,
    /// What it turned out to be.
    pub facts: ModelFacts,
    /// Name of its architecture.
    pub architecture: String,
    /// Plugin that serves it.
    pub plugin: String,
    /// Build of that plugin.
    pub build: String,
    /// Process id of its worker.
    pub worker: u32,
    /// Counts loads on this node: two infos with the same number speak of the same load.
    pub load: u64,
}

/// Where a model stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// On its way.
    Loading,
    /// It has produced a token.
    Ready(Arc<ModelInfo>),
    /// Finishing its work before it goes.
    Draining,
    /// It died, or could not be loaded, and is tried again by itself.
    Recovering(Failure),
    /// It could not be loaded.
    Failed(Failure),
    /// Gone.
    Absent,
}

impl Standing {
    /// The word for it.
    pub fn state(&self) -> ModelState {
        match self {
            Self::Loading => ModelState::Loading,
            Self::Ready(_) => ModelState::Ready,
            Self::Draining => ModelState::Draining,
            Self::Recovering(_) => ModelState::Recovering,
            Self::Failed(_) => ModelState::Failed,
            Self::Absent => ModelState::Absent,
        }
    }

    fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Recovering(failure) | Self::Failed(failure) => Some(failure),
            _ => None,
        }
    }
}

/// What a model is doing and how fast it has been.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub details: Option<ModelDetails>,
    pub memory: ModelMemory,
    pub heartbeat: Heartbeat,
    pub throughput: Throughput,
    pub last_used_ms: u64,
    pub requests: u64,
    /// When it last produced a token.
    pub proved: Option<Instant>,
}

impl Figures {
    /// Smooths a new measurement into a running figure; the first one is taken as it is.
    pub fn smooth(figure: &mut f32, measured: f32) {
        *figure = if *figure == 0.0 { measured } else { *figure * 0.8 + measured * 0.2 };
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Entry {
    pub id: ModelId,
    pub request: LoadRequest,
    pub commands: UnboundedSender<Command>,
    pub standing: watch::Sender<Standing>,
    pub progress: Progress,
    pub inflight: Arc<AtomicU32>,
    pub next_ticket: AtomicU64,
    /// Failing is no reason to give up: it is configured, or has served before.
    pub persistent: AtomicBool,
    figures: Mutex<Figures>,
    /// What the lease it was begun under was promised, until its own plan is known.
    lent: Mutex<Option<Reservation>>,
}

impl Entry {
    pub fn new(
        id: ModelId,
        request: LoadRequest,
        persistent: bool,
        commands: UnboundedSender<Command>,
        progress: Progress,
    ) -> Self {
        Self {
            id,
            request,
            commands,
            standing: watch::Sender::new(Standing::Loading),
            progress,
            inflight: Arc::default(),
            next_ticket: AtomicU64::new(1), // 0 is the keeper's own
            persistent: AtomicBool::new(persistent),
            figures: Mutex::default(),
            lent: Mutex::default(),
        }
    }

    pub fn figures(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory promised to it before anybody knows what it needs.
    pub fn lend(&self, promise: Option<Reservation>) {
        *self.lent.lock().unwrap_or_else(PoisonError::into_inner) = promise;
    }

    /// Takes that promise back.
    pub fn take_lent(&self) -> Option<Reservation> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub fn answers_to(&self, name: &str) -> bool {
        self.id.as_str() == name || self.request.aliases.iter().any(|alias| alias == name)
    }

    /// How long ago it last produced a token.
    pub fn proved_ago(&self) -> Option<Duration> {
        self.figures().proved.map(|proved| proved.elapsed())
    }

    pub fn status(&self) -> ModelStatus {
        let standing = self.standing.borrow().clone();
        let figures = self.figures();
        let heartbeat = figures.heartbeat;
        let cache_use = if heartbeat.state_limit_bytes == 0 {
            0.0
        } else {
            (heartbeat.state_bytes as f64 / heartbeat.state_limit_bytes as f64) as f32
        };
        ModelStatus {
            id: self.id.clone(),
            aliases: self.request.aliases.clone(),
            state: standing.state(),
            desired: !matches!(standing, Standing::Draining | Standing::Absent),
            pinned: self.request.pinned,
            job: Some(self.progress.job()),
            progress: self.progress.latest(),
            failure: standing.failure().cloned(),
            details: figures.details.clone(),
            memory: figures.memory,
            activity: Activity {
                inflight: self.inflight.load(Ordering::Relaxed),
                queued: heartbeat.queued,
                running: heartbeat.running,
                pending_prefill_tokens: heartbeat.pending_prefill_tokens,
                cache_use,
                last_used_ms: figures.last_used_ms,
                requests_total: figures.requests,
            },
            throughput: figures.throughput,
        }
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
