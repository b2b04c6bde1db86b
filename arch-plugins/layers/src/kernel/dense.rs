//! Dense matrix (f32, bf16 or f16 as stored) times f32 activations.
//!
//! A result is sixteen partial sums over columns `k mod 16`, added up at the end in a fixed order, whatever
//! the number of rows. Weights are widened in registers, never in memory.

#![allow(clippy::needless_range_loop, reason = "register tiles are indexed the same way throughout")]

use super::by_isa;
use super::simd::{LANES, Simd};

/// An element type of a weight.
trait Element {
    const SIZE: usize;
    /// # Safety
    /// 16 elements are readable at `p`; the processor has the level of `S`.
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
}

struct F32;
struct F16;
struct Bf16;

impl Element for F32 {
    const SIZE: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: passed on; the load needs no alignment.
        unsafe { S::load(p.cast()) }
    }
}
impl Element for F16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: passed on.
        unsafe { S::load_f16(p) }
    }
}
impl Element for Bf16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: passed on.
        unsafe { S::load_bf16(p) }
    }
}

/// Operands of a dense product.
#[derive(Clone, Copy)]
pub struct Product {
    /// Activations, `columns` values per row.
    pub x: *const f32,
    /// Elements between rows of `x`.
    pub x_stride: usize,
    /// First weight row.
    pub w: *const u8,
    /// Bytes between weight rows.
    pub w_stride: usize,
    /// Columns to sum over.
    pub columns: usize,
    /// Results, row-major.
    pub out: *mut f32,
    /// Elements between rows of `out`.
    pub out_stride: usize,
}

#[inline(always)]
unsafe fn tile<S: Simd, E: Element, const M: usize, const N: usize>(p: Product, row: usize, n: usize) {
    // SAFETY: the caller promises `row + M` rows of x and out and `n + N` rows of w; the tail is copied
    // before it is read as a full vector.
    unsafe {
        let x: [*const f32; M] = std::array::from_fn(|m| p.x.add((row + m) * p.x_stride));
        let w: [*const u8; N] = std::array::from_fn(|j| p.w.add((n + j) * p.w_stride));
        let mut sum = [[S::splat(0.0); N]; M];
        let whole = p.columns - p.columns % LANES;
        let mut k = 0;
        while k < whole {
            let mut weights = [S::splat(0.0); N];
            for j in 0..N {
                weights[j] = E::load::<S>(w[j].add(k * E::SIZE));
            }
            for m in 0..M {
                let values = S::load(x[m].add(k));
                for j in 0..N {
                    sum[m][j] = S::fma(values, weights[j], sum[m][j]);
                }
            }
            k += LANES;
        }
        let tail = p.columns - whole;
        if tail > 0 {
            let mut weights = [S::splat(0.0); N];
            for j in 0..N {
                let mut bytes = [0u8; LANES * 4];
                let from = w[j].add(whole * E::SIZE);
                std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), tail * E::SIZE);
                weights[j] = E::load::<S>(bytes.as_ptr());
            }
            for m in 0..M {
                let mut padded = [0f32; LANES];
                std::ptr::copy_nonoverlapping(x[m].add(whole), padded.as_mut_ptr(), tail);
                let values = S::load(padded.as_ptr());
                for j in 0..N {
                    sum[m][j] = S::fma(values, weights[j], sum[m][j]);
                }
            }
        }
        for m in 0..M {
            for j in 0..N {
                *p.out.add((row + m) * p.out_stride + n + j) = S::sum(sum[m][j]);
            }
        }
    }
}

#[inline(always)]
unsafe fn product<S: Simd, E: Element, const M: usize, const N: usize>(
    p: Product,
    rows: (usize, usize),
    outputs: (usize, usize),
) {
    // SAFETY: passed on from the caller.
    unsafe {
        let mut n = outputs.0;
        while n < outputs.1 {
            let whole = outputs.1 - n >= N;
            let mut row = rows.0;
            while row < rows.1 {
                match (whole, rows.1 - row >= M) {
                    (true, true) => tile::<S, E, M, N>(p, row, n),
                    (true, false) => tile::<S, E, 1, N>(p, row, n),
                    (false, true) => tile::<S, E, M, 1>(p, row, n),
                    (false, false) => tile::<S, E, 1, 1>(p, row, n),
                }
                row += if rows.1 - row >= M { M } else { 1 };
            }
            n += if whole { N } else { 1 };
        }
    }
}

macro_rules! dense_kernels {
    ($($name:ident: $element:ty),* $(,)?) => {$(
        by_isa! {
            /// Results for a range of rows and a range of outputs; see [`kernel`].
            unsafe fn $name(p: Product, rows: (usize, usize), outputs: (usize, usize)) {
                avx512: product::<super::avx512::Avx512, $element, 4, 4>,
                avx2: product::<super::avx2::Avx2, $element, 2, 2>,
                portable: product::<super::portable::Portable, $element, 1, 2>,
            }
        }
    )*};
}

dense_kernels! { f32_product: F32, f16_product: F16, bf16_product: Bf16 }

/// A dense kernel.
pub type DenseKernel = unsafe fn(super::Isa, Product, (usize, usize), (usize, usize));

/// Kernel for a dense format; `None` for quantized ones.
///
/// Its caller promises that the pointers of [`Product`] are valid for the given rows and outputs and that
/// the processor has the level passed first.
pub fn kernel(stored: crate::weights::Stored) -> Option<DenseKernel> {
    use crate::weights::Stored;
    match stored {
        Stored::F32 => Some(f32_product),
        Stored::F16 => Some(f16_product),
        Stored::BF16 => Some(bf16_product),
        _ => None,
    }
}
