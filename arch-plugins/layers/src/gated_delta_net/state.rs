//! What one sequence remembers in one layer: constant in size, on the host or where the model computes.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::DeltaDims;
use crate::error::{Error, Result};

/// State of one sequence in one layer. Cloning it is a snapshot: what lies on a GPU is shared until one of both is
/// advanced.
#[derive(Clone, Debug)]
pub struct DeltaState {
    conv: usize,
    recurrent: usize,
    memory: Memory,
}

#[derive(Clone, Debug)]
enum Memory {
    /// Before the first token: zeros, nowhere yet.
    Fresh,
    /// The last `K−1` rows of the projection before the convolution, `[K−1, channels]`, oldest first, zeros where the
    /// sequence is still shorter; and the matrices, `[value_heads, key_dim, value_dim]`.
    Host(Vec<f32>, Vec<f32>),
    /// The same on a GPU, f32.
    Placed(Arc<(Tensor, Tensor)>),
}

impl DeltaState {
    /// The state before the first token.
    pub fn new(dims: &DeltaDims) -> Self {
        Self {
            conv: (dims.conv_kernel - 1) * dims.channels(),
            recurrent: dims.value_heads * dims.key_dim * dims.value_dim,
            memory: Memory::Fresh,
        }
    }

    /// Memory it takes, from its first token on.
    pub fn bytes(&self) -> usize {
        (self.conv + self.recurrent) * size_of::<f32>()
    }

    /// Convolution and matrices on the host, to be advanced.
    pub(super) fn host(&mut self) -> Result<(&mut [f32], &mut [f32])> {
        if let Memory::Fresh = self.memory {
            self.memory = Memory::Host(vec![0.0; self.conv], vec![0.0; self.recurrent]);
        }
        match &mut self.memory {
            Memory::Host(conv, recurrent) => Ok((conv, recurrent)),
            _ => Err(Error::Internal("a state on a GPU was asked for on the host".into())),
        }
    }

    /// Convolution and matrices on a GPU, this state's alone, to be advanced.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only a GPU asks"))]
    pub(super) fn placed(&mut self, device: &Device) -> Result<(&Tensor, &Tensor)> {
        match &mut self.memory {
            Memory::Fresh => {
                let zeros = |count| Tensor::zeros(count, candle_core::DType::F32, device);
                self.memory = Memory::Placed(Arc::new((zeros(self.conv)?, zeros(self.recurrent)?)));
            }
            Memory::Placed(shared) if Arc::strong_count(shared) > 1 => {
                let own = (shared.0.copy()?, shared.1.copy()?);
                self.memory = Memory::Placed(Arc::new(own));
            }
            _ => {}
        }
        match &self.memory {
            Memory::Placed(both) => Ok((&both.0, &both.1)),
            _ => Err(Error::Internal("a state on the host was asked for on a GPU".into())),
        }
    }

    /// The convolution's part, flat, on the CPU.
    pub fn conv(&self) -> Result<Tensor> {
        self.shown(self.conv, |conv, _| conv, |both| &both.0)
    }

    /// The matrices, flat, on the CPU.
    pub fn recurrent(&self) -> Result<Tensor> {
        self.shown(self.recurrent, |_, recurrent| recurrent, |both| &both.1)
    }

    fn shown(
        &self,
        count: usize,
        host: impl for<'a> Fn(&'a [f32], &'a [f32]) -> &'a [f32],
        placed: impl Fn(&(Tensor, Tensor)) -> &Tensor,
    ) -> Result<Tensor> {
        Ok(match &self.memory {
            Memory::Fresh => Tensor::zeros(count, candle_core::DType::F32, &Device::Cpu)?,
            Memory::Host(conv, recurrent) => Tensor::from_slice(host(conv, recurrent), count, &Device::Cpu)?,
            Memory::Placed(both) => placed(both).to_device(&Device::Cpu)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Form, KeyHeads};
    use super::*;

    #[test]
    fn a_snapshot_is_not_advanced_with_its_original() {
        let (key_heads, value_heads, key_dim, value_dim, conv_kernel) = (1, 2, 4, 4, 4);
        let (layout, prefill) = (KeyHeads::Grouped, Form::Recurrent);
        let dims = DeltaDims { key_heads, value_heads, key_dim, value_dim, conv_kernel, layout, prefill };
        let mut state = DeltaState::new(&dims);
        assert_eq!(state.bytes(), dims.state_bytes());
        let place = |state: &mut DeltaState| state.placed(&Device::Cpu).unwrap().1.clone();
        let first = place(&mut state);
        assert_eq!(first.id(), place(&mut state).id(), "alone, it stays where it is");
        let snapshot = state.clone();
        place(&mut state).slice_set(&Tensor::new(&[7f32], &Device::Cpu).unwrap(), 0, 0).unwrap();
        let value = |state: &DeltaState| state.recurrent().unwrap().to_vec1::<f32>().unwrap()[0];
        assert_eq!((value(&state), value(&snapshot)), (7.0, 0.0));
    }
}
