//! One rank's part of a weight matrix, in whatever format.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use super::blocks::{FileBlocks, Quantizing, RowMap};
use super::placed::Placed;
use crate::device::on_host;
use crate::error::{Error, Result};
use crate::placement::{Placement, Progress};
use crate::quant::Scheme;
use crate::quant::pack::Packed;
use crate::weights::{RawTensor, Stored, widen};

#[derive(Clone)]
pub(super) enum Storage {
    /// Rows in the mapped file, `stride` bytes apart, from byte `start` of the tensor on.
    Dense { raw: RawTensor, start: usize, stride: usize },
    /// Quantized, in the kernels' order.
    Packed(Arc<Packed>),
    /// Off the host.
    Placed(Placed),
}

/// A matrix `[rows, columns]`; cheap to clone.
#[derive(Clone)]
pub struct Matrix {
    pub(super) storage: Storage,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Columns of the stored blocks before the first of this matrix (a share that begins inside a block).
    pub(super) lead: usize,
}

impl Matrix {
    /// The part of `raw [.., columns]` given by row ranges and a column range, quantized when asked to.
    pub fn load(
        raw: &RawTensor,
        rows: &[Range<usize>],
        columns: Range<usize>,
        quantize: Option<Scheme>,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let map = row_map(raw, rows, &columns)?;
        let matrix = if raw.stored().is_dense() {
            match quantize.and_then(|scheme| scheme.stored(columns.len())) {
                Some(stored) => Self::quantized(raw, &map, columns.clone(), stored)?,
                None => Self::dense(raw, &map, columns.clone())?,
            }
        } else {
            Self::blocks(raw, &map, columns.clone())?
        };
        if let Storage::Packed(_) = &matrix.storage {
            raw.set_aside();
        }
        let values = map.len() * columns.len();
        let file_bytes = values / raw.stored().block_len() * raw.stored().block_bytes();
        progress.loaded(file_bytes as u64, matrix.bytes())?;
        Ok(matrix)
    }

    /// The same part where a placement says, in its dtype.
    pub fn place(
        raw: &RawTensor,
        rows: &[Range<usize>],
        columns: Range<usize>,
        quantize: Option<Scheme>,
        placement: &Placement,
    ) -> Result<Self> {
        if on_host(&placement.device) {
            return Self::load(raw, rows, columns, quantize, &*placement.progress);
        }
        let map = row_map(raw, rows, &columns)?;
        let (rows, width) = (map.len(), columns.len());
        let (placed, lead) = Placed::load(raw, &map, columns, quantize, placement)?;
        raw.set_aside();
        let matrix = Self { storage: Storage::Placed(placed), rows, columns: width, lead };
        let file_bytes = rows * width / raw.stored().block_len() * raw.stored().block_bytes();
        placement.progress.loaded(file_bytes as u64, matrix.bytes())?;
        Ok(matrix)
    }

    /// `x Wᵀ` off the host.
    pub(super) fn multiply_placed(&self, x: &Tensor) -> Result<Tensor> {
        match &self.storage {
            Storage::Placed(placed) => placed.multiply(x, self.lead),
            _ => Err(misplaced()),
        }
    }

    /// The same numbers of a dense matrix off the host, lying somewhere else.
    pub(super) fn replace_placed(&mut self, tensor: Tensor) {
        self.storage = Storage::Placed(Placed::Dense(tensor));
    }

    /// The tensor of a dense matrix off the host.
    pub(super) fn placed_dense(&self) -> Option<&Tensor> {
        match &self.storage {
            Storage::Placed(Placed::Dense(tensor)) => Some(tensor),
            _ => None,
        }
    }

    /// Rows by `ids [n]`, off the host: `[n, columns]`.
    pub(crate) fn rows_placed(&self, ids: &Tensor) -> Result<Tensor> {
        match &self.storage {
            Storage::Placed(placed) => placed.rows(ids),
            _ => Err(misplaced()),
        }
    }

