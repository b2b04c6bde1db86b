//! Elementwise activations and gates.

use candle_core::{DType, Tensor};

use crate::device::on_host;
use crate::error::{Error, Result};
use crate::kernel::pointwise::{self, Gate};
use crate::kernel::{Isa, Shared, pool};
use crate::mistake::{Mistake, made};
use crate::slice;

/// Values a task is worth at least.
const GRAIN: usize = 1 << 14;

/// `silu(gate) ⊙ up`.
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if up.dtype() == DType::F32 && on_host(up.device()) {
        return gated(up, gate, Gate::Silu);
    }
    #[cfg(feature = "cuda")]
    if let Some(gated) = cuda::gated(gate, up, true)? {
        return Ok(gated);
    }
    if !on_host(up.device()) {
        // One rounding, at the end.
        let wide = (candle_nn::ops::silu(&gate.to_dtype(DType::F32)?)? * up.to_dtype(DType::F32)?)?;
        return Ok(wide.to_dtype(up.dtype())?);
    }
    Ok((silu(gate)? * up)?)
}

/// `x ⊙ σ(gate)`.
pub fn sigmoid_mul(x: &Tensor, gate: &Tensor) -> Result<Tensor> {
    if made(Mistake::SiluGate) {
        return silu_mul(gate, x);
    }
    if x.dtype() == DType::F32 && on_host(x.device()) {
        return gated(x, gate, Gate::Sigmoid);
    }
    #[cfg(feature = "cuda")]
    if let Some(gated) = cuda::gated(gate, x, false)? {
        return Ok(gated);
    }
    Ok((x * sigmoid(gate)?)?)
}

/// `x · σ(x)`, computed in f32 and rounded once.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    Ok(x.to_dtype(DType::F32)?.silu()?.to_dtype(x.dtype())?)
}

/// `1 / (1 + e⁻ˣ)`, computed in f32 and rounded once.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    if !on_host(x.device()) {
        return Ok(candle_nn::ops::sigmoid(&wide)?.to_dtype(x.dtype())?);
    }
    Ok((wide.neg()?.exp()? + 1.0)?.recip()?.to_dtype(x.dtype())?)
}

/// `½x(1 + tanh(√(2/π)(x + 0.044715x³)))`
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    Ok(x.to_dtype(DType::F32)?.gelu()?.to_dtype(x.dtype())?)
}

/// `½x(1 + erf(x / √2))`
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    Ok(x.to_dtype(DType::F32)?.gelu_erf()?.to_dtype(x.dtype())?)
}

fn gated(x: &Tensor, gate: &Tensor, kind: Gate) -> Result<Tensor> {
    if x.dims() != gate.dims() {
        return Err(Error::Internal(format!("a gate of {:?} for {:?}", gate.dims(), x.dims())));
    }
    let (dense, gate) = (slice::contiguous(x)?, slice::contiguous(gate)?);
    let mut out = vec![0f32; x.elem_count()];
    let to = Shared(out.as_mut_ptr());
    let isa = Isa::best();
    slice::lend(&dense, |x| {
        slice::lend(&gate, |gate| {
            pool::split(x.len(), GRAIN, &|start, end| {
                // SAFETY: all three have as many values; each task writes its own part.
                unsafe {
                    let (x, gate) = (x[start..].as_ptr(), gate[start..].as_ptr());
                    pointwise::gated(isa, x, gate, to.at(start), end - start, kind);
                }
            });
        })
    })??;
    slice::tensor(out, x.dims(), DType::F32)
}

/// Both gates in one kernel of `cuda/decode.cu`.
#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::{DType, Device, Tensor};

    use crate::device::gpu::{Gpu, address, empty};
    use crate::device::launch::{Argument, Launcher, elementwise};
    use crate::error::Result;

    /// `None` where the kernel does not take them.
    pub(super) fn gated(gate: &Tensor, x: &Tensor, silu: bool) -> Result<Option<Tensor>> {
        let (Device::Cuda(device), true) = (x.device(), gate.dims() == x.dims()) else { return Ok(None) };
        let kernel = match (x.dtype(), gate.dtype()) {
            (DType::BF16, DType::BF16) => "gate_bf16",
            (DType::F32, DType::F32) => "gate_f32",
            _ => return Ok(None),
        };
        let (gate, x) = (gate.contiguous()?, x.contiguous()?);
        let out = empty(device, x.shape(), x.dtype())?;
        let count = x.elem_count();
        let arguments = [
            Argument::Address(address(&gate)?),
            Argument::Address(address(&x)?),
            Argument::Int(i32::from(silu)),
            Argument::Int(count as i32),
            Argument::Address(address(&out)?),
        ];
        Gpu(device).launch(kernel, elementwise(count, 1), &arguments)?;
        Ok(Some(out))
    }
}
