//! Matrices off the host: dense ones in the dtype of the activations, quantized ones as candle's [`QTensor`], whose
//! kernels read the blocks of the file as they are.

use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::{QStorage, QTensor};
use candle_core::{D, Tensor};

use super::blocks::{BlockSource, RowMap};
use crate::error::Result;
use crate::placement::Placement;
use crate::quant::{Scheme, ggml_dtype};
use crate::weights::{RawTensor, Stored};

/// One rank's part of a weight matrix, where the rank computes.
#[derive(Clone)]
pub(super) enum Placed {
    /// `[rows, columns]`.
    Dense(Tensor),
    /// `[rows, columns of whole blocks]`.
    Blocks(Arc<QTensor>, Stored),
}

impl Placed {
    /// Uploads rows and columns of a stored matrix, quantizing dense ones when asked to. Gives the columns of the
    /// first block that lie before the part as well.
    pub(super) fn load(
        raw: &RawTensor,
        map: &RowMap,
        columns: Range<usize>,
        quantize: Option<Scheme>,
        placement: &Placement,
    ) -> Result<(Self, usize)> {
        let quantized =
            quantize.filter(|_| raw.stored().is_dense()).and_then(|scheme| scheme.stored(columns.len()));
        if raw.stored().is_dense() && quantized.is_none() {
            return Ok((Self::dense(raw, map, columns, placement)?, 0));
        }
        #[cfg(feature = "cuda")]
        if placement.device.is_cuda() {
            crate::device::cuda::precompiled("a quantized model")?;
        }
        let source = BlockSource::new(raw, map, columns.clone(), quantized);
        let (stored, width) = (source.stored(), source.columns());
        let blocks = source.all(map.len())?;
        let storage = QStorage::from_data(blocks.into(), &placement.device, ggml_dtype(stored)?)?;
        let tensor = QTensor::new(storage, (map.len(), width))?;
        Ok((Self::Blocks(Arc::new(tensor), stored), source.lead()))
    }

    fn dense(raw: &RawTensor, map: &RowMap, columns: Range<usize>, placement: &Placement) -> Result<Self> {
        let dtype = raw.stored().dtype()?;
        let (size, row_bytes) = (raw.stored().block_bytes(), raw.row_bytes());
        let shape = (map.len(), columns.len());
        let upload =
            |bytes: &[u8]| Tensor::from_raw_buffer(bytes, dtype, &[shape.0, shape.1], &placement.device);
        let tensor = match map.single() {
            Some(rows) if columns.len() == raw.columns() => {
                upload(&raw.bytes()[rows.start * row_bytes..rows.end * row_bytes])?
            }
            _ => {
                let mut bytes = Vec::with_capacity(shape.0 * shape.1 * size);
                for row in 0..shape.0 {
                    let start = map.source(row) * row_bytes + columns.start * size;
                    bytes.extend_from_slice(&raw.bytes()[start..start + columns.len() * size]);
                }
                upload(&bytes)?
            }
        };
        Ok(Self::Dense(tensor.to_dtype(placement.dtype)?))
    }

    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Dense(tensor) => (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64,
            Self::Blocks(tensor, _) => tensor.storage_size_in_bytes() as u64,
        }
    }

    pub(super) fn stored(&self) -> Stored {
        match self {
            Self::Dense(tensor) => Stored::of(tensor.dtype()),
            Self::Blocks(_, stored) => *stored,
        }
    }

    /// `x Wᵀ`, `x [.., columns]` of which the first stands `lead` columns into the first block.
    pub(super) fn multiply(&self, x: &Tensor, lead: usize) -> Result<Tensor> {
        let columns = x.dim(D::Minus1)?;
        let flat = x.reshape(((), columns))?;
        let y = match self {
            Self::Dense(weight) => flat.contiguous()?.matmul(&weight.t()?)?,
            Self::Blocks(weight, _) => {
                let stored = weight.shape().dims2()?.1;
                let flat = match stored - columns {
                    0 => flat,
                    missing => flat.pad_with_zeros(1, lead, missing - lead)?,
                };
                flat.contiguous()?.apply_op1_no_bwd(weight.as_ref())?
            }
        };
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = y.dim(1)?;
        }
        Ok(y.reshape(shape)?)
    }

    /// The rows of the matrix that `ids [n]` name, `[n, columns]`, dense as they are and quantized ones widened.
    pub(super) fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Dense(table) => table.index_select(ids, 0)?,
            Self::Blocks(table, _) => table.embedding(ids)?,
        })
    }
}