    fn quantized(raw: &RawTensor, map: &RowMap, columns: Range<usize>, stored: Stored) -> Result<Self> {
        let (rows, width) = (map.len(), columns.len());
        let packed = Packed::pack(stored, rows, width, &Quantizing { raw, rows: map, columns, stored })?;
        Ok(Self { storage: Storage::Packed(Arc::new(packed)), rows, columns: width, lead: 0 })
    }

    fn dense(raw: &RawTensor, map: &RowMap, columns: Range<usize>) -> Result<Self> {
        let size = raw.stored().block_bytes();
        let (rows, width) = (map.len(), columns.len());
        if let Some(range) = map.single() {
            let start = range.start * raw.row_bytes() + columns.start * size;
            let storage = Storage::Dense { raw: raw.clone(), start, stride: raw.row_bytes() };
            return Ok(Self { storage, rows, columns: width, lead: 0 });
        }
        // Rows from several places: this rank's share is copied together, once.
        let mut bytes = Vec::with_capacity(rows * width * size);
        for row in 0..rows {
            let start = map.source(row) * raw.row_bytes() + columns.start * size;
            bytes.extend_from_slice(&raw.bytes()[start..start + width * size]);
        }
        let raw = RawTensor::from_bytes(bytes, raw.stored(), vec![rows, width])?;
        let stride = raw.row_bytes();
        Ok(Self { storage: Storage::Dense { raw, start: 0, stride }, rows, columns: width, lead: 0 })
    }

    fn blocks(raw: &RawTensor, map: &RowMap, columns: Range<usize>) -> Result<Self> {
        let stored = raw.stored();
        let block = stored.block_len();
        // A share that begins or ends inside a block takes the whole block; its activations are padded with
        // zeros.
        let covered = columns.start / block * block..columns.end.next_multiple_of(block);
        let bytes = stored.bytes(covered.start)..stored.bytes(covered.end);
        let rows = map.len();
        let packed = Packed::pack(stored, rows, covered.len(), &FileBlocks { raw, rows: map, bytes })?;
        Ok(Self {
            storage: Storage::Packed(Arc::new(packed)),
            rows,
            columns: columns.len(),
            lead: columns.start - covered.start,
        })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes of weights.
    pub fn bytes(&self) -> u64 {
        match &self.storage {
            Storage::Dense { raw, .. } => (raw.stored().bytes(self.columns) * self.rows) as u64,
            Storage::Packed(packed) => packed.bytes(),
            Storage::Placed(placed) => placed.bytes(),
        }
    }

    /// Format of the weights.
    pub fn stored(&self) -> Stored {
        match &self.storage {
            Storage::Dense { raw, .. } => raw.stored(),
            Storage::Packed(packed) => packed.stored(),
            Storage::Placed(placed) => placed.stored(),
        }
    }

    /// Values of one row, on the host.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.columns, "row {row} of {}", self.rows);
        match &self.storage {
            Storage::Dense { raw, start, stride } => {
                let start = start + row * stride;
                let mut values = Vec::with_capacity(self.columns);
                widen(
                    raw.stored(),
                    &raw.bytes()[start..start + raw.stored().bytes(self.columns)],
                    &mut values,
                );
                out.copy_from_slice(&values);
            }
            Storage::Packed(packed) => {
                if packed.columns() == self.columns {
                    return packed.row(row, out);
                }
                let mut all = vec![0.0; packed.columns()];
                packed.row(row, &mut all);
                out.copy_from_slice(&all[self.lead..self.lead + self.columns]);
            }
            Storage::Placed(_) => unreachable!("rows off the host are looked up there"),
        }
    }

    /// `x Wᵀ` for `rows` rows of `x`, row-major.
    #[cfg(test)]
    pub fn multiply(&self, x: &[f32], rows: usize, isa: crate::kernel::Isa) -> Vec<f32> {
        super::product::multiply_group(&[self], x, rows, isa).remove(0)
    }
}

/// Checks that a part lies within its tensor.
fn row_map(raw: &RawTensor, rows: &[Range<usize>], columns: &Range<usize>) -> Result<RowMap> {
    let map = RowMap::new(rows);
    let outside = map.end() > raw.rows() || columns.end > raw.columns();
    if outside || columns.is_empty() {
        return Err(Error::Internal(format!(
            "rows {rows:?} and columns {columns:?} of a matrix of shape {:?}",
            raw.shape()
        )));
    }
    Ok(map)
}

