//! `POST /models/load` and `POST /models/unload`.

use serde::{Deserialize, Serialize};

use super::events::LoadProgress;
use super::lease::Guard;
use super::models::ModelState;
use super::{DeviceId, JobId, ModelId};

/// Asks for a model. Asking again for what is loaded or loading joins it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadRequest {
    /// What to load: a local path, or `org/name[@revision][:file.gguf]`.
    pub model: ModelId,
    /// What requests shall call it, if not by `model`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<ModelId>,
    /// Answer when the load is over instead of at once.
    #[serde(default)]
    pub wait: bool,
    /// Where to; the node chooses if absent. Several are one model split over them. Besides the names of
    /// `GET /discovery`, a GPU may be given by number, UUID (or its beginning) or PCI address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceId>,
    /// Type to compute in: `f32`, `bf16`, `f16`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// Format to hold the weights in, if not the one on disk: `q8_0`, `q4_k`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quant: Option<String>,
    /// Longest prompt and answer together; the model's own limit if absent.
    #[serde(default, alias = "context", skip_serializing_if = "Option::is_none")]
    pub context_tokens: Option<u64>,
    /// Sequences at once; the node chooses if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// Memory that cached prefixes may hold, over all devices; a share of the state if absent, 0 for no cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_cache_bytes: Option<u64>,
    /// Options of the architecture, which validates them itself; the node's own if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<serde_json::Map<String, serde_json::Value>>,
    /// Never evict it.
    #[serde(default)]
    pub pinned: bool,
    /// Other names it shall answer to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The lease and revision this command acts under.
    #[serde(default, skip_serializing_if = "Guard::is_empty")]
    pub guard: Guard,
}

/// The answer to a load: the job, and where the model stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadResponse {
    /// The job; the same for everybody who asked while it runs.
    pub job: JobId,
    /// What requests call the model.
    pub model: ModelId,
    /// Where it stands.
    pub state: ModelState,
    /// How far it has come.
    pub progress: LoadProgress,
    /// The node's residency revision after this command.
    pub residency_revision: u64,
    /// This command began the load; otherwise it joined one.
    pub started: bool,
}

/// Asks for a model to go.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnloadRequest {
    /// Which.
    pub model: ModelId,
    /// How long its work may take to finish before it is cut off; the node's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_timeout_ms: Option<u64>,
    /// Refuse instead of draining when it has work in flight. Evictions set this.
    #[serde(default)]
    pub only_if_idle: bool,
    /// Answer when its memory is free again instead of at once.
    #[serde(default = "yes")]
    pub wait: bool,
    /// The lease and revision this command acts under.
    #[serde(default, skip_serializing_if = "Guard::is_empty")]
    pub guard: Guard,
}

fn yes() -> bool {
    true
}

/// The answer to an unload.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnloadResponse {
    /// Which.
    pub model: ModelId,
    /// Where it stands.
    pub state: ModelState,
    /// Memory that came back, as the device says.
    pub freed_bytes: u64,
    /// The node's residency revision after this command.
    pub residency_revision: u64,
}
