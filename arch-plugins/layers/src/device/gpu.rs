//! Own kernels on a GPU: what nvcc made of the files in `cuda/`, and the addresses of candle's tensors.

use candle_core::{CudaDevice, CudaStorage, DType, Storage, Tensor};
use cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg};

use super::launch::{Activations, Address, Argument, Grid, Launcher};
use crate::attention::decode::{Sequences, Shape};
use crate::error::{Error, Result};
use crate::gated_delta_net::launch::{HeadSizes, Rows};

/// Kernels by the beginning of their names, the file they are in, and what nvcc made of it.
const MODULES: [(&str, &str, &str); 2] = [
    ("gdn_", "gated_delta_net", include_str!(concat!(env!("OUT_DIR"), "/gated_delta_net.ptx"))),
    ("", "decode", include_str!(concat!(env!("OUT_DIR"), "/decode.ptx"))),
];

// SAFETY: all are `repr(C)`, made of numbers alone, and declared the same way in the kernels' file.
unsafe impl DeviceRepr for Rows {}
// SAFETY: as above.
unsafe impl DeviceRepr for HeadSizes {}
// SAFETY: as above.
unsafe impl DeviceRepr for Sequences {}
// SAFETY: as above.
unsafe impl DeviceRepr for Shape {}

/// Runs kernels on a GPU.
pub(crate) struct Gpu<'a>(pub(crate) &'a CudaDevice);

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
        let module = MODULES.iter().find(|(beginning, ..)| kernel.starts_with(beginning));
        let (_, name, ptx) =
            module.ok_or_else(|| Error::Internal(format!("no file has the kernel {kernel}")))?;
        let function = self.0.get_or_load_custom_func(kernel, name, ptx)?;
        let mut builder = function.builder();
        for argument in arguments {
            match argument {
                Argument::Address(x) => builder.arg(x),
                Argument::Int(x) => builder.arg(x),
                Argument::Float(x) => builder.arg(x),
                Argument::Rows(x) => builder.arg(&**x),
                Argument::Heads(x) => builder.arg(x),
                Argument::Sequences(x) => builder.arg(&**x),
                Argument::Shape(x) => builder.arg(x),
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
pub(crate) fn address(x: &Tensor) -> Result<Address> {
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
pub(crate) fn readable(x: &Tensor) -> Result<Tensor> {
    let x = if x.dtype() == DType::BF16 { x.clone() } else { x.to_dtype(DType::F32)? };
    Ok(x.contiguous()?)
}

pub(crate) fn activations(x: &Tensor) -> Result<Activations> {
    Ok(Activations { address: address(x)?, bf16: x.dtype() == DType::BF16 })
}

/// A tensor of f32 or bf16 to be written by a kernel.
pub(crate) fn empty(
    device: &CudaDevice,
    shape: impl Into<candle_core::Shape>,
    dtype: DType,
) -> Result<Tensor> {
    let shape = shape.into();
    let count = shape.elem_count();
    // SAFETY: the kernel that follows writes all of it.
    let storage = unsafe {
        match dtype {
            DType::BF16 => CudaStorage::wrap_cuda_slice(device.alloc::<half::bf16>(count)?, device.clone()),
            DType::F32 => CudaStorage::wrap_cuda_slice(device.alloc::<f32>(count)?, device.clone()),
            other => return Err(Error::Internal(format!("a kernel of a GPU writes no {other:?}"))),
        }
    };
    Ok(Tensor::from_storage(Storage::Cuda(storage), shape, candle_core::op::BackpropOp::none(), false))
}

/// Room for ids, to be written by a kernel, and where it is.
pub(crate) fn empty_ids(device: &CudaDevice, count: usize) -> Result<(CudaSlice<u32>, Address)> {
    // SAFETY: the kernel that follows writes all of it.
    let ids = unsafe { device.alloc::<u32>(count) }?;
    let address = ids.device_ptr(&device.cuda_stream()).0;
    Ok((ids, address))
}

/// Where a table of addresses begins, an i64 tensor.
pub(crate) fn table_address(x: &Tensor) -> Result<Address> {
    let (storage, _) = x.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => {
            Ok(storage.as_cuda_slice::<i64>()?.device_ptr(&storage.device.cuda_stream()).0)
        }
        _ => Err(Error::Internal("a table of a GPU lies on another device".into())),
    }
}
