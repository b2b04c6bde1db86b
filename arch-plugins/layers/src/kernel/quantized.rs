//! Quantized matrix times quantized activations.
//!
//! A matrix is packed in panels of sixteen rows (see [`crate::quant::pack`]); a panel is a list of records,
//! and a record holds one block of each row, interleaved so that one vector load brings four codes of all
//! sixteen rows. Sums within a group of codes are integers and exact; groups are added in order of their
//! columns. So a result does not depend on how many rows of activations are computed together.

use super::by_isa;
use super::simd::{LANES, Simd};
use crate::quant::activations::Activations;

/// How one format lies in a record.
///
/// A record covers `32 * GROUPS` columns: `HEAD` bytes of scales, then per group the high-bit planes and the
/// low nibbles (or whole bytes).
pub trait Format {
    /// Bits of a code.
    const BITS: u32;
    /// What is subtracted from a code.
    const OFFSET: i32;
    /// Is there a minimum per group?
    const MIN: bool;
    /// Groups of 32 columns in a record.
    const GROUPS: usize;
    /// Columns that share a scale.
    const SUB: usize;
    /// Bytes before the codes.
    const HEAD: usize;
    /// Bytes of one group's codes.
    const GROUP_BYTES: usize = Self::BITS as usize * 64;
    /// Bytes of a record.
    const RECORD: usize = Self::HEAD + Self::GROUPS * Self::GROUP_BYTES;

    /// Scale of sixteen rows.
    ///
    /// # Safety
    /// `record` points to a record; the processor has the level of `S`.
    unsafe fn scale<S: Simd>(record: *const u8, group: usize, half: usize) -> S::F;
    /// Minimum of sixteen rows, to be added; 0 unless [`Format::MIN`].
    ///
    /// # Safety
    /// As [`Format::scale`].
    unsafe fn min<S: Simd>(record: *const u8, group: usize) -> S::F;
}

