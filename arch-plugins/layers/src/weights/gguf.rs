//! GGUF files: the header is candle's to read, the tensors stay where they are mapped.

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::path::PathBuf;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};

use super::names;
use super::raw::{Owner, RawTensor, Stored};
use super::tensors::map;
use crate::error::{Error, Result};

/// Metadata of a GGUF. Keys are given without the architecture's prefix: `block_count` means
/// `<architecture>.block_count`; a key with a dot that has no such entry is looked up as it is.
#[derive(Debug, Clone)]
pub struct Metadata {
    values: HashMap<String, Value>,
    architecture: String,
}

impl Metadata {
    /// `general.architecture`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(&format!("{}.{key}", self.architecture)).or_else(|| self.values.get(key))
    }

    /// Is there such a key?
    pub fn contains(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// A non-negative integer of any width.
    pub fn integer(&self, key: &str) -> Option<u64> {
        integer(self.value(key)?)
    }

    /// An integer as `usize`.
    pub fn size(&self, key: &str) -> Option<usize> {
        self.integer(key).and_then(|value| usize::try_from(value).ok())
    }

    /// A float of either width.
    pub fn float(&self, key: &str) -> Option<f64> {
        match self.value(key)? {
            Value::F32(value) => Some(f64::from(*value)),
            Value::F64(value) => Some(*value),
            _ => None,
        }
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Option<bool> {
        match self.value(key)? {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// A text.
    pub fn string(&self, key: &str) -> Option<&str> {
        match self.value(key)? {
            Value::String(value) => Some(value),
            _ => None,
        }
    }

    /// An array of non-negative integers (truth values count as 0 and 1).
    pub fn integers(&self, key: &str) -> Option<Vec<u64>> {
        match self.value(key)? {
            Value::Array(values) => values
                .iter()
                .map(|value| match value {
                    Value::Bool(value) => Some(u64::from(*value)),
                    other => integer(other),
                })
                .collect(),
            _ => None,
        }
    }

    /// Number of tokens in the tokenizer.
    pub fn vocab_size(&self) -> Option<usize> {
        match self.values.get("tokenizer.ggml.tokens")? {
            Value::Array(tokens) => Some(tokens.len()),
            _ => None,
        }
    }
}

fn integer(value: &Value) -> Option<u64> {
    match *value {
        Value::U8(value) => Some(value.into()),
        Value::U16(value) => Some(value.into()),
        Value::U32(value) => Some(value.into()),
        Value::U64(value) => Some(value),
        Value::I8(value) => value.try_into().ok(),
        Value::I16(value) => value.try_into().ok(),
        Value::I32(value) => value.try_into().ok(),
        Value::I64(value) => value.try_into().ok(),
        _ => None,
    }
}

fn stored(dtype: GgmlDType) -> Option<Stored> {
    Some(match dtype {
        GgmlDType::F32 => Stored::F32,
        GgmlDType::F16 => Stored::F16,
        GgmlDType::BF16 => Stored::BF16,
        GgmlDType::Q4_0 => Stored::Q4_0,
        GgmlDType::Q4_1 => Stored::Q4_1,
        GgmlDType::Q5_0 => Stored::Q5_0,
        GgmlDType::Q5_1 => Stored::Q5_1,
        GgmlDType::Q8_0 => Stored::Q8_0,
        GgmlDType::Q4K => Stored::Q4K,
        GgmlDType::Q5K => Stored::Q5K,
        GgmlDType::Q6K => Stored::Q6K,
        _ => return None,
    })
}

/// All tensors of all parts, and the metadata of the first part.
pub(super) fn open(files: &[PathBuf]) -> Result<(BTreeMap<String, RawTensor>, Metadata)> {
    let mut tensors = BTreeMap::new();
    let mut metadata = None;
    for path in files {
        let map = map(path)?;
        let content = Content::read(&mut Cursor::new(&map[..])).map_err(|error| {
            Error::Unsupported(format!("{} cannot be read as GGUF: {error}", path.display()))
        })?;
        for (name, info) in &content.tensor_infos {
            let Some(stored) = stored(info.ggml_dtype) else {
                return Err(Error::Unsupported(format!(
                    "tensor `{name}` is stored as {:?}; F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, \
                     Q4_K, Q5_K and Q6_K can be read",
                    info.ggml_dtype
                )));
            };
            let start = usize::try_from(content.tensor_data_offset.saturating_add(info.offset))
                .map_err(|_| Error::Unsupported(format!("tensor `{name}` lies beyond any file")))?;
            let owner: Owner = map.clone();
            let raw = RawTensor::new(owner, start, stored, info.shape.dims().to_vec())
                .map_err(|error| error.within(format!("tensor `{name}` of {}", path.display())))?;
            tensors.insert(names::from_gguf(name), raw);
        }
        if metadata.is_none() {
            let architecture = match content.metadata.get("general.architecture") {
                Some(Value::String(name)) => name.clone(),
                _ => {
                    return Err(Error::Unsupported(format!(
                        "{} does not say its general.architecture",
                        path.display()
                    )));
                }
            };
            metadata = Some(Metadata { values: content.metadata, architecture });
        }
    }
    let metadata = metadata.ok_or_else(|| Error::Unsupported("the model has no weight files".into()))?;
    Ok((tensors, metadata))
}
