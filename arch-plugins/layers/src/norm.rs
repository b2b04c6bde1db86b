//! Norms over the last axis.
//!
//! On the CPU in f32 each is one pass of an own kernel. In other dtypes there rounding follows the reference: the
//! plain norm rounds `n(x)` and multiplies in the activations' dtype, the others round once at the end. Off the host
//! each is candle-nn's, in f32 and rounded once.

use candle_core::{DType, Tensor};

use crate::device::on_host;
use crate::error::Result;
use crate::kernel::{Isa, Shared, pointwise, pool};
use crate::mistake::{Mistake, made};
use crate::slice;
use crate::weights::Weights;

/// Values a task is worth at least.
const GRAIN: usize = 1 << 14;

/// What the normed value is multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// `n(x) ⊙ w`
    Plain,
    /// `n(x) ⊙ (1 + w)`
    Offset,
}

/// RMSNorm; its place holds `weight [size]`.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// What to multiply by, f32, the offset included.
    factor: Tensor,
    /// The same in the dtype of the activations, where the kernel wants it so.
    narrow: Option<Tensor>,
    scale: Scale,
    size: usize,
    eps: f64,
}

impl RmsNorm {
    /// Loads the weight.
    pub fn load(w: &Weights, size: usize, eps: f64, scale: Scale) -> Result<Self> {
        let weight = w.tensor("weight", &[size], DType::F32)?;
        let factor = match scale {
            Scale::Plain => weight,
            Scale::Offset => (weight + 1.0)?,
        };
        let (device, dtype) = (&w.placement().device, w.placement().dtype);
        let narrow =
            if device.is_cuda() && scale == Scale::Plain { Some(factor.to_dtype(dtype)?) } else { None };
        Ok(Self { factor, narrow, scale, size, eps })
    }

    /// Norms the last axis of `x`, which has `size` values.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !on_host(x.device()) {
            return self.placed(x);
        }
        if x.dtype() != DType::F32 {
            let rounding = match self.scale {
                Scale::Plain => x.dtype(),
                Scale::Offset => DType::F32,
            };
            let normed = normed(x, self.eps)?.to_dtype(rounding)?;
            return Ok(normed.broadcast_mul(&self.factor.to_dtype(rounding)?)?.to_dtype(x.dtype())?);
        }
        let mut out = slice::to_vec(x)?;
        self.rows(&mut out, None)?;
        slice::tensor(out, x.dims(), DType::F32)
    }

    /// `x + y` and its norm: `(x + y, norm(x + y))`.
    pub fn add_forward(&self, x: &Tensor, y: &Tensor) -> Result<(Tensor, Tensor)> {
        if x.dtype() != DType::F32 || !on_host(x.device()) {
            let sum = (x + y)?;
            let normed = self.forward(&sum)?;
            return Ok((sum, normed));
        }
        let mut sum = slice::to_vec(x)?;
        let y = slice::contiguous(y)?;
        let normed = slice::lend(&y, |y| self.rows(&mut sum, Some(y)))??;
        Ok((slice::tensor(sum, x.dims(), DType::F32)?, slice::tensor(normed, x.dims(), DType::F32)?))
    }

    /// candle-nn's kernel on a GPU computes in f32 whatever the dtype, but wants the weight in that of the
    /// activations: a weight of `1 + w` would lose most of its digits there.
    fn placed(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        let eps = self.eps as f32;
        if let Some(factor) = self.narrow.as_ref().filter(|factor| factor.dtype() == x.dtype()) {
            return Ok(candle_nn::ops::rms_norm(&x, factor, eps)?);
        }
        let normed = candle_nn::ops::rms_norm(&x.to_dtype(DType::F32)?, &self.factor, eps)?;
        Ok(normed.to_dtype(x.dtype())?)
    }

    /// Norms rows in place, or adds to them in place and gives back the norms.
    fn rows(&self, x: &mut [f32], add: Option<&[f32]>) -> Result<Vec<f32>> {
        let size = self.size;
        let mut separate = if add.is_some() { vec![0f32; x.len()] } else { Vec::new() };
        assert!(x.len().is_multiple_of(size) && add.is_none_or(|add| add.len() == x.len()));
        let rows = x.len() / size;
        let x = Shared(x.as_mut_ptr());
        let out = if add.is_some() { Shared(separate.as_mut_ptr()) } else { x };
        let isa = Isa::best();
        slice::lend(&self.factor, |factor| {
            pool::split(rows, GRAIN.div_ceil(size), &|start, end| {
                for row in start..end {
                    let at = row * size;
                    let add = add.map_or(std::ptr::null(), |add| add[at..].as_ptr());
                    // SAFETY: rows lie within vectors of `rows · size` values, each task has its own; the
                    // factor has `size` values; reading and writing the same row is allowed.
                    unsafe {
                        let (x, out) = (x.at(at), out.at(at));
                        pointwise::rms_norm(isa, x, add, factor.as_ptr(), out, size, self.eps as f32);
                    }
                }
            });
        })?;
        Ok(separate)
    }
}

