//! Writing a GGUF from a checkpoint, so that the other container can be held to the same goldens.

use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{DType, Tensor};

pub use candle_core::quantized::gguf_file::Value;

/// Writes a GGUF with these metadata and f32 tensors.
pub fn write_gguf(path: &Path, metadata: &[(&str, Value)], tensors: &[(String, Tensor)]) {
    let quantized: Vec<(&str, QTensor)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let tensor = tensor.to_dtype(DType::F32).and_then(|t| t.contiguous()).expect("f32");
            (name.as_str(), QTensor::quantize(&tensor, GgmlDType::F32).expect("f32 blocks"))
        })
        .collect();
    let tensors: Vec<(&str, &QTensor)> = quantized.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let mut file = std::fs::File::create(path).expect("the file can be created");
    gguf_file::write(&mut file, &metadata, &tensors).expect("the file can be written");
}
