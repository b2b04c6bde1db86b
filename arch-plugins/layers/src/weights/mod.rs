//! Weights as they lie on disk, found by the names HuggingFace gives them.
//!
//! Files are mapped, never read into a buffer first. [`Weights`] is a place in the tree of names together
//! with the placement its tensors are loaded to. A tensor nobody asked for is reported by
//! [`Weights::finish`]: silently ignored weights are how models go subtly wrong.

mod gguf;
mod names;
mod raw;
mod tensors;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Tensor};

pub use gguf::Metadata;
pub(crate) use raw::widen;
pub use raw::{RawTensor, Stored};

use crate::error::{Error, Result};
use crate::placement::Placement;

/// Container of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// One or several `*.safetensors`.
    Safetensors,
    /// One or several `*.gguf`.
    Gguf,
}

struct Entry {
    raw: RawTensor,
    used: AtomicBool,
}

struct Source {
    tensors: BTreeMap<String, Entry>,
    metadata: Option<Metadata>,
}

/// A place in the tree of a model's tensors; cheap to clone.
#[derive(Clone)]
pub struct Weights {
    source: Arc<Source>,
    scope: String,
    placement: Arc<Placement>,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights({:?}, {} tensors)", self.scope, self.source.tensors.len())
    }
}

impl Weights {
    /// Maps `files`. GGUF names are translated to those of HuggingFace.
    pub fn open(files: &[PathBuf], container: Container, placement: Placement) -> Result<Self> {
        if files.is_empty() {
            return Err(Error::Unsupported("the model has no weight files".into()));
        }
        let (tensors, metadata) = match container {
            Container::Safetensors => (tensors::open(files)?, None),
            Container::Gguf => {
                let (tensors, metadata) = gguf::open(files)?;
                (tensors, Some(metadata))
            }
        };
        Ok(Self::of(tensors, metadata, placement))
    }

    /// From tensors in memory.
    pub fn from_raw(tensors: Vec<(String, RawTensor)>, placement: Placement) -> Self {
        Self::of(tensors.into_iter().collect(), None, placement)
    }

    /// From f32 candle tensors in memory.
    pub fn from_tensors(tensors: Vec<(String, Tensor)>, placement: Placement) -> Result<Self> {
        let raw = tensors.into_iter().map(|(name, tensor)| {
            let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            Ok((name, RawTensor::from_f32(&values, tensor.dims().to_vec())?))
        });
        Ok(Self::from_raw(raw.collect::<Result<_>>()?, placement))
    }

    fn of(tensors: BTreeMap<String, RawTensor>, metadata: Option<Metadata>, placement: Placement) -> Self {
        let tensors = tensors
            .into_iter()
            .map(|(name, raw)| (name, Entry { raw, used: AtomicBool::new(false) }))
            .collect();
        Self {
            source: Arc::new(Source { tensors, metadata }),
            scope: String::new(),
            placement: Arc::new(placement),
        }
    }

    /// The place one step further: `w.pp("model.layers").pp(3)`.
    pub fn pp(&self, segment: impl std::fmt::Display) -> Self {
        Self { scope: self.name(&segment.to_string()), ..self.clone() }
    }

    /// The same place, loading to another placement (e.g. without quantization).
    pub fn placed(&self, placement: Placement) -> Self {
        Self { placement: Arc::new(placement), ..self.clone() }
    }

    /// Full name of `name` here; an empty `name` is the place itself.
    pub fn name(&self, name: &str) -> String {
        match (self.scope.is_empty(), name.is_empty()) {
            (true, _) => name.to_owned(),
            (_, true) => self.scope.clone(),
            _ => format!("{}.{name}", self.scope),
        }
    }

    /// Where tensors are loaded to.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Metadata of a GGUF.
    pub fn gguf(&self) -> Option<&Metadata> {
        self.source.metadata.as_ref()
    }

    /// Is there a tensor of this name here?
    pub fn contains(&self, name: &str) -> bool {
        self.source.tensors.contains_key(&self.name(name))
    }

    /// Full names of all tensors at and below this place.
    pub fn names(&self) -> Vec<String> {
        let below = |name: &&String| {
            self.scope.is_empty()
                || name
                    .strip_prefix(self.scope.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.source.tensors.keys().filter(below).cloned().collect()
    }

    /// Bytes of all tensors in the files.
    pub fn total_bytes(&self) -> u64 {
        self.source.tensors.values().map(|entry| entry.raw.bytes().len() as u64).sum()
    }

    /// Shape of a tensor, which is not thereby used.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(self.entry(name)?.raw.shape())
    }

    /// Storage of a tensor, which is not thereby used.
    pub fn stored(&self, name: &str) -> Result<Stored> {
        Ok(self.entry(name)?.raw.stored())
    }

    /// A tensor's bytes where they lie. A missing one is an error that names it.
    pub fn raw(&self, name: &str) -> Result<RawTensor> {
        let entry = self.entry(name)?;
        entry.used.store(true, Ordering::Relaxed);
        Ok(entry.raw.clone())
    }

    /// As [`Weights::raw`], shape checked.
    pub fn raw_of(&self, name: &str, shape: &[usize]) -> Result<RawTensor> {
        let raw = self.raw(name)?;
        if raw.shape() != shape {
            return Err(Error::Unsupported(format!(
                "tensor `{}` has shape {:?}, but the configuration asks for {shape:?}",
                self.name(name),
                raw.shape()
            )));
        }
        Ok(raw)
    }

    /// A small tensor on the device, shape checked.
    pub fn tensor(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let raw = self.raw_of(name, shape)?;
        let tensor = Tensor::from_vec(raw.to_f32(), shape, &self.placement.device)?.to_dtype(dtype)?;
        let memory = (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64;
        self.placement.progress.loaded(raw.bytes().len() as u64, memory)?;
        Ok(tensor)
    }

    /// To be called when the model is complete: an error that names tensors nobody asked for and that no
    /// prefix in `ignored` covers.
    pub fn finish(&self, ignored: &[&str]) -> Result<()> {
        let left: Vec<_> = self
            .source
            .tensors
            .iter()
            .filter(|(name, entry)| {
                !entry.used.load(Ordering::Relaxed) && !ignored.iter().any(|prefix| name.starts_with(prefix))
            })
            .map(|(name, _)| name.as_str())
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        let shown = left.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        Err(Error::Unsupported(format!(
            "{} tensors of the file have no place in this architecture: {shown}{}",
            left.len(),
            if left.len() > 5 { ", …" } else { "" }
        )))
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        let name = self.name(name);
        self.source
            .tensors
            .get(&name)
            .ok_or_else(|| Error::Unsupported(format!("tensor `{name}` is missing from the weight files")))
    }
}
