//! What a model's weights will take, told from headers alone.

use candle_core::DType;
use plugin_sdk::{Options, Plan};

use crate::attention::SCORES;
use crate::device::Kept;
use crate::error::Result;
use crate::quant::Scheme;
use crate::serving::refuse_options;
use crate::weights::{Stored, Weights};

/// Weights on one rank.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// As they will lie in memory, mapped ones included.
    pub total: u64,
    /// Of these, bytes that stay in the mapped file.
    pub mapped: u64,
}

/// Estimates the weights of one rank. `ignored` are beginnings of names nobody will ask for; `is_linear` says which
/// matrices are quantized when the options ask for it.
///
/// Every tensor is counted as shared evenly; the few small ones that each rank holds whole are lost in rounding.
pub fn weight_bytes(
    w: &Weights,
    options: &Options<'_>,
    ignored: &[&str],
    is_linear: impl Fn(&str) -> bool,
) -> Result<WeightBytes> {
    refuse_options(options)?;
    let (scheme, kept) = (Scheme::parse(options.quantize)?, Kept::planned(options)?);
    let mut sum = WeightBytes::default();
    for name in w.names().iter().filter(|name| !ignored.iter().any(|prefix| name.starts_with(prefix))) {
        let (shape, stored) = (w.shape(name)?, w.stored(name)?);
        let values: usize = shape.iter().product();
        let columns = shape.last().copied().unwrap_or(1);
        let quantized =
            scheme.filter(|_| stored.is_dense() && is_linear(name)).and_then(|s| s.stored(columns));
        let format = match (quantized.unwrap_or(stored), kept) {
            // What is not quantized is uploaded in the dtype of the activations.
            (dense, Kept::Placed(dtype)) if dense.is_dense() => Stored::of(dtype),
            (format, _) => format,
        };
        let bytes = (values / format.block_len() * format.block_bytes() / options.world.max(1)) as u64;
        sum.total += bytes;
        sum.mapped += if format.is_dense() && kept == Kept::Host { bytes } else { 0 };
    }
    Ok(sum)
}

/// The parts of a plan every decoder has: `hidden` and `inner` are the widths of the residual stream and of the widest
/// thing between two linears.
pub fn decoder(weights: WeightBytes, options: &Options<'_>, hidden: usize, inner: usize) -> Result<Plan> {
    let widths = 6 * hidden + 4 * inner;
    let (activation, fixed) = match Kept::planned(options)? {
        Kept::Host => (widths * size_of::<f32>(), 0),
        // Gates and norms are computed in f32 beside the activations.
        Kept::Placed(dtype) => {
            (widths * (size_of::<f32>() + dtype.size_in_bytes()), PLACED_BYTES + scores(dtype))
        }
    };
    Ok(Plan {
        weight_bytes: weights.total,
        mapped_bytes: weights.mapped,
        // A handful of rows of each width live at once.
        activation_bytes_per_token: activation as u64,
        fixed_bytes: fixed as u64,
        ..Plan::default()
    })
}

/// What a GPU's context and the workspaces of its libraries take before anything is computed. Estimated.
const PLACED_BYTES: usize = 600 << 20;

/// Scores, their mask's sum and their softmax.
fn scores(dtype: DType) -> usize {
    3 * SCORES * dtype.size_in_bytes()
}
