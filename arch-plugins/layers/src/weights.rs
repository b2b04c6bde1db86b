//! Weights as they lie on disk.
use std::path::PathBuf;
use candle_core::{DType, Tensor};
use crate::error::Result;
use crate::placement::Placement;

/// Container of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// One or several `*.safetensors`.
    Safetensors,
    /// One or several `*.gguf`.
    Gguf,
}

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored { F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4K, Q5K, Q6K }

/// One tensor's bytes in the mapped file (cheap to clone).
#[derive(Clone)]
pub struct RawTensor { }
impl RawTensor {
    pub fn shape(&self) -> &[usize] { unimplemented!() }
    pub fn stored(&self) -> Stored { unimplemented!() }
    /// The `index`-th slice along the first dimension (one expert of a stack).
    pub fn index(&self, index: usize) -> Result<RawTensor> { unimplemented!() }
    /// All values as f32 (for small tensors).
    pub fn to_f32(&self) -> Result<Vec<f32>> { unimplemented!() }
}

/// A place in the name tree of a model's tensors, with the placement they are loaded to (cheap to clone).
#[derive(Clone)]
pub struct Weights { }
impl Weights {
    /// Maps `files`. Names are those of HuggingFace; GGUF names are translated.
    pub fn open(files: &[PathBuf], container: Container, placement: Placement) -> Result<Self> { unimplemented!() }
    /// From tensors in memory (tests).
    pub fn from_tensors(tensors: Vec<(String, Tensor)>, placement: Placement) -> Result<Self> { unimplemented!() }
    /// Scope: `w.pp("model.layers").pp(3)`.
    pub fn pp(&self, segment: impl std::fmt::Display) -> Weights { unimplemented!() }
    /// Full name of `name` here; `""` names the scope itself.
    pub fn name(&self, name: &str) -> String { unimplemented!() }
    pub fn placement(&self) -> &Placement { unimplemented!() }
    pub fn contains(&self, name: &str) -> bool { unimplemented!() }
    pub fn shape(&self, name: &str) -> Result<&[usize]> { unimplemented!() }
    /// The mapped bytes; marks the tensor as used. A missing tensor is an error that names it.
    pub fn raw(&self, name: &str) -> Result<RawTensor> { unimplemented!() }
    /// A small dense tensor on the device in `dtype`, shape checked.
    pub fn tensor(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> { unimplemented!() }
    /// Metadata of a GGUF: `None` for safetensors.
    pub fn gguf(&self) -> Option<&crate::weights::Metadata> { unimplemented!() }
    /// All names below this scope.
    pub fn names(&self) -> Vec<String> { unimplemented!() }
    /// Err(Unsupported) naming tensors nobody took and that no prefix in `allowed` covers.
    pub fn finish(&self, allowed: &[&str]) -> Result<()> { unimplemented!() }
}
/// GGUF metadata by key without the `<arch>.` prefix resolved: `get_u32("block_count")` reads `<arch>.block_count`.
#[derive(Debug, Clone)]
pub struct Metadata { }
impl Metadata {
    pub fn architecture(&self) -> &str { unimplemented!() }
    pub fn u32(&self, key: &str) -> Option<u32> { unimplemented!() }
    pub fn f32(&self, key: &str) -> Option<f32> { unimplemented!() }
    pub fn bool(&self, key: &str) -> Option<bool> { unimplemented!() }
    pub fn string(&self, key: &str) -> Option<&str> { unimplemented!() }
    pub fn u32s(&self, key: &str) -> Option<Vec<u32>> { unimplemented!() }
    pub fn f32s(&self, key: &str) -> Option<Vec<f32>> { unimplemented!() }
    /// Number of strings in `tokenizer.ggml.tokens`.
    pub fn vocab_size(&self) -> Option<usize> { unimplemented!() }
}
