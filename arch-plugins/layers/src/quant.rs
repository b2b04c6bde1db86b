//! Block quantization.
/// Quantization applied while loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme { Q8_0, Q6K, Q5K, Q4K, Q4_0 }
impl Scheme {
    /// `q8_0`, `q6k`, `q5k`, `q4k`, `q4_0`; empty is `None`.
    pub fn parse(text: &str) -> crate::Result<Option<Self>> { unimplemented!() }
}
