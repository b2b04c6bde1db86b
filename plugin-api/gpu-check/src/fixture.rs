//! Checkpoints with recorded answers of the reference implementation, as they lie in `fixtures/models`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use plugin_loader::{Source, WeightFormat};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// One checkpoint and what is expected of it.
pub struct Fixture {
    /// The folder's name.
    pub name: String,
    /// `model_type` of its configuration.
    pub model_type: String,
    /// Where its files are.
    pub source: Source,
    expected: Value,
    recorded: Vec<u8>,
}

/// A recorded tensor.
pub struct Expected {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Vec<f32>,
}

/// Every complete fixture of a folder, by name.
pub fn all(folder: &Path) -> Result<Vec<Fixture>> {
    let entries = std::fs::read_dir(folder)
        .with_context(|| format!("there are no fixtures in {}", folder.display()))?;
    let mut folders: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.retain(|folder| folder.join("expected.json").exists());
    folders.sort();
    folders.iter().map(|folder| Fixture::open(folder)).collect()
}

impl Fixture {
    fn open(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let config = String::from_utf8(read("config.json")?)?;
        let parsed: Value = serde_json::from_str(&config)?;
        let source = Source {
            format: WeightFormat::SAFETENSORS,
            preprocessor: std::fs::read_to_string(folder.join("preprocessor_config.json"))
                .unwrap_or_default(),
            files: weight_files(folder)?,
            config,
        };
        Ok(Self {
            name: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            model_type: parsed["model_type"].as_str().unwrap_or_default().to_owned(),
            source,
            expected: serde_json::from_slice(&read("expected.json")?)?,
            recorded: read("expected.safetensors")?,
        })
    }

    /// Names of all recorded tensors, sorted.
    pub fn keys(&self) -> Result<Vec<String>> {
        let file = SafeTensors::deserialize(&self.recorded)?;
        let mut keys: Vec<String> = file.names().iter().map(ToString::to_string).collect();
        keys.sort();
        Ok(keys)
    }

    /// A recorded tensor of f32 or bytes.
    pub fn tensor(&self, key: &str) -> Result<Expected> {
        let file = SafeTensors::deserialize(&self.recorded)?;
        let view = file.tensor(key).with_context(|| format!("{} has no {key}", self.name))?;
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => {
                data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            Dtype::BF16 => data
                .chunks_exact(2)
                .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
                .collect(),
            Dtype::U8 => data.iter().map(|&byte| f32::from(byte)).collect(),
            other => bail!("{key} of {} is recorded as {other:?}", self.name),
        };
        Ok(Expected { shape: view.shape().to_vec(), values })
    }

    /// Part of `expected.json`.
    pub fn part(&self, pointer: &str) -> Option<&Value> {
        self.expected.pointer(pointer)
    }

    /// A number of `expected.json`.
    pub fn number(&self, pointer: &str) -> Result<f64> {
        let number = self.part(pointer).and_then(Value::as_f64);
        number.with_context(|| format!("{}: expected.json has no {pointer}", self.name))
    }

    /// A list of token ids of `expected.json`.
    pub fn ids(&self, pointer: &str) -> Result<Vec<u32>> {
        let list = self.part(pointer).with_context(|| format!("{}: no {pointer}", self.name))?;
        ids(list).with_context(|| format!("{}: {pointer} is no list of ids", self.name))
    }
}

/// A JSON list of ids.
pub fn ids(list: &Value) -> Option<Vec<u32>> {
    list.as_array()?.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}

fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let folder = folder.canonicalize()?; // plugins want absolute paths
    let Ok(index) = std::fs::read_to_string(folder.join("model.safetensors.index.json")) else {
        return Ok(vec![folder.join("model.safetensors")]);
    };
    let index: Value = serde_json::from_str(&index)?;
    let map = index["weight_map"].as_object().context("the index has no weight_map")?;
    let mut names: Vec<&str> = map.values().filter_map(Value::as_str).collect();
    names.sort_unstable();
    names.dedup();
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}
