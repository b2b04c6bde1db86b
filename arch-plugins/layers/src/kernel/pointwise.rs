//! Norms and gates, one row at a time.

use super::by_isa;
use super::simd::{LANES, Simd, sigmoid};

/// Runs the body for whole vectors of `0..n` and once more for the rest. A macro, because a closure would not
/// surely become part of the function compiled for a level.
macro_rules! vectors {
    ($n:expr, |$at:ident, $lanes:ident| $body:block) => {
        let whole = $n - $n % LANES;
        let mut next = 0;
        while next < whole {
            let ($at, $lanes) = (next, LANES);
            $body
            next += LANES;
        }
        if whole < $n {
            let ($at, $lanes) = (whole, $n - whole);
            $body
        }
    };
}

#[inline(always)]
unsafe fn load<S: Simd>(p: *const f32, lanes: usize) -> S::F {
    // SAFETY: the caller promises `lanes` readable values.
    unsafe {
        if lanes == LANES {
            return S::load(p);
        }
        let mut padded = [0f32; LANES];
        std::ptr::copy_nonoverlapping(p, padded.as_mut_ptr(), lanes);
        S::load(padded.as_ptr())
    }
}

#[inline(always)]
unsafe fn store<S: Simd>(p: *mut f32, v: S::F, lanes: usize) {
    // SAFETY: the caller promises room for `lanes` values.
    unsafe {
        if lanes == LANES {
            return S::store(p, v);
        }
        let mut all = [0f32; LANES];
        S::store(all.as_mut_ptr(), v);
        std::ptr::copy_nonoverlapping(all.as_ptr(), p, lanes);
    }
}

/// `out = x / rms(x) ⊙ weight`; with `add`, `x` is first replaced by `x + add`.
#[inline(always)]
unsafe fn rms_body<S: Simd>(
    x: *mut f32,
    add: *const f32,
    weight: *const f32,
    out: *mut f32,
    n: usize,
    eps: f32,
) {
    // SAFETY: the caller promises `n` values behind each pointer (`add` may be null).
    unsafe {
        let mut squares = S::splat(0.0);
        vectors!(n, |at, lanes| {
            let mut v = load::<S>(x.add(at), lanes);
            if !add.is_null() {
                v = S::add(v, load::<S>(add.add(at), lanes));
                store::<S>(x.add(at), v, lanes);
            }
            squares = S::fma(v, v, squares);
        });
        let scale = S::splat(1.0 / (S::sum(squares) / n as f32 + eps).sqrt());
        vectors!(n, |at, lanes| {
            let v = S::mul(load::<S>(x.add(at), lanes), scale);
            store::<S>(out.add(at), S::mul(v, load::<S>(weight.add(at), lanes)), lanes);
        });
    }
}

by_isa! {
    /// RMSNorm of one row of `n` values. With a non-null `add`, `x` becomes `x + add` first.
    ///
    /// The caller promises `n` values behind each pointer and the level `isa`.
    pub unsafe fn rms_norm(
        x: *mut f32, add: *const f32, weight: *const f32, out: *mut f32, n: usize, eps: f32,
    ) {
        avx512: rms_body::<super::avx512::Avx512>,
        avx2: rms_body::<super::avx2::Avx2>,
        portable: rms_body::<super::portable::Portable>,
    }
}

/// What becomes of `x` and `gate`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// `x · silu(gate)`
    Silu,
    /// `x · σ(gate)`
    Sigmoid,
}

#[inline(always)]
unsafe fn gate_body<S: Simd>(x: *const f32, gate: *const f32, out: *mut f32, n: usize, kind: Gate) {
    // SAFETY: the caller promises `n` values behind each pointer.
    unsafe {
        vectors!(n, |at, lanes| {
            let g = load::<S>(gate.add(at), lanes);
            let mut factor = sigmoid::<S>(g);
            if kind == Gate::Silu {
                factor = S::mul(factor, g);
            }
            store::<S>(out.add(at), S::mul(load::<S>(x.add(at), lanes), factor), lanes);
        });
    }
}

by_isa! {
    /// `out = x ⊙ silu(gate)` or `x ⊙ σ(gate)` over `n` values; `out` may be `x` or `gate`.
    ///
    /// The caller promises `n` values behind each pointer and the level `isa`.
    pub unsafe fn gated(x: *const f32, gate: *const f32, out: *mut f32, n: usize, kind: Gate) {
        avx512: gate_body::<super::avx512::Avx512>,
        avx2: gate_body::<super::avx2::Avx2>,
        portable: gate_body::<super::portable::Portable>,
    }
}

