//! `GET /models/{id}/events`: how a load goes, as server-sent events.

use serde::{Deserialize, Serialize};

use super::models::Failure;
use super::{JobId, ModelId};

/// Where a load is. In this order; a phase may be skipped, none comes twice in one attempt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoadPhase {
    /// Waiting for memory or for another load.
    #[default]
    Queued,
    /// Finding out which files the id stands for.
    Resolve,
    /// Fetching them.
    Download,
    /// Checking sizes and digests.
    Verify,
    /// Reading weights.
    Read,
    /// Moving weights to the device.
    Upload,
    /// First real generation.
    WarmUp,
    /// It serves.
    Ready,
    /// It does not, and this job will not change that.
    Failed,
    /// It was unloaded.
    Unloaded,
}

impl LoadPhase {
    /// The word used on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Resolve => "resolve",
            Self::Download => "download",
            Self::Verify => "verify",
            Self::Read => "read",
            Self::Upload => "upload",
            Self::WarmUp => "warm-up",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Unloaded => "unloaded",
        }
    }

    /// Whether nothing follows.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Ready | Self::Failed | Self::Unloaded)
    }
}

impl std::fmt::Display for LoadPhase {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// How far a load has come.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadProgress {
    /// Where it is.
    pub phase: LoadPhase,
    /// Bytes of this phase done.
    pub bytes_done: u64,
    /// Bytes of this phase, 0 if unknown.
    pub bytes_total: u64,
    /// Until ready, where it can be guessed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_ms: Option<u64>,
    /// Since the job began.
    pub elapsed_ms: u64,
    /// What is being worked on: a file, a layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl LoadProgress {
    /// Share of this phase that is done, 0 to 1, where known.
    pub fn fraction(&self) -> Option<f32> {
        (self.bytes_total > 0).then(|| (self.bytes_done as f64 / self.bytes_total as f64).min(1.0) as f32)
    }
}

/// One event of the stream. The SSE event name is the phase.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadEvent {
    /// The job it belongs to.
    pub job: JobId,
    /// The model.
    pub model: ModelId,
    /// How far it has come.
    #[serde(flatten)]
    pub progress: LoadProgress,
    /// Why it failed, in the phase `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}