macro_rules! simple_format {
    ($(#[$meta:meta])* $name:ident, $bits:expr, $offset:expr, $min:expr) => {
        $(#[$meta])*
        pub struct $name;
        impl Format for $name {
            const BITS: u32 = $bits;
            const OFFSET: i32 = $offset;
            const MIN: bool = $min;
            const GROUPS: usize = 1;
            const SUB: usize = 32;
            const HEAD: usize = if $min { 64 } else { 32 };
            #[inline(always)]
            unsafe fn scale<S: Simd>(record: *const u8, _group: usize, _half: usize) -> S::F {
                // SAFETY: a record begins with sixteen f16 scales.
                unsafe { S::load_f16(record) }
            }
            #[inline(always)]
            unsafe fn min<S: Simd>(record: *const u8, _group: usize) -> S::F {
                // SAFETY: called only when `MIN`, and then sixteen f16 minima follow the scales.
                unsafe { if $min { S::load_f16(record.add(32)) } else { S::splat(0.0) } }
            }
        }
    };
}

simple_format!(/** `d · (q − 8)` */ Q4_0, 4, 8, false);
simple_format!(/** `d · q + m` */ Q4_1, 4, 0, true);
simple_format!(/** `d · (q − 16)` */ Q5_0, 5, 16, false);
simple_format!(/** `d · q + m` */ Q5_1, 5, 0, true);
simple_format!(/** `d · (q − 128)` */ Q8_0, 8, 128, false);

macro_rules! super_format {
    ($(#[$meta:meta])* $name:ident, $bits:expr) => {
        $(#[$meta])*
        pub struct $name;
        impl Format for $name {
            const BITS: u32 = $bits;
            const OFFSET: i32 = 0;
            const MIN: bool = true;
            const GROUPS: usize = 8;
            const SUB: usize = 32;
            const HEAD: usize = 64 + 8 * 16 + 8 * 16;
            #[inline(always)]
            unsafe fn scale<S: Simd>(record: *const u8, group: usize, _half: usize) -> S::F {
                // SAFETY: f16 scale and f16 minimum, then sixteen bytes of factors per group.
                unsafe { S::mul(S::load_f16(record), S::load_u8(record.add(64 + 16 * group))) }
            }
            #[inline(always)]
            unsafe fn min<S: Simd>(record: *const u8, group: usize) -> S::F {
                // SAFETY: the factors of the minima follow those of the scales.
                unsafe {
                    let factor = S::load_u8(record.add(64 + 128 + 16 * group));
                    S::sub(S::splat(0.0), S::mul(S::load_f16(record.add(32)), factor))
                }
            }
        }
    };
}

super_format!(/** `d · s · q − dmin · m` */ Q4K, 4);
super_format!(/** `d · s · q − dmin · m` */ Q5K, 5);

/// `d · s · (q − 32)`, a scale for each 16 columns.
pub struct Q6K;

impl Format for Q6K {
    const BITS: u32 = 6;
    const OFFSET: i32 = 32;
    const MIN: bool = false;
    const GROUPS: usize = 8;
    const SUB: usize = 16;
    const HEAD: usize = 32 + 16 * 16;
    #[inline(always)]
    unsafe fn scale<S: Simd>(record: *const u8, group: usize, half: usize) -> S::F {
        // SAFETY: f16 scales, then sixteen signed bytes per 16 columns.
        unsafe { S::mul(S::load_f16(record), S::load_i8(record.add(32 + 16 * (2 * group + half)))) }
    }
    #[inline(always)]
    unsafe fn min<S: Simd>(_record: *const u8, _group: usize) -> S::F {
        // SAFETY: needs no memory.
        unsafe { S::splat(0.0) }
    }
}

/// Codes `4 * slice .. 4 * slice + 4` of sixteen rows. `codes` points to a group.
#[inline(always)]
unsafe fn slice<S: Simd, F: Format>(codes: *const u8, slice: usize) -> S::B {
    // SAFETY: the caller's group has `GROUP_BYTES` bytes, laid out as read here.
    unsafe {
        if F::BITS == 8 {
            return S::load_b(codes.add(64 * slice));
        }
        let planes = F::BITS as usize - 4;
        let pair = S::load_b(codes.add(64 * (planes + slice % 4)));
        let nibble = S::and(if slice < 4 { pair } else { S::shr(pair, 4) }, 0x0f);
        match F::BITS {
            5 => {
                let plane = S::load_b(codes);
                let bit = match slice {
                    0 => S::shl(plane, 4),
                    1 => S::shl(plane, 3),
                    2 => S::shl(plane, 2),
                    3 => S::shl(plane, 1),
                    4 => plane,
                    5 => S::shr(plane, 1),
                    6 => S::shr(plane, 2),
                    _ => S::shr(plane, 3),
                };
                S::or(nibble, S::and(bit, 0x10))
            }
            6 => {
                let plane = S::load_b(codes.add(64 * (slice / 4)));
                let bits = match slice % 4 {
                    0 => S::shl(plane, 4),
                    1 => S::shl(plane, 2),
                    2 => plane,
                    _ => S::shr(plane, 2),
                };
                S::or(nibble, S::and(bits, 0x30))
            }
            _ => nibble,
        }
    }
}

/// Raw view of [`Activations`].
#[derive(Clone, Copy)]
pub struct View {
    codes: *const i8,
    scales: *const f32,
    sums: *const f32,
    totals: *const i32,
    columns: usize,
    groups: usize,
}

impl View {
    pub fn of(a: &Activations) -> Self {
        Self {
            codes: a.codes.as_ptr(),
            scales: a.scales.as_ptr(),
            sums: a.sums.as_ptr(),
            totals: a.totals.as_ptr(),
            columns: a.columns,
            groups: a.columns / 32,
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, F: Format, const ROWS: usize>(panel: *const u8, a: View, row: usize) -> [S::F; ROWS] {
    // SAFETY: the caller promises a panel of `a.groups / F::GROUPS` records and rows `row .. row + ROWS` of
    // activations; every offset below stays within them.
    unsafe {
        let codes_of: [*const i8; ROWS] = std::array::from_fn(|m| a.codes.add((row + m) * a.columns));
        let scales_of: [*const f32; ROWS] = std::array::from_fn(|m| a.scales.add((row + m) * a.groups));
        let sums_of: [*const f32; ROWS] = std::array::from_fn(|m| a.sums.add((row + m) * a.groups));
        let totals_of: [*const i32; ROWS] = std::array::from_fn(|m| a.totals.add((row + m) * a.groups * 2));
        let mut result = [S::splat(0.0); ROWS];
        let mut record = panel;
        let mut group = 0;
        while group < a.groups {
            for g in 0..F::GROUPS {
                let codes = record.add(F::HEAD + g * F::GROUP_BYTES);
                let at = group + g;
                let halves = 32 / F::SUB;
                for half in 0..halves {
                    let mut sum = [S::splat_i(0); ROWS];
                    if F::OFFSET != 0 {
                        for m in 0..ROWS {
                            let totals = totals_of[m].add(2 * at);
                            let total =
                                if F::SUB == 16 { *totals.add(half) } else { *totals + *totals.add(1) };
                            sum[m] = S::splat_i(-F::OFFSET * total);
                        }
                    }
                    for step in 0..8 / halves {
                        let s = half * 4 + step;
                        let weights = slice::<S, F>(codes, s);
                        for m in 0..ROWS {
                            let four = codes_of[m].add(32 * at + 4 * s).cast::<i32>().read_unaligned();
                            sum[m] = if F::BITS == 8 {
                                S::dot8(sum[m], weights, four)
                            } else {
                                S::dot7(sum[m], weights, four)
                            };
                        }
                    }
                    let scale = F::scale::<S>(record, g, half);
                    for m in 0..ROWS {
                        let scale = S::mul(scale, S::splat(*scales_of[m].add(at)));
                        result[m] = S::fma(S::to_f(sum[m]), scale, result[m]);
                    }
                }
                if F::MIN {
                    let min = F::min::<S>(record, g);
                    for m in 0..ROWS {
                        result[m] = S::fma(min, S::splat(*sums_of[m].add(at)), result[m]);
                    }
                }
            }
            record = record.add(F::RECORD);
            group += F::GROUPS;
        }
        result
    }
}

/// One panel against activation rows `rows.0 .. rows.1`; `out` is row 0 of the panel's columns.
#[inline(always)]
unsafe fn panel_rows<S: Simd, F: Format, const MOST: usize>(
    panel: *const u8,
    a: View,
    rows: (usize, usize),
    out: *mut f32,
    stride: usize,
    width: usize,
) {
    #[inline(always)]
    unsafe fn block<S: Simd, F: Format, const ROWS: usize>(
        panel: *const u8,
        a: View,
        row: usize,
        out: *mut f32,
        stride: usize,
        width: usize,
    ) {
        // SAFETY: passed on; `out` has `stride` between rows and room for `width` columns.
        unsafe {
            let result = tile::<S, F, ROWS>(panel, a, row);
            for (m, values) in result.into_iter().enumerate() {
                let to = out.add((row + m) * stride);
                if width == LANES {
                    S::store(to, values);
                } else {
                    let mut all = [0f32; LANES];
                    S::store(all.as_mut_ptr(), values);
                    std::ptr::copy_nonoverlapping(all.as_ptr(), to, width);
                }
            }
        }
    }
    let (mut row, end) = rows;
    // SAFETY: passed on from the caller.
    unsafe {
        while row < end {
            let left = end - row;
            if MOST >= 8 && left >= 8 {
                block::<S, F, 8>(panel, a, row, out, stride, width);
                row += 8;
            } else if MOST >= 4 && left >= 4 {
                block::<S, F, 4>(panel, a, row, out, stride, width);
                row += 4;
            } else if MOST >= 2 && left >= 2 {
                block::<S, F, 2>(panel, a, row, out, stride, width);
                row += 2;
            } else {
                block::<S, F, 1>(panel, a, row, out, stride, width);
                row += 1;
            }
        }
    }
}

macro_rules! panel_kernels {
    ($($name:ident: $format:ty),* $(,)?) => {$(
        by_isa! {
            /// Multiplies one panel; see [`panel`].
            unsafe fn $name(
                data: *const u8, a: View, rows: (usize, usize), out: *mut f32, stride: usize, width: usize,
            ) {
                avx512: panel_rows::<super::avx512::Avx512, $format, 8>,
                avx2: panel_rows::<super::avx2::Avx2, $format, 2>,
                portable: panel_rows::<super::portable::Portable, $format, 1>,
            }
        }
    )*};
}

panel_kernels! {
    q4_0: Q4_0, q4_1: Q4_1, q5_0: Q5_0, q5_1: Q5_1, q8_0: Q8_0, q4k: Q4K, q5k: Q5K, q6k: Q6K,
}

/// The kernel of a format.
pub type PanelKernel = unsafe fn(super::Isa, *const u8, View, (usize, usize), *mut f32, usize, usize);

/// Kernel for a stored format; `None` for dense ones.
///
/// The kernel computes `out[row * stride + n] = activations[row] · panel row n` for rows `rows.0 .. rows.1`
/// and `n < width <= 16`. Its caller promises that the panel matches format and activations, that `out` has
/// room, and that the processor has the level passed first.
pub fn kernel(stored: crate::weights::Stored) -> Option<PanelKernel> {
    use crate::weights::Stored;
    Some(match stored {
        Stored::Q4_0 => q4_0,
        Stored::Q4_1 => q4_1,
        Stored::Q5_0 => q5_0,
        Stored::Q5_1 => q5_1,
        Stored::Q8_0 => q8_0,
        Stored::Q4K => q4k,
        Stored::Q5K => q5k,
        Stored::Q6K => q6k,
        Stored::F32 | Stored::F16 | Stored::BF16 => return None,
    })
}
