//! The kernels of `cuda/gated_delta_net.cu` on a GPU.

use std::ops::Range;

use candle_core::{CudaDevice, DType, Device, Tensor};

use super::launch::{self, Inputs, Row};
use super::{DeltaDims, DeltaState};
use crate::device::gpu::{Gpu, activations, address, empty, readable};
use crate::error::Result;

/// See [`super::CausalConv::forward`]; `taps` `[K · channels]`.
pub(super) fn conv(
    device: &CudaDevice,
    mixed: &Tensor,
    taps: &Tensor,
    kernel: usize,
    rows: &[Range<usize>],
    states: &mut [&mut DeltaState],
) -> Result<Tensor> {
    let mixed = readable(mixed)?;
    let out = empty(device, mixed.shape(), DType::F32)?;
    let place = Device::Cuda(device.clone());
    let rows = rows.iter().zip(states).map(|(row, state)| {
        Ok(Row { state: address(state.placed(&place)?.0)?, first: row.start, tokens: row.len() })
    });
    let rows = rows.collect::<Result<Vec<_>>>()?;
    let sizes = (mixed.dim(1)?, kernel);
    launch::conv(&Gpu(device), activations(&mixed)?, address(taps)?, sizes, &rows, address(&out)?)?;
    Ok(out)
}

/// See [`super::Gates::forward`].
pub(super) fn gates(
    device: &CudaDevice,
    b: &Tensor,
    a: &Tensor,
    rate: &Tensor,
    bias: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let (b, a) = (readable(b)?, readable(a)?);
    let (beta, decay) = (empty(device, a.shape(), DType::F32)?, empty(device, a.shape(), DType::F32)?);
    launch::gates(
        &Gpu(device),
        (activations(&b)?, activations(&a)?),
        (address(rate)?, address(bias)?),
        (a.dim(1)?, a.elem_count()),
        (address(&beta)?, address(&decay)?),
    )?;
    Ok((beta, decay))
}

/// See [`super::delta_rule`].
pub(super) fn delta_rule(
    device: &CudaDevice,
    dims: &DeltaDims,
    conv: &Tensor,
    beta: &Tensor,
    decay: &Tensor,
    rows: &[Range<usize>],
    states: &mut [&mut DeltaState],
) -> Result<Tensor> {
    let out = empty(device, (conv.dim(0)?, dims.value_heads, dims.value_dim), DType::F32)?;
    let place = Device::Cuda(device.clone());
    let rows = rows.iter().zip(states).map(|(row, state)| {
        Ok(Row { state: address(state.placed(&place)?.1)?, first: row.start, tokens: row.len() })
    });
    let rows = rows.collect::<Result<Vec<_>>>()?;
    let inputs = Inputs { mixed: address(conv)?, beta: address(beta)?, decay: address(decay)? };
    launch::delta_rule(&Gpu(device), &dims.heads(), inputs, &rows, address(&out)?)?;
    Ok(out)
}
