//! The vocabulary kernels are written in: sixteen f32 or i32 lanes, and 64 bytes of codes.
//!
//! Implementations must agree on the meaning of every operation; only rounding of [`Simd::fma`] may differ
//! (two roundings where the processor has no fused multiply-add).

/// Lanes of a vector.
pub const LANES: usize = 16;

/// Vector operations of one instruction set level.
///
/// # Safety
/// Every method is `unsafe`: the processor must have the level, and pointers must be valid for the lanes
/// read or written. Methods are `#[inline(always)]` so that they become part of a function compiled for the
/// level.
pub unsafe trait Simd: Copy {
    /// 16 × f32.
    type F: Copy;
    /// 16 × i32.
    type I: Copy;
    /// 64 bytes: 4 for each of 16 lanes.
    type B: Copy;

    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self::F;
    /// 16 values, unaligned.
    unsafe fn load(p: *const f32) -> Self::F;
    /// 16 values, unaligned.
    unsafe fn store(p: *mut f32, v: Self::F);
    /// 16 bf16 values, unaligned, widened.
    unsafe fn load_bf16(p: *const u8) -> Self::F;
    /// 16 f16 values, unaligned, widened.
    unsafe fn load_f16(p: *const u8) -> Self::F;
    /// 16 unsigned bytes as numbers.
    unsafe fn load_u8(p: *const u8) -> Self::F;
    /// 16 signed bytes as numbers.
    unsafe fn load_i8(p: *const u8) -> Self::F;
    /// `a * b + c`.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a + b`.
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// Larger of each lane.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// Smaller of each lane.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// Nearest integer, halves to even.
    unsafe fn round(a: Self::F) -> Self::F;
    /// `2^n` for integral `n` in −126..=127.
    unsafe fn exp2i(n: Self::F) -> Self::F;
    /// `v` where `x >= limit`, else 0.
    unsafe fn zero_below(v: Self::F, x: Self::F, limit: f32) -> Self::F;
    /// Magnitude.
    unsafe fn abs(a: Self::F) -> Self::F;
    /// Sum of lanes: `((i, i+8), (i, i+4), (i, i+2), (i, i+1))`, in this order at every level.
    unsafe fn sum(v: Self::F) -> f32;
    /// Largest lane.
    unsafe fn max_lane(v: Self::F) -> f32;
    /// Lanes (integral, within i8) as 16 signed bytes.
    unsafe fn store_i8(p: *mut i8, v: Self::F);

    /// All lanes `x`.
    unsafe fn splat_i(x: i32) -> Self::I;
    /// Lanes as f32.
    unsafe fn to_f(v: Self::I) -> Self::F;

    /// 64 bytes, unaligned.
    unsafe fn load_b(p: *const u8) -> Self::B;
    /// Each 32-bit lane shifted left.
    unsafe fn shl(b: Self::B, bits: u32) -> Self::B;
    /// Each 32-bit lane shifted right, zeros in.
    unsafe fn shr(b: Self::B, bits: u32) -> Self::B;
    /// Each byte masked.
    unsafe fn and(b: Self::B, mask: u8) -> Self::B;
    /// Bitwise or.
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B;
    /// `acc + Σ₄ codes · act` per lane; codes unsigned up to 127, act four signed bytes.
    unsafe fn dot7(acc: Self::I, codes: Self::B, act: i32) -> Self::I;
    /// As [`Simd::dot7`] for codes up to 255.
    unsafe fn dot8(acc: Self::I, codes: Self::B, act: i32) -> Self::I;
}

/// `eˣ` within 2 units in the last place; 0 below −87, so also for −∞; exactly 1 at 0.
///
/// # Safety
/// The processor must have the level of `S`.
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // SAFETY: passed on from the caller.
    unsafe {
        let clamped = S::min(S::max(x, S::splat(-87.0)), S::splat(88.0));
        let n = S::round(S::mul(clamped, S::splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts, so that n · ln 2 is exact in the first.
        let r = S::fma(n, S::splat(-0.693_359_4), clamped);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.987_569_1e-4);
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = S::fma(p, r, S::splat(c));
        }
        let y = S::fma(p, S::mul(r, r), S::add(r, S::splat(1.0)));
        S::zero_below(S::mul(y, S::exp2i(n)), x, -87.0)
    }
}

/// `1 / (1 + e⁻ˣ)`.
///
/// # Safety
/// The processor must have the level of `S`.
#[inline(always)]
pub unsafe fn sigmoid<S: Simd>(x: S::F) -> S::F {
    // SAFETY: passed on from the caller.
    unsafe {
        let e = exp::<S>(S::sub(S::splat(0.0), x));
        S::div(S::splat(1.0), S::add(S::splat(1.0), e))
    }
}