fn misplaced() -> Error {
    Error::Internal("a matrix on the host was given activations of another device".into())
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::kernel::Isa;
    use crate::placement::Silent;
    use crate::quant::activations::Activations;
    use crate::quant::quantize_rows;

    const QUANTIZED: [Stored; 8] = [
        Stored::Q4_0,
        Stored::Q4_1,
        Stored::Q5_0,
        Stored::Q5_1,
        Stored::Q8_0,
        Stored::Q4K,
        Stored::Q5K,
        Stored::Q6K,
    ];

    /// Numbers in −1..1, the same for the same seed.
    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    fn quantized(stored: Stored, rows: usize, columns: usize) -> RawTensor {
        let blocks = quantize_rows(numbers(rows * columns, 7), columns, stored).unwrap();
        RawTensor::from_bytes(blocks, stored, vec![rows, columns]).unwrap()
    }

    fn load(raw: &RawTensor, rows: &[Range<usize>], columns: Range<usize>) -> Matrix {
        Matrix::load(raw, rows, columns, None, &Silent).unwrap()
    }

    fn whole(raw: &RawTensor) -> Matrix {
        load(raw, std::slice::from_ref(&(0..raw.rows())), 0..raw.columns())
    }

    /// `x Wᵀ` in f64 from dequantized weights.
    fn reference(w: &[f32], x: &[f32], rows: usize, columns: usize) -> Vec<f64> {
        let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        (0..rows)
            .flat_map(|m| w.chunks_exact(columns).map(move |w| dot(&x[m * columns..(m + 1) * columns], w)))
            .collect()
    }

    /// What quantized activations stand for.
    fn rounded(x: &[f32], rows: usize, columns: usize, block: usize) -> Vec<f32> {
        let a = Activations::quantize(Isa::Portable, x, rows, columns, 0, columns, block);
        a.codes.iter().enumerate().map(|(i, &code)| f32::from(code) * a.scales[i / 32]).collect()
    }

    fn check(got: &[f32], expected: &[f64], limit: f64, what: &str) {
        for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
            let error = (f64::from(*got) - expected).abs();
            assert!(error <= limit, "{what}: value {i} is {got}, expected {expected}");
        }
    }

    #[test]
    fn every_format_on_every_level_multiplies_what_its_codes_mean() {
        let (n, k) = (37, 512);
        for stored in QUANTIZED {
            let raw = quantized(stored, n, k);
            let matrix = whole(&raw);
            let weights = raw.to_f32();
            for rows in [1, 2, 3, 9, 20] {
                let x = numbers(rows * k, 11);
                let rounded = rounded(&x, rows, k, stored.block_len());
                let expected = reference(&weights, &rounded, rows, k);
                for isa in Isa::available() {
                    let got = matrix.multiply(&x, rows, isa);
                    // Sums of simple formats with a minimum are rounded to f16, as the formats' own
                    // arithmetic does.
                    let limit = if matches!(stored, Stored::Q4_1 | Stored::Q5_1) { 2e-2 } else { 1e-4 };
                    check(&got, &expected, limit, &format!("{stored:?} {isa:?} {rows} rows"));
                }
            }
        }
    }

    #[test]
    fn a_row_alone_and_in_company_has_the_same_bits() {
        let (n, k, rows) = (50, 256, 21);
        let x = numbers(rows * k, 3);
        let raws = QUANTIZED.map(|stored| quantized(stored, n, k));
        let dense = RawTensor::from_f32(&numbers(n * k, 5), vec![n, k]).unwrap();
        for raw in raws.iter().chain([&dense]) {
            let matrix = whole(raw);
            for isa in Isa::available() {
                let together = matrix.multiply(&x, rows, isa);
                for row in 0..rows {
                    let alone = matrix.multiply(&x[row * k..(row + 1) * k], 1, isa);
                    assert_eq!(together[row * n..(row + 1) * n], alone, "{:?} {isa:?}", raw.stored());
                }
            }
        }
    }

    #[test]
    fn dense_formats_are_widened_exactly() {
        let (n, k, rows) = (19, 67, 7);
        let values = numbers(n * k, 5);
        let x = numbers(rows * k, 6);
        let half =
            |bits: fn(f32) -> u16| values.iter().flat_map(|&v| bits(v).to_le_bytes()).collect::<Vec<u8>>();
        let shape = || vec![n, k];
        let raws = [
            RawTensor::from_f32(&values, shape()).unwrap(),
            RawTensor::from_bytes(half(|v| bf16::from_f32(v).to_bits()), Stored::BF16, shape()).unwrap(),
            RawTensor::from_bytes(half(|v| f16::from_f32(v).to_bits()), Stored::F16, shape()).unwrap(),
        ];
        for raw in raws {
            let expected = reference(&raw.to_f32(), &x, rows, k);
            for isa in Isa::available() {
                let got = whole(&raw).multiply(&x, rows, isa);
                check(&got, &expected, 1e-5, &format!("{:?} {isa:?}", raw.stored()));
            }
        }
    }

    #[test]
    fn rows_read_back_are_those_of_the_file() {
        for stored in QUANTIZED {
            let raw = quantized(stored, 21, 256);
            let matrix = whole(&raw);
            for (row, expected) in raw.to_f32().chunks_exact(256).enumerate() {
                let mut got = vec![0.0; 256];
                matrix.row(row, &mut got);
                check(&got, &expected.iter().map(|&v| f64::from(v)).collect::<Vec<_>>(), 1e-6, "row");
            }
        }
    }

    #[test]
    fn shares_of_ranks_add_up_to_the_whole() {
        let (n, k, rows) = (32, 256, 3);
        let x = numbers(rows * k, 9);
        for stored in [Stored::Q4_1, Stored::Q6K, Stored::Q8_0] {
            let raw = quantized(stored, n, k);
            let all = whole(&raw).multiply(&x, rows, Isa::best());
            let mut sum = vec![0f64; n * rows];
            for rank in 0..4 {
                // 64 columns: inside a block of the formats of 256.
                let columns = rank * 64..(rank + 1) * 64;
                let part = load(&raw, std::slice::from_ref(&(0..n)), columns.clone());
                let own: Vec<f32> = x.chunks_exact(k).flat_map(|x| x[columns.clone()].to_vec()).collect();
                for (sum, part) in sum.iter_mut().zip(part.multiply(&own, rows, Isa::best())) {
                    *sum += f64::from(part);
                }
            }
            // Activations are quantized per share, so the two differ by their rounding.
            check(&all, &sum, 0.2, &format!("{stored:?}"));
            let picked = load(&raw, &[24..32, 0..8], 0..k).multiply(&x, rows, Isa::best());
            for row in 0..rows {
                assert_eq!(picked[row * 16..row * 16 + 8], all[row * n + 24..row * n + 32]);
                assert_eq!(picked[row * 16 + 8..row * 16 + 16], all[row * n..row * n + 8]);
            }
        }
    }

    #[test]
    fn quantizing_while_loading_stays_within_the_format() {
        let (n, k) = (24, 512);
        let raw = RawTensor::from_f32(&numbers(n * k, 5), vec![n, k]).unwrap();
        let cases = [
            (Scheme::Q8_0, 0.005),
            (Scheme::Q6K, 0.02),
            (Scheme::Q5K, 0.04),
            (Scheme::Q4K, 0.08),
            (Scheme::Q4_0, 0.08),
        ];
        for (scheme, limit) in cases {
            let rows = 0..n;
            let matrix =
                Matrix::load(&raw, std::slice::from_ref(&rows), 0..k, Some(scheme), &Silent).unwrap();
            let mut error = 0f64;
            for (row, expected) in raw.to_f32().chunks_exact(k).enumerate() {
                let mut got = vec![0.0; k];
                matrix.row(row, &mut got);
                error += got.iter().zip(expected).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            }
            let rms = (error / (n * k) as f64).sqrt();
            assert!(rms < limit, "{scheme:?}: rms {rms} in −1..1");
            assert!(rms > limit / 20.0, "{scheme:?}: rms {rms} is too good to be quantized");
        }
    }
}
