//! Linear layers: `y = x Wᵀ + b`, whatever the weight's format, its split over ranks and its kernel.
//!
//! A model says which split a projection has; how weights are stored, quantized at load time and multiplied
//! is decided here. A row-parallel layer adds up over ranks and then adds its bias, once.

mod blocks;
mod heads;
mod matrix;
mod pack;
mod placed;
mod product;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Tensor};

pub use heads::{HeadSplit, QkvLinear};
pub use matrix::Matrix;
use pack::Pack;

use crate::comm::Communicator;
use crate::device::on_host;
use crate::error::{Error, Result};
use crate::kernel::Isa;
use crate::slice;
use crate::weights::{RawTensor, Weights};

/// Whether a linear has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// It has none.
    None,
    /// It must have one.
    Required,
    /// It has one if the file does.
    IfPresent,
}

/// A linear layer; cheap to clone.
///
/// Every constructor takes the place that holds `weight` (and `bias`):
/// `Linear::column_parallel(&w.pp("gate_proj"), hidden, intermediate, Bias::None)`.
#[derive(Clone)]
pub struct Linear {
    matrix: Matrix,
    bias: Option<Tensor>,
    /// Set when results of ranks must be added up.
    reduce: Option<Arc<dyn Communicator>>,
}

impl std::fmt::Debug for Linear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Linear({} × {} {:?})", self.outputs(), self.inputs(), self.matrix.stored())
    }
}

/// What [`Linear::packed`] made of a group; nothing, on the host.
#[derive(Debug, Clone, Default)]
pub struct Packed(Option<Pack>);

/// An even share of `size` for a rank.
pub fn share(size: usize, comm: &dyn Communicator, what: &str) -> Result<Range<usize>> {
    let world = comm.world();
    if !size.is_multiple_of(world) {
        return Err(Error::Unsupported(format!(
            "{what} of {size} cannot be shared by {world} ranks; use a number of ranks that divides it"
        )));
    }
    let each = size / world;
    Ok(comm.rank() * each..(comm.rank() + 1) * each)
}

impl Linear {
    /// The whole matrix on each rank.
    pub fn replicated(w: &Weights, inputs: usize, outputs: usize, bias: Bias) -> Result<Self> {
        Self::load(w, [outputs, inputs], std::slice::from_ref(&(0..outputs)), 0..inputs, bias, true)
    }

    /// The whole matrix on each rank, kept as stored whatever the placement's quantization (routers).
    pub fn replicated_plain(w: &Weights, inputs: usize, outputs: usize, bias: Bias) -> Result<Self> {
        Self::load(w, [outputs, inputs], std::slice::from_ref(&(0..outputs)), 0..inputs, bias, false)
    }

    /// This rank's even share of the outputs.
    pub fn column_parallel(w: &Weights, inputs: usize, outputs: usize, bias: Bias) -> Result<Self> {
        let rows = share(outputs, &*w.placement().comm, &w.name(""))?;
        Self::load(w, [outputs, inputs], &[rows], 0..inputs, bias, true)
    }

    /// Exactly these row ranges of the stored `[outputs, inputs]` matrix, in this order.
    pub fn rows(
        w: &Weights,
        inputs: usize,
        outputs: usize,
        rows: &[Range<usize>],
        bias: Bias,
    ) -> Result<Self> {
        Self::load(w, [outputs, inputs], rows, 0..inputs, bias, true)
    }

    /// This rank's even share of the inputs; results of all ranks are added up.
    pub fn row_parallel(w: &Weights, inputs: usize, outputs: usize, bias: Bias) -> Result<Self> {
        let columns = share(inputs, &*w.placement().comm, &w.name(""))?;
        Self::columns(w, inputs, outputs, columns, bias)
    }

    /// These input columns of the stored matrix; results of all ranks are added up.
    pub fn columns(
        w: &Weights,
        inputs: usize,
        outputs: usize,
        columns: Range<usize>,
        bias: Bias,
    ) -> Result<Self> {
        let rows = 0..outputs;
        let mut linear = Self::load(w, [outputs, inputs], std::slice::from_ref(&rows), columns, bias, true)?;
        let comm = &w.placement().comm;
        linear.reduce = (comm.world() > 1).then(|| comm.clone());
        Ok(linear)
    }

    /// Part of a matrix `[out, in]` that itself is part of a stack: these rows and columns, no bias, nothing
    /// added up over ranks. `w` gives the placement.
    pub fn from_raw(
        raw: &RawTensor,
        rows: &[Range<usize>],
        columns: Range<usize>,
        w: &Weights,
    ) -> Result<Self> {
        let placement = w.placement();
        let matrix = Matrix::place(raw, rows, columns, placement.quantize, placement)
            .map_err(|error| error.within(w.name("")))?;
        Ok(Self::from_matrix(matrix))
    }

