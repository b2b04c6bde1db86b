//! The kernels of `cuda/gated_delta_net.cu` on a GPU.

use std::ops::Range;

use candle_core::{CudaDevice, CudaStorage, DType, Device, Storage, Tensor};
use cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg};

use super::launch::{self, Activations, Address, Argument, Grid, HeadSizes, Inputs, Launcher, Row, Rows};
use super::{DeltaDims, DeltaState};
use crate::error::{Error, Result};

const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/gated_delta_net.ptx"));

// SAFETY: both are `repr(C)`, made of numbers alone, and declared the same way in the kernels' file.
unsafe impl DeviceRepr for Rows {}
// SAFETY: as above.
unsafe impl DeviceRepr for HeadSizes {}

struct Gpu<'a>(&'a CudaDevice);

impl Launcher for Gpu<'_> {
    type Memory = CudaSlice<f32>;

    fn memory(&self, values: usize) -> Result<CudaSlice<f32>> {
        // SAFETY: a kernel writes it before another reads it.
        Ok(unsafe { self.0.alloc::<f32>(values) }?)
    }

    fn address(&self, memory: &CudaSlice<f32>) -> Address {
        memory.device_ptr(&self.0.cuda_stream()).0
    }

    fn launch(&self, kernel: &'static str, grid: Grid, arguments: &[Argument]) -> Result<()> {
        let function = self.0.get_or_load_custom_func(kernel, "gated_delta_net", PTX)?;
        let mut builder = function.builder();
        for argument in arguments {
            match argument {
                Argument::Address(x) => builder.arg(x),
                Argument::Int(x) => builder.arg(x),
                Argument::Rows(x) => builder.arg(&**x),
                Argument::Heads(x) => builder.arg(x),
            };
        }
        let [x, y, z] = grid.blocks;
        let config = LaunchConfig {
            grid_dim: (x, y, z),
            block_dim: (grid.threads, 1, 1),
            shared_mem_bytes: grid.shared_bytes,
        };
        // SAFETY: the arguments are those the kernel declares, in its order; the addresses among them are of live memory
        // of the sizes the grid was made for, and what is freed meanwhile is freed after the kernel, in the same stream.
        unsafe { builder.launch(config) }.map_err(|error| {
            crate::device::failure::driver(error.0, format!("{kernel} was not launched: {error:?}"))
        })?;
        Ok(())
    }
}

/// Where a contiguous tensor's numbers begin.
fn address(x: &Tensor) -> Result<Address> {
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return Err(Error::Internal("a kernel of a GPU was given a tensor of another device".into()));
    };
    let stream = storage.device.cuda_stream();
    let start = match x.dtype() {
        DType::BF16 => storage.as_cuda_slice::<half::bf16>()?.device_ptr(&stream).0,
        DType::F32 => storage.as_cuda_slice::<f32>()?.device_ptr(&stream).0,
        other => return Err(Error::Internal(format!("a kernel of a GPU was given {other:?}"))),
    };
    Ok(start + (layout.start_offset() * x.dtype().size_in_bytes()) as u64)
}

/// As the kernels read activations: bf16 as it is, everything else as f32.
fn readable(x: &Tensor) -> Result<Tensor> {
    let x = if x.dtype() == DType::BF16 { x.clone() } else { x.to_dtype(DType::F32)? };
    Ok(x.contiguous()?)
}

fn activations(x: &Tensor) -> Result<Activations> {
    Ok(Activations { address: address(x)?, bf16: x.dtype() == DType::BF16 })
}

/// An f32 tensor to be written by a kernel.
fn empty(device: &CudaDevice, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    let shape = shape.into();
    // SAFETY: the kernel that follows writes all of it.
    let slice = unsafe { device.alloc::<f32>(shape.elem_count()) }?;
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()));
    Ok(Tensor::from_storage(storage, shape, candle_core::op::BackpropOp::none(), false))
}

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
    let out = empty(device, mixed.shape())?;
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
    let (beta, decay) = (empty(device, a.shape())?, empty(device, a.shape())?);
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
    let out = empty(device, (conv.dim(0)?, dims.value_heads, dims.value_dim))?;
    let place = Device::Cuda(device.clone());
    let rows = rows.iter().zip(states).map(|(row, state)| {
        Ok(Row { state: address(state.placed(&place)?.1)?, first: row.start, tokens: row.len() })
    });
    let rows = rows.collect::<Result<Vec<_>>>()?;
    let inputs = Inputs { mixed: address(conv)?, beta: address(beta)?, decay: address(decay)? };
    launch::delta_rule(&Gpu(device), &dims.heads(), inputs, &rows, address(&out)?)?;
    Ok(out)
}
