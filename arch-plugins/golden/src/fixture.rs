//! Checkpoint folders and the tensors recorded beside them.

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// One checkpoint and what is expected of it.
pub struct Fixture {
    /// The folder.
    pub folder: PathBuf,
    /// Text of `config.json`.
    pub config: String,
    /// `expected.json`.
    pub expected: Value,
    bytes: Vec<u8>,
}

/// A recorded tensor, as f32 whatever it was recorded as.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Vec<f32>,
}

impl Expected {
    /// The rows of a matrix; a vector is one row.
    pub fn rows(&self) -> Vec<Vec<f32>> {
        let width = self.shape.last().copied().unwrap_or(1).max(1);
        self.values.chunks(width).map(<[f32]>::to_vec).collect()
    }
}

/// Every checkpoint of these model types.
///
/// # Panics
/// If `GOLDEN_DIR` names a folder that cannot be read, or a folder in it is not a complete fixture.
pub fn fixtures(model_types: &[&str]) -> Vec<Fixture> {
    let root = std::env::var_os("GOLDEN_DIR").map_or_else(own_fixtures, |named| from_root(Path::new(&named)));
    let entries = std::fs::read_dir(&root).unwrap_or_else(|e| panic!("cannot read {}: {e}", root.display()));
    let mut folders: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.sort();
    let of_these = |folder: &PathBuf| {
        let config = std::fs::read_to_string(folder.join("config.json")).ok()?;
        let json: Value = serde_json::from_str(&config).expect("config.json is JSON");
        let known = json["model_type"].as_str().is_some_and(|name| model_types.contains(&name));
        known.then(|| Fixture::open(folder, config))
    };
    folders.iter().filter_map(of_these).collect()
}

fn own_fixtures() -> PathBuf {
    workspace().join("fixtures/models")
}

/// Tests run in their crate's folder, but a relative `GOLDEN_DIR` was typed at the workspace's root.
fn from_root(named: &Path) -> PathBuf {
    if named.exists() { named.to_path_buf() } else { workspace().join(named) }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

impl Fixture {
    fn open(folder: &Path, config: String) -> Self {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()))
        };
        let expected = serde_json::from_slice(&read("expected.json")).expect("expected.json is JSON");
        Self { folder: folder.to_path_buf(), config, expected, bytes: read("expected.safetensors") }
    }

    /// The folder's name.
    pub fn name(&self) -> String {
        self.folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// A text file of the checkpoint; empty if there is none.
    pub fn text_file(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.join(name)).unwrap_or_default()
    }

    /// The checkpoint's weight files, as its index names them.
    pub fn weight_files(&self) -> Vec<PathBuf> {
        let index = self.text_file("model.safetensors.index.json");
        if index.is_empty() {
            return vec![self.folder.join("model.safetensors")];
        }
        let index: Value = serde_json::from_str(&index).expect("the index is JSON");
        let map = index["weight_map"].as_object().expect("the index has a weight_map");
        let mut names: Vec<&str> = map.values().filter_map(Value::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names.iter().map(|name| self.folder.join(name)).collect()
    }

    /// All weights, by name.
    pub fn weights(&self) -> Vec<(String, Tensor)> {
        let load = |file: &PathBuf| {
            candle_core::safetensors::load(file, &candle_core::Device::Cpu).expect("weights can be read")
        };
        self.weight_files().iter().flat_map(load).collect()
    }

    /// Names of all recorded tensors, sorted.
    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.recorded().names().iter().map(ToString::to_string).collect();
        keys.sort();
        keys
    }

    /// A recorded tensor.
    pub fn tensor(&self, key: &str) -> Option<Expected> {
        let file = self.recorded();
        let view = file.tensor(key).ok()?;
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => {
                data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            Dtype::BF16 => {
                data.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
            }
            Dtype::U8 => data.iter().map(|&b| f32::from(b)).collect(),
            Dtype::I64 => data
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes(b.try_into().expect("eight bytes")) as f32)
                .collect(),
            other => panic!("{key} is recorded as {other:?}"),
        };
        Some(Expected { shape: view.shape().to_vec(), values })
    }

    /// A limit of `expected.json`, e.g. `f32_logits_abs`.
    pub fn limit(&self, name: &str) -> f64 {
        self.number(&format!("/tolerance/{name}"))
    }

    /// A number in `expected.json`.
    pub fn number(&self, pointer: &str) -> f64 {
        let number = self.expected.pointer(pointer).and_then(Value::as_f64);
        number.unwrap_or_else(|| panic!("{}: expected.json has no {pointer}", self.name()))
    }

    /// A list of token ids in `expected.json`.
    pub fn ids(&self, pointer: &str) -> Vec<u32> {
        let list = self.expected.pointer(pointer).and_then(Value::as_array);
        let list = list.unwrap_or_else(|| panic!("{}: expected.json has no {pointer}", self.name()));
        list.iter().map(|id| id.as_u64().expect("a token id") as u32).collect()
    }

    fn recorded(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).expect("expected.safetensors is readable")
    }
}