/// `x / sqrt(mean(x²) + eps)` in f32.
fn normed(x: &Tensor, eps: f64) -> Result<Tensor> {
    let x = x.to_dtype(DType::F32)?;
    let last = x.rank() - 1;
    let mean = x.sqr()?.mean_keepdim(last)?;
    Ok(x.broadcast_div(&(mean + eps)?.sqrt()?)?)
}

/// `n(x) ⊙ w ⊙ silu(z)`; its place holds `weight [size]`, kept in f32.
#[derive(Debug, Clone)]
pub struct GatedRmsNorm {
    norm: RmsNorm,
}

impl GatedRmsNorm {
    /// Loads the weight.
    pub fn load(w: &Weights, size: usize, eps: f64) -> Result<Self> {
        Ok(Self { norm: RmsNorm::load(w, size, eps, Scale::Plain)? })
    }

    /// Norms the last axis of `x`, then gates with `gate` of the same shape.
    pub fn forward(&self, x: &Tensor, gate: &Tensor) -> Result<Tensor> {
        let wide_gate = gate.to_dtype(DType::F32)?;
        if made(Mistake::GateBeforeNorm) {
            return self.norm.forward(&crate::activation::silu_mul(&wide_gate, x)?);
        }
        let normed = if made(Mistake::NormOverAllHeads) {
            let whole = normed(&x.flatten_from(1)?, self.norm.eps)?.reshape(x.shape())?;
            whole.broadcast_mul(&self.norm.factor)?
        } else {
            self.norm.forward(&x.to_dtype(DType::F32)?)?
        };
        let gated = crate::activation::silu_mul(&wide_gate, &normed)?;
        Ok(gated.to_dtype(x.dtype())?)
    }
}

/// LayerNorm with weight and bias; its place holds `weight [size]` and `bias [size]`.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Loads weight and bias.
    pub fn load(w: &Weights, size: usize, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: w.tensor("weight", &[size], DType::F32)?,
            bias: w.tensor("bias", &[size], DType::F32)?,
            eps,
        })
    }

    /// Norms the last axis of `x` in f32 and rounds once.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let wide = x.to_dtype(DType::F32)?;
        if !on_host(x.device()) {
            let normed =
                candle_nn::ops::layer_norm(&wide.contiguous()?, &self.weight, &self.bias, self.eps as f32)?;
            return Ok(normed.to_dtype(x.dtype())?);
        }
        let last = wide.rank() - 1;
        let centred = wide.broadcast_sub(&wide.mean_keepdim(last)?)?;
        let variance = centred.sqr()?.mean_keepdim(last)?;
        let normed = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?;
        Ok(normed.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)?.to_dtype(x.dtype())?)
    }
}
