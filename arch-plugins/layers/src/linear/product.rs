//! Products of activations with matrices, shared out over threads in units of sixteen outputs.

use super::matrix::{Matrix, Storage};
use crate::kernel::dense::{self, Product};
use crate::kernel::quantized::{self, View};
use crate::kernel::simd::LANES;
use crate::kernel::{Isa, Shared, pool};
use crate::quant::activations::Activations;

/// Activations of about this many bytes are worked on at a time, so that they stay in the second-level cache.
const ROW_BLOCK_BYTES: usize = 256 << 10;
/// Weight bytes times rows that are worth a task of their own.
const TASK_WORK: usize = 96 << 10;

/// Activations as one weight format wants them.
struct Quantized {
    block: usize,
    lead: usize,
    columns: usize,
    values: Activations,
}

/// `x Wᵀ` for several matrices of as many columns: activations are quantized once per block length, and all
/// panels are shared out together.
pub fn multiply_group(matrices: &[&Matrix], x: &[f32], rows: usize, isa: Isa) -> Vec<Vec<f32>> {
    assert!(isa <= Isa::best(), "the processor has no {isa:?}");
    let mut quantized: Vec<Quantized> = Vec::new();
    for matrix in matrices {
        assert!(x.len() == rows * matrix.columns, "activations and weights agree on columns");
        if let Storage::Packed(packed) = &matrix.storage {
            let (block, columns) = (packed.stored().block_len(), packed.columns());
            let known =
                quantized.iter().any(|q| (q.block, q.lead, q.columns) == (block, matrix.lead, columns));
            if !known {
                let values = Activations::quantize(isa, x, rows, matrix.columns, matrix.lead, columns, block);
                quantized.push(Quantized { block, lead: matrix.lead, columns, values });
            }
        }
    }
    let mut results: Vec<Vec<f32>> = matrices.iter().map(|matrix| vec![0f32; rows * matrix.rows]).collect();
    let jobs: Vec<Job<'_>> = matrices
        .iter()
        .zip(&mut results)
        .map(|(matrix, out)| Job::new(matrix, x, &quantized, rows, Shared(out.as_mut_ptr())))
        .collect();
    let mut tasks = Vec::new();
    for (index, job) in jobs.iter().enumerate() {
        let units = job.matrix.rows.div_ceil(LANES);
        let work = job.unit_bytes * rows.div_ceil(2);
        let spread = units.div_ceil(4 * pool::threads());
        let run = TASK_WORK.div_ceil(work.max(1)).max(spread).max(1);
        tasks.extend((0..units.div_ceil(run)).map(|i| (index, i * run, ((i + 1) * run).min(units))));
    }
    pool::run(tasks.len(), &|task| {
        let (index, start, end) = tasks[task];
        jobs[index].run(start, end, isa);
    });
    drop(jobs);
    results
}

/// One matrix of a group, ready to be shared out in units of sixteen outputs.
struct Job<'a> {
    matrix: &'a Matrix,
    x: &'a [f32],
    activations: Option<&'a Activations>,
    rows: usize,
    out: Shared<f32>,
    unit_bytes: usize,
}

impl<'a> Job<'a> {
    fn new(
        matrix: &'a Matrix,
        x: &'a [f32],
        quantized: &'a [Quantized],
        rows: usize,
        out: Shared<f32>,
    ) -> Self {
        let (activations, unit_bytes) = match &matrix.storage {
            Storage::Dense { stride, .. } => (None, stride * LANES),
            Storage::Packed(packed) => {
                let key = (packed.stored().block_len(), matrix.lead, packed.columns());
                let found = quantized.iter().find(|q| (q.block, q.lead, q.columns) == key);
                (found.map(|q| &q.values), packed.panel_bytes())
            }
            Storage::Placed(_) => unreachable!("matrices off the host are multiplied there"),
        };
        Self { matrix, x, activations, rows, out, unit_bytes }
    }

    /// Outputs `16 · start .. 16 · end` for all rows.
    fn run(&self, start: usize, end: usize, isa: Isa) {
        let outputs = self.matrix.rows;
        match &self.matrix.storage {
            Storage::Dense { raw, start: first, stride } => {
                let columns = self.matrix.columns;
                let kernel = dense::kernel(raw.stored()).expect("dense storage has a dense kernel");
                let product = Product {
                    x: self.x.as_ptr(),
                    x_stride: columns,
                    w: raw.bytes()[*first..].as_ptr(),
                    w_stride: *stride,
                    columns,
                    out: self.out.0,
                    out_stride: outputs,
                };
                let block = (ROW_BLOCK_BYTES / (4 * columns)).max(8);
                for row in (0..self.rows).step_by(block) {
                    let rows = (row, (row + block).min(self.rows));
                    // SAFETY: the matrix was checked against its tensor when it was loaded, `x` and `out`
                    // against rows and columns by the caller; units of other tasks are other outputs.
                    unsafe { kernel(isa, product, rows, (start * LANES, (end * LANES).min(outputs))) }
                }
            }
            Storage::Packed(packed) => {
                let kernel =
                    quantized::kernel(packed.stored()).expect("packed storage has a quantized kernel");
                let activations = self.activations.expect("activations are quantized for each format");
                let view = View::of(activations);
                let block = (ROW_BLOCK_BYTES / activations.columns).max(8);
                for row in (0..self.rows).step_by(block) {
                    let rows = (row, (row + block).min(self.rows));
                    for panel in start..end {
                        let width = LANES.min(outputs - panel * LANES);
                        // SAFETY: panel and activations are of one format and width, `out` has a row of
                        // `outputs` per row of activations; units of other tasks are other outputs.
                        unsafe {
                            let data = packed.as_ptr().add(panel * packed.panel_bytes());
                            kernel(isa, data, view, rows, self.out.at(panel * LANES), outputs, width);
                        }
                    }
                }
            }
            Storage::Placed(_) => unreachable!("matrices off the host are multiplied there"),
        }
    }
}