/// Quantizes a row in blocks of `block` values; see [`crate::quant::activations`].
#[inline(always)]
unsafe fn quantize_body<S: Simd>(
    x: *const f32,
    columns: usize,
    block: usize,
    codes: *mut i8,
    scales: *mut f32,
    totals: *mut i32,
) {
    // SAFETY: the caller promises `columns` values (a multiple of `block`, itself of 32) and room for as
    // many codes, a scale per 32 and a total per 16.
    unsafe {
        let mut at = 0;
        while at < columns {
            let mut largest = S::splat(0.0);
            for v in 0..block / LANES {
                largest = S::max(largest, S::abs(S::load(x.add(at + v * LANES))));
            }
            let largest = S::max_lane(largest);
            let (inverse, scale) = if largest > 0.0 {
                if block == 32 {
                    (127.0 / largest, half::f16::from_f32(largest / 127.0).to_f32())
                } else {
                    (127.0 / largest, 1.0 / (127.0 / largest))
                }
            } else {
                (0.0, 0.0)
            };
            for v in 0..block / LANES {
                let scaled = S::mul(S::load(x.add(at + v * LANES)), S::splat(inverse));
                let rounded = S::round(scaled);
                S::store_i8(codes.add(at + v * LANES), rounded);
                *totals.add(at / LANES + v) = S::sum(rounded) as i32;
            }
            for group in 0..block / 32 {
                *scales.add(at / 32 + group) = scale;
            }
            at += block;
        }
    }
}

by_isa! {
    /// Quantizes one row of activations to signed bytes.
    ///
    /// The caller promises `columns` values, a multiple of `block`; room for as many codes, a scale per 32
    /// columns, a total per 16; and the level `isa`.
    pub unsafe fn quantize_row(
        x: *const f32, columns: usize, block: usize, codes: *mut i8, scales: *mut f32, totals: *mut i32,
    ) {
        avx512: quantize_body::<super::avx512::Avx512>,
        avx2: quantize_body::<super::avx2::Avx2>,
        portable: quantize_body::<super::portable::Portable>,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Isa;

    /// Values that cover the range of the exponential, its ends and a vector's tail.
    fn inputs() -> Vec<f32> {
        let mut values: Vec<f32> = (-2000..2000).map(|i| i as f32 * 0.041).collect();
        values.extend([0.0, -0.0, 90.0, -90.0, 1e4, -1e4, 1e-8]);
        values
    }

    #[test]
    fn gates_follow_the_logistic_function() {
        let gate = inputs();
        let x: Vec<f32> = gate.iter().map(|g| g * 0.5 + 1.0).collect();
        for isa in Isa::available() {
            for kind in [Gate::Silu, Gate::Sigmoid] {
                let mut out = vec![0f32; x.len()];
                // SAFETY: three vectors of one length, a level of this processor.
                unsafe { gated(isa, x.as_ptr(), gate.as_ptr(), out.as_mut_ptr(), x.len(), kind) };
                for ((x, gate), out) in x.iter().zip(&gate).zip(out) {
                    let sigmoid = 1.0 / (1.0 + (-f64::from(*gate)).exp());
                    let factor = if kind == Gate::Silu { sigmoid * f64::from(*gate) } else { sigmoid };
                    let expected = f64::from(*x) * factor;
                    let error = (f64::from(out) - expected).abs();
                    assert!(
                        error <= 1e-6 * expected.abs() + 1e-30,
                        "{isa:?}: gate {gate}: {out}, not {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn norms_add_first_and_have_tails() {
        for isa in Isa::available() {
            for n in [1, 16, 50] {
                let mut x: Vec<f32> = (0..n).map(|i| i as f32 - 3.0).collect();
                let add = vec![0.5f32; n];
                let weight: Vec<f32> = (0..n).map(|i| 1.0 + i as f32 * 0.01).collect();
                let sum: Vec<f64> = x.iter().map(|x| f64::from(x + 0.5)).collect();
                let mut out = vec![0f32; n];
                // SAFETY: four vectors of `n`, a level of this processor.
                unsafe {
                    rms_norm(isa, x.as_mut_ptr(), add.as_ptr(), weight.as_ptr(), out.as_mut_ptr(), n, 1e-5);
                }
                let rms = (sum.iter().map(|x| x * x).sum::<f64>() / n as f64 + 1e-5).sqrt();
                for i in 0..n {
                    assert_eq!(f64::from(x[i]), sum[i]);
                    let expected = sum[i] / rms * f64::from(weight[i]);
                    assert!(
                        (f64::from(out[i]) - expected).abs() < 1e-5,
                        "{isa:?}: {} not {expected}",
                        out[i]
                    );
                }
            }
        }
    }
}
