//! `GET /health`, `/ready`, `/version`.

use serde::{Deserialize, Serialize};

use super::models::ModelState;
use super::{BootId, ModelId};

/// Liveness: that this could be answered is the news.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// This life of the process.
    pub boot_id: BootId,
    /// How long it has lasted.
    pub uptime_ms: u64,
}

/// Readiness: 200 if every desired model has lately produced a token, 503 otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ready {
    /// The verdict.
    pub ready: bool,
    /// Per desired model.
    pub models: Vec<ModelReadiness>,
}

/// Readiness of one model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelReadiness {
    /// Which.
    pub model: ModelId,
    /// Whether it serves.
    pub ready: bool,
    /// Where it stands.
    pub state: ModelState,
    /// How long ago it last produced a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proved_ago_ms: Option<u64>,
    /// Why it does not serve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What runs here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Version {
    /// `neuron` or `cortex`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Version of the plugin ABI it speaks.
    pub abi_version: String,
    /// The commit it was built from, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
}
