//! `GET /v1/models`.

use serde::{Deserialize, Serialize};

use crate::node::models::{Modality, ModelState};

/// The list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelList {
    /// `list`.
    pub object: String,
    /// The models.
    pub data: Vec<Model>,
}

impl ModelList {
    /// A list of models.
    pub fn new(data: Vec<Model>) -> Self {
        Self { object: "list".to_owned(), data }
    }
}

/// A model. The fields after `owned_by` are ours; clients skip what they do not know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// What to write in a request.
    pub id: String,
    /// `model`.
    #[serde(default = "model")]
    pub object: String,
    /// Seconds since 1970.
    #[serde(default)]
    pub created: u64,
    /// Who made or serves it.
    #[serde(default)]
    pub owned_by: String,
    /// Longest prompt and answer together, in tokens. Named as vLLM names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_model_len: Option<u64>,
    /// Loaded, loadable, loading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<ModelState>,
    /// What it takes in besides text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modalities: Vec<Modality>,
    /// Other names it answers to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Nodes it is loaded on (cortex only).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resident_on: Vec<String>,
    /// Nodes that can load it (cortex only).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loadable_on: Vec<String>,
    /// How far its load has come, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<f32>,
}

fn model() -> String {
    "model".to_owned()
}

impl Model {
    /// A model with the fields every client reads.
    pub fn new(id: impl Into<String>, created: u64, owned_by: impl Into<String>) -> Self {
        Self { id: id.into(), object: model(), created, owned_by: owned_by.into(), ..Self::default() }
    }
}
