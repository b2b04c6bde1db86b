//! The delta rule over a block of a state's columns, token after token.

use super::by_isa;
use super::simd::{LANES, Simd};

/// Columns of a block: two vectors, so that a row's sums do not wait for one another.
pub(crate) const COLUMNS: usize = 2 * LANES;

/// One block through all tokens, per token: `u = β (v − keep · mᵀk)`, `m = keep · m + k uᵀ`, `out = mᵀq`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn scan_body<S: Simd>(
    m: *mut f32,
    q: *const f32,
    k: *const f32,
    v: *const f32,
    beta: *const f32,
    keep: *const f32,
    out: *mut f32,
    tokens: usize,
    key_dim: usize,
) {
    // SAFETY: the caller promises `key_dim` rows of COLUMNS values behind `m`, `tokens` rows of `key_dim` behind `q` and `k`,
    // of COLUMNS behind `v` and `out`, and `tokens` values behind `beta` and `keep`.
    unsafe {
        let zero = S::splat(0.0);
        for t in 0..tokens {
            let (k, q, v, out) =
                (k.add(t * key_dim), q.add(t * key_dim), v.add(t * COLUMNS), out.add(t * COLUMNS));
            let keep = S::splat(*keep.add(t));
            let (mut a, mut b, mut c, mut d) = (zero, zero, zero, zero);
            let mut i = 0;
            while i + 1 < key_dim {
                let (row, k0, k1) = (m.add(i * COLUMNS), S::splat(*k.add(i)), S::splat(*k.add(i + 1)));
                a = S::fma(S::load(row), k0, a);
                b = S::fma(S::load(row.add(LANES)), k0, b);
                c = S::fma(S::load(row.add(COLUMNS)), k1, c);
                d = S::fma(S::load(row.add(COLUMNS + LANES)), k1, d);
                i += 2;
            }
            if i < key_dim {
                let (row, k0) = (m.add(i * COLUMNS), S::splat(*k.add(i)));
                a = S::fma(S::load(row), k0, a);
                b = S::fma(S::load(row.add(LANES)), k0, b);
            }
            let beta = S::splat(*beta.add(t));
            let u0 = S::mul(beta, S::sub(S::load(v), S::mul(keep, S::add(a, c))));
            let u1 = S::mul(beta, S::sub(S::load(v.add(LANES)), S::mul(keep, S::add(b, d))));
            let (mut o0, mut o1) = (zero, zero);
            for i in 0..key_dim {
                let (row, ki, qi) = (m.add(i * COLUMNS), S::splat(*k.add(i)), S::splat(*q.add(i)));
                let m0 = S::fma(ki, u0, S::mul(keep, S::load(row)));
                let m1 = S::fma(ki, u1, S::mul(keep, S::load(row.add(LANES))));
                S::store(row, m0);
                S::store(row.add(LANES), m1);
                o0 = S::fma(m0, qi, o0);
                o1 = S::fma(m1, qi, o1);
            }
            S::store(out, o0);
            S::store(out.add(LANES), o1);
        }
    }
}

by_isa! {
    /// Takes a block of COLUMNS columns of a state through all tokens.
    ///
    /// The caller promises `key_dim` rows of COLUMNS values behind `m`; `tokens` rows of `key_dim` values behind `q` and `k`, of
    /// COLUMNS behind `v` and `out`; `tokens` values behind `beta` and `keep`; and the level `isa`.
    pub unsafe fn scan(
        m: *mut f32, q: *const f32, k: *const f32, v: *const f32, beta: *const f32, keep: *const f32,
        out: *mut f32, tokens: usize, key_dim: usize,
    ) {
        avx512: scan_body::<super::avx512::Avx512>,
        avx2: scan_body::<super::avx2::Avx2>,
        portable: scan_body::<super::portable::Portable>,
    }
}
