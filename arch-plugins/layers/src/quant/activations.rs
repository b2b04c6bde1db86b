//! Activations as signed bytes, so that products with quantized weights are integer products.

use half::f16;

use crate::kernel::{Isa, Shared, pointwise, pool};

/// Rows of quantized activations.
///
/// Blocks of 32 (for simple weight formats) have an f16-rounded scale `max|x| / 127`; blocks of 256 (for
/// formats of 256) an f32 scale. Both are what the GGUF formats' reference arithmetic uses.
#[derive(Debug, Default)]
pub struct Activations {
    /// `[rows, columns]`
    pub codes: Vec<i8>,
    /// `[rows, columns / 32]`
    pub scales: Vec<f32>,
    /// Scale times sum of codes, `[rows, columns / 32]`.
    pub sums: Vec<f32>,
    /// Sum of codes, `[rows, columns / 16]`.
    pub totals: Vec<i32>,
    /// Columns of a row.
    pub columns: usize,
}

impl Activations {
    /// Quantizes `rows` rows of `x`, each of `width` values, placed `lead` columns into zero rows of
    /// `columns` (a multiple of `block`, which is 32 or 256).
    pub fn quantize(
        isa: Isa,
        x: &[f32],
        rows: usize,
        width: usize,
        lead: usize,
        columns: usize,
        block: usize,
    ) -> Self {
        assert!(x.len() == rows * width && lead + width <= columns && columns.is_multiple_of(block));
        let mut result = Self {
            codes: vec![0; rows * columns],
            scales: vec![0.0; rows * columns / 32],
            sums: vec![0.0; rows * columns / 32],
            totals: vec![0; rows * columns / 16],
            columns,
        };
        let codes = Shared(result.codes.as_mut_ptr());
        let scales = Shared(result.scales.as_mut_ptr());
        let sums = Shared(result.sums.as_mut_ptr());
        let totals = Shared(result.totals.as_mut_ptr());
        let groups = columns / 32;
        let grain = (1 << 15) / columns.max(1) + 1;
        pool::split(rows, grain, &|start, end| {
            let mut placed = vec![0f32; if width == columns { 0 } else { columns }];
            for row in start..end {
                let mut source = &x[row * width..(row + 1) * width];
                if width != columns {
                    placed[lead..lead + width].copy_from_slice(source);
                    source = &placed;
                }
                // SAFETY: `source` has `columns` values; each row writes its own part of vectors sized for
                // all rows; `isa` is a level of this processor.
                unsafe {
                    let (scales, totals) = (scales.at(row * groups), totals.at(row * groups * 2));
                    let codes = codes.at(row * columns);
                    pointwise::quantize_row(isa, source.as_ptr(), columns, block, codes, scales, totals);
                    for group in 0..groups {
                        let total = *totals.add(2 * group) + *totals.add(2 * group + 1);
                        let sum = *scales.add(group) * total as f32;
                        *sums.at(row * groups + group) =
                            if block == 32 { f16::from_f32(sum).to_f32() } else { sum };
                    }
                }
            }
        });
        result
    }
}
