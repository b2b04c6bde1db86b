//! Mistakes made on purpose, for the tests that prove a golden test would notice them.
//!
//! A golden test that cannot fail proves nothing. Each of these is a way in which other implementations of the same
//! papers went wrong; the tests of the architectures switch them on one at a time and demand that a
//! comparison with the reference breaks. Without the feature `mistakes`, which only tests enable, [`made`] is the
//! constant `false` and the mistakes are not compiled.

/// A way to get it wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mistake {
    /// The output gate of attention is silu, not sigmoid.
    SiluGate = 1,
    /// Queries and keys of the delta rule keep their length.
    NoUnitLength,
    /// Queries of the delta rule are not scaled by `1/√key_dim`.
    NoQueryScale,
    /// Decay within a chunk is factored into `e^{c_i} · e^{−c_j}`.
    FactoredDecay,
    /// The convolution's result is used without SiLU.
    NoConvSilu,
    /// A decode step's convolution does not see the tokens before it.
    ForgottenConv,
    /// The output of the delta rule is gated before it is normed.
    GateBeforeNorm,
    /// The output of the delta rule is normed over all heads together.
    NormOverAllHeads,
    /// The chosen experts' weights are not scaled to sum to one.
    NotRenormalised,
    /// The shared expert always speaks at full volume.
    SharedUngated,
    /// The position axes take contiguous blocks of frequencies.
    ContiguousAxes,
    /// An image moves the position counter by its number of tokens.
    AdvanceByTokens,
    /// Tokens of an image are counted like words.
    PlainPositions,
    /// The table of learned positions is read from its beginning.
    SequentialPositions,
    /// The table of learned positions is read at half-pixel centres.
    HalfPixelPositions,
    /// Learned positions are in reading order, patches in block order.
    RasterPositions,
    /// Patches are not rotated.
    NoVisionRotary,
    /// The merger uses the tanh form of GELU.
    MergerTanh,
}

#[cfg(feature = "mistakes")]
mod switch {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Mistake;

    static CURRENT: AtomicU8 = AtomicU8::new(0);

    /// Is this mistake being made?
    pub fn made(mistake: Mistake) -> bool {
        CURRENT.load(Ordering::Relaxed) == mistake as u8
    }

    /// Makes one mistake, or none, everywhere in this process from now on.
    pub fn make(mistake: Option<Mistake>) {
        CURRENT.store(mistake.map_or(0, |mistake| mistake as u8), Ordering::Relaxed);
    }
}

#[cfg(feature = "mistakes")]
pub use switch::{made, make};

/// Is this mistake being made?
#[cfg(not(feature = "mistakes"))]
pub const fn made(_mistake: Mistake) -> bool {
    false
}
