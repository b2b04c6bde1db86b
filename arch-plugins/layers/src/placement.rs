//! Where and how a model is loaded: device, compute dtype, rank, quantization, progress.

use std::sync::Arc;

use candle_core::{DType, Device};

use crate::comm::{Communicator, Solo};
use crate::device::{Kept, on_host};
use crate::error::Result;
use crate::quant::Scheme;

/// Told how far loading has come, on the loading thread.
pub trait Progress: Send + Sync {
    /// `file_bytes` more of the files have been dealt with and now are `memory_bytes` of weights. An error
    /// ends the load.
    fn loaded(&self, file_bytes: u64, memory_bytes: u64) -> Result<()>;
}

/// Nobody listens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn loaded(&self, _file_bytes: u64, _memory_bytes: u64) -> Result<()> {
        Ok(())
    }
}

/// Everything a layer must know at load time besides its own tensors.
#[derive(Clone)]
pub struct Placement {
    /// Device of this rank.
    pub device: Device,
    /// Dtype of activations: f32 on the CPU, bf16 by default on a GPU.
    pub dtype: DType,
    /// The other ranks.
    pub comm: Arc<dyn Communicator>,
    /// Quantization applied to linears while loading; `None` keeps what the file has.
    pub quantize: Option<Scheme>,
    /// Listener.
    pub progress: Arc<dyn Progress>,
}

impl Placement {
    /// One rank on the CPU in f32, weights as stored.
    pub fn cpu() -> Self {
        Self {
            device: Device::Cpu,
            dtype: DType::F32,
            comm: Arc::new(Solo),
            quantize: None,
            progress: Arc::new(Silent),
        }
    }

    /// How sequences of a model loaded here keep their keys and values.
    pub fn kept(&self) -> Kept {
        if on_host(&self.device) { Kept::Host } else { Kept::Placed(self.dtype) }
    }
}

impl std::fmt::Debug for Placement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Placement")
            .field("device", &self.device)
            .field("dtype", &self.dtype)
            .field("rank", &self.comm.rank())
            .field("world", &self.comm.world())
            .field("quantize", &self.quantize)
            .finish_non_exhaustive()
    }
}
