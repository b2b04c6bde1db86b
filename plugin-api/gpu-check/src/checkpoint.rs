//! Made-up checkpoints, written as a plugin would read real ones.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use plugin_loader::{Source, WeightFormat};
use serde_json::json;

use crate::shape::{Fill, Shape, Tensor};

/// Bytes of random numbers that are made; longer tensors repeat them, each from a place of its own.
const BLOCK: usize = 8 << 20;

/// Standard deviation of the numbers, about that of a freshly initialised model.
const SPREAD: f32 = 0.02;

/// A checkpoint on disk, removed with this.
pub struct Checkpoint {
    file: PathBuf,
    config: String,
}

impl Checkpoint {
    /// Writes the checkpoint of a shape into a folder.
    pub fn write(shape: &Shape, folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let folder = folder.canonicalize()?;
        let checkpoint = Self {
            file: folder.join(format!("{}.safetensors", shape.name)),
            config: serde_json::to_string_pretty(&shape.config)?,
        };
        checkpoint.fill(&shape.tensors).with_context(|| {
            format!(
                "cannot write {} ({:.1} GB; name a folder with room with --scratch)",
                checkpoint.file.display(),
                shape.bytes() as f64 / 1e9
            )
        })?;
        Ok(checkpoint)
    }

    fn fill(&self, tensors: &[Tensor]) -> Result<()> {
        let mut header = serde_json::Map::new();
        let mut at = 0;
        for tensor in tensors {
            let end = at + tensor.bytes();
            header.insert(
                tensor.name.clone(),
                json!({"dtype": tensor.fill.dtype(), "shape": tensor.shape, "data_offsets": [at, end]}),
            );
            at = end;
        }
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&self.file)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        let random = random_block();
        for (number, tensor) in tensors.iter().enumerate() {
            let block = match tensor.fill {
                Fill::Random => random.as_slice(),
                fill => &constant(fill),
            };
            let start = if tensor.fill == Fill::Random { number * 4_099 * 2 % block.len() } else { 0 };
            repeat(&mut file, block, start, tensor.bytes() as usize)?;
        }
        Ok(file.flush()?)
    }

    /// Where it is, as a plugin wants it.
    pub fn source(&self) -> Source {
        Source {
            format: WeightFormat::SAFETENSORS,
            config: self.config.clone(),
            preprocessor: String::new(),
            files: vec![self.file.clone()],
        }
    }
}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// `count` bytes of `block`, over and over, from `start` on.
fn repeat(file: &mut impl Write, block: &[u8], mut start: usize, mut count: usize) -> std::io::Result<()> {
    while count > 0 {
        let piece = &block[start..block.len().min(start + count)];
        file.write_all(piece)?;
        count -= piece.len();
        start = 0;
    }
    Ok(())
}

fn constant(fill: Fill) -> Vec<u8> {
    let one = 1f32.to_le_bytes();
    let element: &[u8] = match fill {
        Fill::Ones => &one[2..],
        Fill::LongOnes => &one,
        Fill::Zeros | Fill::LongZeros | Fill::Random => &[0; 4],
    };
    element.repeat(4096 / element.len())
}

/// bf16 numbers, nearly normal, the same in every run.
fn random_block() -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    // Three uniform numbers have a variance of a quarter.
    let number = |_| (uniform() + uniform() + uniform()) * 2.0 * SPREAD;
    (0..BLOCK / 2)
        .map(number)
        .flat_map(|value: f32| [value.to_le_bytes()[2], value.to_le_bytes()[3]])
        .collect()
}

#[cfg(test)]
mod tests {
    use safetensors::{Dtype, SafeTensors};

    use super::*;
    use crate::shape;

    #[test]
    fn a_checkpoint_is_what_its_shape_says_and_goes_when_it_is_dropped() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for shape in shape::tiny() {
            let checkpoint = Checkpoint::write(&shape, folder.path()).expect("it is written");
            let bytes = std::fs::read(&checkpoint.file).expect("it is there");
            let file = SafeTensors::deserialize(&bytes).expect("it is safetensors");
            assert_eq!(file.len(), shape.tensors.len());
            for tensor in &shape.tensors {
                let view = file.tensor(&tensor.name).expect("it is there");
                let expected: Vec<usize> = tensor.shape.iter().map(|&size| size as usize).collect();
                assert_eq!(view.shape(), expected, "{}", tensor.name);
            }
            let norm = file.tensor("lm_head.weight").expect("a head");
            assert_eq!(norm.dtype(), Dtype::BF16);
            let values: Vec<f32> = norm
                .data()
                .chunks_exact(2)
                .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
                .collect();
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let spread = (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt();
            assert!(mean.abs() < 0.001 && (0.015..0.025).contains(&spread), "{mean} {spread}");
            let path = checkpoint.file.clone();
            drop(checkpoint);
            assert!(!path.exists());
        }
    }
}
