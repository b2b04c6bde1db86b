//! What a model's weights will take, told from headers alone.

use plugin_sdk::{Options, Plan};

use crate::error::Result;
use crate::quant::Scheme;
use crate::serving::refuse_options;
use crate::weights::Weights;

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
    let scheme = Scheme::parse(options.quantize)?;
    let mut sum = WeightBytes::default();
    for name in w.names().iter().filter(|name| !ignored.iter().any(|prefix| name.starts_with(prefix))) {
        let (shape, stored) = (w.shape(name)?, w.stored(name)?);
        let values: usize = shape.iter().product();
        let columns = shape.last().copied().unwrap_or(1);
        let quantized =
            scheme.filter(|_| stored.is_dense() && is_linear(name)).and_then(|s| s.stored(columns));
        let kept = quantized.unwrap_or(stored);
        let bytes = (values / kept.block_len() * kept.block_bytes() / options.world.max(1)) as u64;
        sum.total += bytes;
        sum.mapped += if kept.is_dense() { bytes } else { 0 };
    }
    Ok(sum)
}

/// The parts of a plan every decoder has: `hidden` and `inner` are the widths of the residual stream and of the widest
/// thing between two linears.
pub fn decoder(weights: WeightBytes, hidden: usize, inner: usize) -> Plan {
    Plan {
        weight_bytes: weights.total,
        mapped_bytes: weights.mapped,
        // A handful of rows of each width live at once.
        activation_bytes_per_token: ((6 * hidden + 4 * inner) * size_of::<f32>()) as u64,
        ..Plan::default()
    }
}
