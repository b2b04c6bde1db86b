//! Candle tensors on the CPU as slices of f32, and back.

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};

use crate::error::{Error, Result};

/// `x` as contiguous f32 on the CPU; no copy when it already is.
pub(crate) fn contiguous(x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return Err(Error::Internal("a kernel of the CPU was given a tensor of another device".into()));
    }
    Ok(x.to_dtype(DType::F32)?.contiguous()?)
}

/// Lends the numbers of a tensor made by [`contiguous`].
pub(crate) fn lend<R>(x: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => {
            let (start, end) = layout
                .contiguous_offsets()
                .ok_or_else(|| Error::Internal("a contiguous tensor was expected".into()))?;
            Ok(f(&values[start..end]))
        }
        _ => Err(Error::Internal("an f32 tensor on the CPU was expected".into())),
    }
}

/// The numbers of any CPU tensor as a vector.
pub(crate) fn to_vec(x: &Tensor) -> Result<Vec<f32>> {
    lend(&contiguous(x)?, <[f32]>::to_vec)
}

/// A tensor that takes a vector over, in the dtype of the activations.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<candle_core::Shape>, dtype: DType) -> Result<Tensor> {
    let tensor = Tensor::from_vec(values, shape.into(), &Device::Cpu)?;
    Ok(if dtype == DType::F32 { tensor } else { tensor.to_dtype(dtype)? })
}

/// Rows and columns of `x`, all leading dimensions taken together.
pub(crate) fn rows_columns(x: &Tensor) -> Result<(usize, usize)> {
    let columns = *x.dims().last().ok_or_else(|| Error::Internal("a scalar has no rows".into()))?;
    Ok((x.elem_count().checked_div(columns).unwrap_or(0), columns))
}
