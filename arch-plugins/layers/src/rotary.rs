//! Rotary position embedding.
use candle_core::Tensor;
use crate::error::Result;
use crate::placement::Placement;
/// Frequencies' scaling.
#[derive(Debug, Clone, PartialEq)]
pub enum Scaling {
    None,
    Linear { factor: f64 },
    Dynamic { factor: f64, original: usize },
    Llama3 { factor: f64, low: f64, high: f64, original: usize },
    Yarn { factor: f64, original: usize, beta_fast: f64, beta_slow: f64, attention_factor: Option<f64>, mscale: Option<f64>, mscale_all_dim: Option<f64>, truncate: bool },
    LongRope { short: Vec<f64>, long: Vec<f64>, original: usize, attention_factor: Option<f64>, factor: f64 },
}
/// What `rope_*` keys of a config say.
#[derive(Debug, Clone, PartialEq)]
pub struct RotaryConfig { pub theta: f64, pub head_dim: usize, pub rotary_dim: usize, pub max_position: usize, pub scaling: Scaling }
impl RotaryConfig {
    /// Reads old (`rope_theta`, `rope_scaling`) and new (`rope_parameters`) spelling from a config object,
    /// `partial_rotary_factor` included. Unknown types and keys with a meaning are refused.
    pub fn from_json(config: &serde_json::Map<String, serde_json::Value>, head_dim: usize, max_position: usize) -> Result<Self> { unimplemented!() }
}
/// Which dimensions form a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs { Halves, Adjacent }
/// Frequencies of a model.
#[derive(Clone)]
pub struct Rotary { }
impl Rotary {
    pub fn new(config: &RotaryConfig, pairs: Pairs, placement: &Placement) -> Result<Self> { unimplemented!() }
    /// Cos and sin for these absolute positions, one per token.
    pub fn at(&self, positions: &[u32]) -> Result<Angles> { unimplemented!() }
    /// M-RoPE: three position rows; frequency `j` takes row `axis(j)` (0 = T, 1 = H, 2 = W).
    pub fn at_axes(&self, positions: [&[u32]; 3], axis: &dyn Fn(usize) -> usize) -> Result<Angles> { unimplemented!() }
}
/// Cos and sin, `[tokens, rotary_dim / 2]` f32.
#[derive(Clone)]
pub struct Angles { }
impl Angles {
    /// From angles `[tokens, rotary_dim / 2]` computed elsewhere (vision).
    pub fn from_angles(angles: Vec<f32>, tokens: usize, head_dim: usize, placement: &Placement) -> Result<Self> { unimplemented!() }
    /// `[tokens, rotary_dim]`, halves repeated, as the reference prints them.
    pub fn cos(&self) -> Result<Tensor> { unimplemented!() }
    pub fn sin(&self) -> Result<Tensor> { unimplemented!() }
    /// Rotates `x [tokens, heads, head_dim]`; dimensions past `rotary_dim` pass through.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> { unimplemented!() }
    /// As `apply`, rotation in f32 and rounded once at the end (vision).
    pub fn apply_f32(&self, x: &Tensor) -> Result<Tensor> { unimplemented!() }
}
