//! Several dense matrices of one input side by side off the host, so that one product takes the place of several.
//!
//! A decode step is a row of activations against every weight once; what it costs beyond reading them is the number of
//! products. Prompts gain nothing, and multiply the parts.

use candle_core::Tensor;

use super::Linear;
use crate::error::Result;

/// Rows of activations up to which the product is made in one piece.
const MOST_ROWS: usize = 8;

/// The matrices of a group of linears in one tensor `[all outputs, inputs]`, of which theirs are views.
#[derive(Debug, Clone)]
pub(super) struct Pack(Tensor);

impl Pack {
    /// Puts a group together; `None` where it is on the host, quantized or of different inputs.
    pub(super) fn of(group: &mut [&mut Linear]) -> Result<Option<Self>> {
        let parts: Option<Vec<Tensor>> =
            group.iter().map(|linear| linear.matrix.placed_dense().cloned()).collect();
        let Some(parts) = parts else { return Ok(None) };
        let alike = |part: &Tensor| part.dtype() == parts[0].dtype() && part.dims()[1] == parts[0].dims()[1];
        if !parts.iter().all(alike) {
            return Ok(None);
        }
        let whole = Tensor::cat(&parts, 0)?;
        drop(parts);
        let mut first = 0;
        for linear in group {
            let rows = linear.outputs();
            linear.matrix.replace_placed(whole.narrow(0, first, rows)?);
            first += rows;
        }
        Ok(Some(Self(whole)))
    }

    /// Every linear's `x Wᵀ`, for few rows of `x [rows, inputs]`.
    pub(super) fn multiply(&self, group: &[&Linear], x: &Tensor) -> Result<Option<Vec<Tensor>>> {
        if x.rank() != 2 || x.dim(0)? > MOST_ROWS {
            return Ok(None);
        }
        let whole = x.contiguous()?.matmul(&self.0.t()?)?;
        let mut first = 0;
        let parts = group.iter().map(|linear| {
            let part = whole.narrow(1, first, linear.outputs())?.contiguous()?;
            first += linear.outputs();
            Ok(part)
        });
        Ok(Some(parts.collect::<Result<_>>()?))
    }
}
