//! `GET /models`: what is loaded, loading or wanted, and how it fares.

use serde::{Deserialize, Serialize};

use super::events::LoadProgress;
use super::{BootId, DeviceId, JobId, ModelId};

/// The answer: one consistent snapshot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeModels {
    /// This life of the process.
    pub boot_id: BootId,
    /// Counts every change of what is resident; commands say which one they were planned on.
    pub residency_revision: u64,
    /// Counts snapshots, so that late answers can be told from fresh ones.
    pub sequence: u64,
    /// Devices with their memory at the same moment.
    pub devices: Vec<super::discovery::Device>,
    /// The models: resident, loading, failed, and those that could be loaded from here.
    pub models: Vec<ModelStatus>,
    /// The node takes no new work.
    pub draining: bool,
    /// The node's own clock when it took this snapshot, in milliseconds since 1970: what its other times are to
    /// be compared with, whatever the reader's clock says. 0 from nodes that do not tell.
    pub unix_ms: u64,
}

/// Where a model stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelState {
    /// Not loaded; it could be.
    #[default]
    Absent,
    /// On its way.
    Loading,
    /// It has produced a token.
    Ready,
    /// Finishing its work before it is unloaded.
    Draining,
    /// It died and is coming back by itself.
    Recovering,
    /// It could not be loaded; `failure` says why.
    Failed,
}

/// What a model takes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Modality {
    /// Text.
    Text,
    /// Images.
    Image,
}

/// A model on a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelStatus {
    /// What requests call it.
    pub id: ModelId,
    /// Other names it answers to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// What it is.
    pub state: ModelState,
    /// Whether it should be loaded, whatever it is now.
    pub desired: bool,
    /// Never evicted.
    pub pinned: bool,
    /// The load that made it what it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// How far its load has come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<LoadProgress>,
    /// Why it failed, or is recovering.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// What it is made of and where it lives; absent until that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<ModelDetails>,
    /// Memory it holds, or will hold while it loads.
    pub memory: ModelMemory,
    /// What it is doing now.
    pub activity: Activity,
    /// How fast it has been.
    pub throughput: Throughput,
}

/// Why a model is not there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failure {
    /// Stable code.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// Whether trying again may help.
    pub retryable: bool,
    /// How often it has failed in a row.
    pub attempts: u32,
    /// When the node tries again by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt_in_ms: Option<u64>,
}

/// What a model is made of and where it lives.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelDetails {
    /// `model_type` of its configuration.
    pub architecture: String,
    /// Plugin that serves it.
    pub plugin: String,
    /// Build of that plugin.
    pub build: String,
    /// Devices it occupies, one per rank.
    pub devices: Vec<DeviceId>,
    /// Format of its weights: `q4_k`, `bf16`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quant: Option<String>,
    /// Type it computes in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// Longest prompt and answer together.
    pub context_tokens: u64,
    /// Sequences it can run at once.
    pub slots: u32,
    /// What it takes in.
    pub modalities: Vec<Modality>,
    /// It can call tools.
    pub tools: bool,
    /// It can think before it answers.
    pub reasoning: bool,
    /// Tokens per block of prefix hashes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix_block_tokens: Option<u32>,
    /// When it became ready, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_since_ms: Option<u64>,
    /// How long its load took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_ms: Option<u64>,
    /// What is not as good as it could be: a build that is not the card's own, no GPU; one sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Memory by class, planned before and measured after the load. All in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelMemory {
    /// Weights.
    pub weights_bytes: u64,
    /// KV cache and recurrent state of all slots.
    pub cache_bytes: u64,
    /// Activations of one step.
    pub activation_bytes: u64,
    /// Runtime, context, libraries.
    pub runtime_bytes: u64,
    /// All together, as planned.
    pub planned_bytes: u64,
    /// All together, as measured; 0 before the load is done.
    pub measured_bytes: u64,
}

impl ModelMemory {
    /// What to reckon with: the larger of plan and measurement.
    pub fn bytes(&self) -> u64 {
        self.planned_bytes.max(self.measured_bytes)
    }
}

/// What a model is doing now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Activity {
    /// Requests accepted and not finished, queued ones included.
    pub inflight: u32,
    /// Requests waiting for a slot.
    pub queued: u32,
    /// Sequences in the batch.
    pub running: u32,
    /// Prompt tokens accepted and not computed yet.
    pub pending_prefill_tokens: u64,
    /// Share of the KV cache in use, 0 to 1.
    pub cache_use: f32,
    /// When the last request came, in milliseconds since 1970; 0 is never.
    pub last_used_ms: u64,
    /// Requests since the load.
    pub requests_total: u64,
}

/// How fast a model has been, smoothed over recent requests; 0 where nothing is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Throughput {
    /// Prompt tokens computed per second.
    pub prefill_tokens_per_second: f32,
    /// Tokens generated per second by one sequence.
    pub decode_tokens_per_second: f32,
    /// From arrival to first token.
    pub first_token_ms: f32,
}
