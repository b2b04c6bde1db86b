//! Plain Rust, for processors without the vector levels and as a yardstick for the others.

use half::{bf16, f16};

use super::simd::{LANES, Simd};

/// Arrays and loops.
#[derive(Clone, Copy)]
pub struct Portable;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn lanes32(b: [u8; 64], f: impl Fn(u32) -> u32) -> [u8; 64] {
    let mut out = [0; 64];
    for (from, to) in b.chunks_exact(4).zip(out.chunks_exact_mut(4)) {
        let lane = u32::from_le_bytes([from[0], from[1], from[2], from[3]]);
        to.copy_from_slice(&f(lane).to_le_bytes());
    }
    out
}

// SAFETY: nothing here needs more than valid pointers, which the caller promises.
#[allow(clippy::undocumented_unsafe_blocks, reason = "each is the promise of the trait, passed on")]
unsafe impl Simd for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type B = [u8; 64];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { p.cast::<[f32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self::F {
        unsafe { p.cast::<[u16; LANES]>().read_unaligned().map(|bits| bf16::from_bits(bits).to_f32()) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        unsafe { p.cast::<[u16; LANES]>().read_unaligned().map(|bits| f16::from_bits(bits).to_f32()) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        unsafe { p.cast::<[u8; LANES]>().read().map(f32::from) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::F {
        unsafe { p.cast::<[i8; LANES]>().read().map(f32::from) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    unsafe fn exp2i(n: Self::F) -> Self::F {
        n.map(|n| f32::from_bits(((n as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    unsafe fn zero_below(v: Self::F, x: Self::F, limit: f32) -> Self::F {
        zip(v, x, |v, x| if x >= limit { v } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        a.map(f32::abs)
    }
    #[inline(always)]
    unsafe fn sum(mut v: Self::F) -> f32 {
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                v[i] += v[i + width];
            }
        }
        v[0]
    }
    #[inline(always)]
    unsafe fn max_lane(v: Self::F) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: Self::F) {
        unsafe { p.cast::<[i8; LANES]>().write(v.map(|x| x as i8)) }
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn to_f(v: Self::I) -> Self::F {
        v.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn load_b(p: *const u8) -> Self::B {
        unsafe { p.cast::<[u8; 64]>().read() }
    }
    #[inline(always)]
    unsafe fn shl(b: Self::B, bits: u32) -> Self::B {
        lanes32(b, |lane| lane << bits)
    }
    #[inline(always)]
    unsafe fn shr(b: Self::B, bits: u32) -> Self::B {
        lanes32(b, |lane| lane >> bits)
    }
    #[inline(always)]
    unsafe fn and(b: Self::B, mask: u8) -> Self::B {
        b.map(|byte| byte & mask)
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn dot7(acc: Self::I, codes: Self::B, act: i32) -> Self::I {
        let act = act.to_le_bytes().map(|byte| i32::from(byte as i8));
        std::array::from_fn(|i| {
            let code = |j: usize| i32::from(codes[4 * i + j]);
            acc[i] + code(0) * act[0] + code(1) * act[1] + code(2) * act[2] + code(3) * act[3]
        })
    }
    #[inline(always)]
    unsafe fn dot8(acc: Self::I, codes: Self::B, act: i32) -> Self::I {
        unsafe { Self::dot7(acc, codes, act) }
    }
}
