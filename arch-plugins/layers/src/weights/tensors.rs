//! Safetensors files.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::raw::{Owner, RawTensor, Stored};
use crate::error::{Error, Result};

/// Maps one file.
pub(super) fn map(path: &PathBuf) -> Result<Arc<Mmap>> {
    let place = |error: std::io::Error| {
        Error::Unsupported(format!("weight file {} cannot be read: {error}", path.display()))
    };
    let file = File::open(path).map_err(place)?;
    // SAFETY: weight files are not changed while a model is served; the model cache replaces files by
    // renaming, which leaves this mapping alone.
    let map = unsafe { Mmap::map(&file) }.map_err(place)?;
    Ok(Arc::new(map))
}

/// All tensors of all shards.
pub(super) fn open(files: &[PathBuf]) -> Result<BTreeMap<String, RawTensor>> {
    let mut tensors = BTreeMap::new();
    for path in files {
        let map = map(path)?;
        let (header, metadata) = SafeTensors::read_metadata(&map[..]).map_err(|error| {
            Error::Unsupported(format!("{} is not a safetensors file: {error}", path.display()))
        })?;
        for (name, info) in metadata.tensors() {
            let stored = match info.dtype {
                Dtype::F32 => Stored::F32,
                Dtype::F16 => Stored::F16,
                Dtype::BF16 => Stored::BF16,
                other => {
                    return Err(Error::Unsupported(format!(
                        "tensor `{name}` is stored as {other:?}; f32, f16 and bf16 can be read"
                    )));
                }
            };
            let start = 8 + header + info.data_offsets.0;
            let owner: Owner = map.clone();
            let raw = RawTensor::new(owner, start, stored, info.shape.clone())
                .map_err(|error| error.within(format!("tensor `{name}` of {}", path.display())))?;
            if tensors.insert(name.clone(), raw).is_some() {
                return Err(Error::Unsupported(format!("tensor `{name}` is in two weight files")));
            }
        }
    }
    Ok(tensors)
}
