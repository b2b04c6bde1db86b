//! AVX2 with FMA and F16C.
#![cfg(target_arch = "x86_64")]

use std::arch::x86_64::*;

use super::simd::Simd;

/// AVX2, FMA, F16C.
#[derive(Clone, Copy)]
pub struct Avx2;

/// Sum of eight lanes, in the order [`Simd::sum`] asks for.
///
/// # Safety
/// The processor must have AVX2.
#[inline(always)]
pub(super) unsafe fn sum8(v: __m256) -> f32 {
    // SAFETY: the caller promises AVX2.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        let one = _mm_add_ss(two, _mm_shuffle_ps::<1>(two, two));
        _mm_cvtss_f32(one)
    }
}

/// Applies an operation to both halves.
macro_rules! halves {
    ($f:ident($($arg:expr),*)) => {
        [$f($($arg[0]),*), $f($($arg[1]),*)]
    };
}

/// Evaluates an expression for both of some values. A macro, because a closure would not surely become part
/// of the function compiled for this level.
macro_rules! both {
    ([$a:expr, $b:expr], |$x:ident| $body:expr) => {
        [
            {
                let $x = $a;
                $body
            },
            {
                let $x = $b;
                $body
            },
        ]
    };
}

// SAFETY: every method needs only the level, which its caller promises, and valid pointers, likewise.
#[allow(clippy::undocumented_unsafe_blocks, reason = "each is the promise of the trait, passed on")]
unsafe impl Simd for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self::F {
        unsafe {
            both!([0, 16], |at| {
                let half = _mm_loadu_si128(p.add(at).cast());
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)))
            })
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        unsafe { both!([0, 16], |at| _mm256_cvtph_ps(_mm_loadu_si128(p.add(at).cast()))) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        unsafe {
            both!([0, 8], |at| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(at).cast()))))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::F {
        unsafe {
            both!([0, 8], |at| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(at).cast()))))
        }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { halves!(_mm256_fmadd_ps(a, b, c)) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { halves!(_mm256_add_ps(a, b)) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { halves!(_mm256_sub_ps(a, b)) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { halves!(_mm256_mul_ps(a, b)) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { halves!(_mm256_div_ps(a, b)) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { halves!(_mm256_max_ps(a, b)) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        unsafe { halves!(_mm256_min_ps(a, b)) }
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        unsafe {
            both!([a[0], a[1]], |v| _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v))
        }
    }
    #[inline(always)]
    unsafe fn exp2i(n: Self::F) -> Self::F {
        unsafe {
            both!([n[0], n[1]], |v| {
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            })
        }
    }
    #[inline(always)]
    unsafe fn zero_below(v: Self::F, x: Self::F, limit: f32) -> Self::F {
        unsafe {
            let limit = _mm256_set1_ps(limit);
            [
                _mm256_and_ps(v[0], _mm256_cmp_ps::<_CMP_GE_OQ>(x[0], limit)),
                _mm256_and_ps(v[1], _mm256_cmp_ps::<_CMP_GE_OQ>(x[1], limit)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        unsafe { both!([a[0], a[1]], |v| _mm256_andnot_ps(_mm256_set1_ps(-0.0), v)) }
    }
    #[inline(always)]
    unsafe fn sum(v: Self::F) -> f32 {
        unsafe { sum8(_mm256_add_ps(v[0], v[1])) }
    }
    #[inline(always)]
    unsafe fn max_lane(v: Self::F) -> f32 {
        unsafe {
            let eight = _mm256_max_ps(v[0], v[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: Self::F) {
        unsafe {
            let [a, b] = both!([v[0], v[1]], |v| _mm256_cvtps_epi32(v));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(p.cast(), bytes);
        }
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn to_f(v: Self::I) -> Self::F {
        unsafe { halves!(_mm256_cvtepi32_ps(v)) }
    }
    #[inline(always)]
    unsafe fn load_b(p: *const u8) -> Self::B {
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn shl(b: Self::B, bits: u32) -> Self::B {
        unsafe { both!([b[0], b[1]], |v| _mm256_sll_epi32(v, _mm_cvtsi32_si128(bits as i32))) }
    }
    #[inline(always)]
    unsafe fn shr(b: Self::B, bits: u32) -> Self::B {
        unsafe { both!([b[0], b[1]], |v| _mm256_srl_epi32(v, _mm_cvtsi32_si128(bits as i32))) }
    }
    #[inline(always)]
    unsafe fn and(b: Self::B, mask: u8) -> Self::B {
        unsafe { both!([b[0], b[1]], |v| _mm256_and_si256(v, _mm256_set1_epi8(mask as i8))) }
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        unsafe { halves!(_mm256_or_si256(a, b)) }
    }
    #[inline(always)]
    unsafe fn dot7(acc: Self::I, codes: Self::B, act: i32) -> Self::I {
        unsafe {
            let act = _mm256_set1_epi32(act);
            let ones = _mm256_set1_epi16(1);
            // 127 · 127 · 2 stays within 16 bits.
            both!([(acc[0], codes[0]), (acc[1], codes[1])], |half| {
                _mm256_add_epi32(half.0, _mm256_madd_epi16(_mm256_maddubs_epi16(half.1, act), ones))
            })
        }
    }
    #[inline(always)]
    unsafe fn dot8(acc: Self::I, codes: Self::B, act: i32) -> Self::I {
        unsafe {
            // The top bit goes separately: a full byte times a signed byte would leave 16 bits.
            let low = Self::dot7(acc, Self::and(codes, 0x7f), act);
            let act = _mm256_set1_epi32(act);
            let weight = _mm256_set1_epi16(128);
            let top = Self::and(Self::shr(codes, 7), 1);
            both!([(low[0], top[0]), (low[1], top[1])], |half| {
                _mm256_add_epi32(half.0, _mm256_madd_epi16(_mm256_maddubs_epi16(half.1, act), weight))
            })
        }
    }
}
