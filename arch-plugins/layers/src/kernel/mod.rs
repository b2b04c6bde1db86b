//! CPU kernels, chosen at run time by what the processor can do.
//!
//! Each kernel is written once over the vocabulary of `simd::Simd` and compiled three times. The order in
//! which a result's terms are added never depends on how many rows are computed together or on how many
//! threads take part: a token's numbers are the same bits whether its sequence runs alone or in a batch,
//! whole or in pieces.

pub(crate) mod attend;
mod avx2;
mod avx512;
pub(crate) mod delta;
pub(crate) mod dense;
pub(crate) mod pointwise;
pub mod pool;
mod portable;
pub(crate) mod quantized;
pub(crate) mod simd;

use std::sync::OnceLock;

static BEST: OnceLock<Isa> = OnceLock::new();

/// A level of vector instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Whatever the compiler was told.
    Portable,
    /// AVX2, FMA, F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
}

impl Isa {
    /// The best level of this processor, or the one it was limited to.
    pub fn best() -> Self {
        *BEST.get_or_init(|| *Self::available().last().expect("portable is always there"))
    }

    /// Uses no level above `highest` from now on, to measure or test what lesser processors do. Says whether
    /// it was in time: the first kernel settles the level.
    pub fn limit(highest: Self) -> bool {
        let level = Self::available().into_iter().rfind(|level| *level <= highest);
        BEST.set(level.unwrap_or(Self::Portable)).is_ok()
    }

    /// All levels of this processor, lowest first.
    pub fn available() -> Vec<Self> {
        let mut levels = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            if avx2 {
                levels.push(Self::Avx2);
            }
            if avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                levels.push(Self::Avx512);
            }
        }
        levels
    }
}

/// Compiles `body::<S, …>` for every level and calls the one for `isa`.
///
/// `body` must be `#[inline(always)]` and `unsafe`; the caller of the generated function promises what `body`
/// asks for, and that the processor has `isa`.
macro_rules! by_isa {
    ($(#[$meta:meta])* $vis:vis unsafe fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?
     { avx512: $wide:expr, avx2: $mid:expr, portable: $low:expr $(,)? }) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name(isa: $crate::kernel::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: passed on from the caller of the outer function.
                unsafe { $wide($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: passed on from the caller of the outer function.
                unsafe { $mid($($arg),*) }
            }
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the caller promises that the processor has this level.
                $crate::kernel::Isa::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the caller promises that the processor has this level.
                $crate::kernel::Isa::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: passed on from the caller.
                _ => unsafe { $low($($arg),*) },
            }
        }
    };
}
pub(crate) use by_isa;

/// A pointer that tasks of one parallel section share; each writes only its own part.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(pub *mut T);

// SAFETY: a parallel section hands each task a disjoint part of the memory behind the pointer, and the
// section ends before the memory's owner goes on.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The pointer `offset` elements further.
    ///
    /// # Safety
    /// The result must lie in the same allocation.
    pub unsafe fn at(&self, offset: usize) -> *mut T {
        // SAFETY: promised by the caller.
        unsafe { self.0.add(offset) }
    }
}