    /// A matrix without bias, nothing added up over ranks.
    pub fn from_matrix(matrix: Matrix) -> Self {
        Self { matrix, bias: None, reduce: None }
    }

    fn load(
        w: &Weights,
        shape: [usize; 2],
        rows: &[Range<usize>],
        columns: Range<usize>,
        bias: Bias,
        quantizable: bool,
    ) -> Result<Self> {
        let placement = w.placement();
        let raw = w.raw_of("weight", &shape)?;
        let quantize = placement.quantize.filter(|_| quantizable);
        let matrix = Matrix::place(&raw, rows, columns, quantize, placement)
            .map_err(|error| error.within(w.name("weight")))?;
        let wanted = match bias {
            Bias::None => false,
            Bias::Required => true,
            Bias::IfPresent => w.contains("bias"),
        };
        let bias = if wanted { Some(load_bias(w, shape[0], rows)?) } else { None };
        Ok(Self { matrix, bias, reduce: None })
    }

    /// Inputs on this rank.
    pub fn inputs(&self) -> usize {
        self.matrix.columns()
    }

    /// Outputs on this rank.
    pub fn outputs(&self) -> usize {
        self.matrix.rows()
    }

    /// The matrix as a dense tensor off the host, `[outputs, inputs]`, if it is one and that is all the layer does.
    #[cfg(feature = "cuda")]
    pub(crate) fn placed_dense(&self) -> Option<&Tensor> {
        self.matrix.placed_dense().filter(|_| self.bias.is_none())
    }

    /// Bytes of weights on this rank.
    pub fn bytes(&self) -> u64 {
        self.matrix.bytes()
    }

    /// `x [.., inputs]` → `[.., outputs]` in x's dtype.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.complete(self.forward_partial(x)?)
    }

    /// As [`Linear::forward`], but this rank's part alone and without bias: for results that are added to
    /// others before they are added up over ranks.
    pub fn forward_partial(&self, x: &Tensor) -> Result<Tensor> {
        Ok(products(&[self], x)?.remove(0))
    }

    /// Puts the matrices of linears that always take the same input side by side, where that saves time.
    pub fn packed(group: &mut [&mut Linear]) -> Result<Packed> {
        Ok(Packed(Pack::of(group)?))
    }

    /// As [`Linear::forward_group`], for a group that was [packed](Linear::packed).
    pub fn forward_packed(packed: &Packed, group: &[&Linear], x: &Tensor) -> Result<Vec<Tensor>> {
        if let Some(pack) = &packed.0
            && let Some(parts) = pack.multiply(group, x)?
        {
            return parts.into_iter().zip(group).map(|(y, linear)| linear.complete(y)).collect();
        }
        Self::forward_group(group, x)
    }

    /// Several linears of one input in one parallel section.
    pub fn forward_group(group: &[&Linear], x: &Tensor) -> Result<Vec<Tensor>> {
        products(group, x)?.into_iter().zip(group).map(|(y, linear)| linear.complete(y)).collect()
    }

    fn complete(&self, y: Tensor) -> Result<Tensor> {
        let y = match &self.reduce {
            Some(comm) => comm.all_reduce_sum(&y)?,
            None => y,
        };
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(&bias.to_dtype(y.dtype())?)?,
            None => y,
        })
    }
}

/// The rows of the bias that belong to the matrix's rows.
fn load_bias(w: &Weights, outputs: usize, rows: &[Range<usize>]) -> Result<Tensor> {
    let placement = w.placement();
    let dtype = if on_host(&placement.device) { DType::F32 } else { placement.dtype };
    let all = w.tensor("bias", &[outputs], dtype)?;
    let parts =
        rows.iter().map(|range| all.narrow(0, range.start, range.len())).collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::cat(&parts, 0)?)
}

fn products(group: &[&Linear], x: &Tensor) -> Result<Vec<Tensor>> {
    let (rows, columns) = slice::rows_columns(x)?;
    if let Some(linear) = group.iter().find(|linear| linear.inputs() != columns) {
        return Err(Error::Internal(format!("{linear:?} was given {columns} inputs")));
    }
    if !on_host(x.device()) {
        return group.iter().map(|linear| linear.matrix.multiply_placed(x)).collect();
    }
    let dense = slice::contiguous(x)?;
    let matrices: Vec<&Matrix> = group.iter().map(|linear| &linear.matrix).collect();
    let results =
        slice::lend(&dense, |values| product::multiply_group(&matrices, values, rows, Isa::best()))?;
    let outputs = results.into_iter().zip(group).map(|(values, linear)| {
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = linear.outputs();
        }
        slice::tensor(values, shape, x.dtype())
    });
    outputs.collect()
}
