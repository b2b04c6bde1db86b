//! What a sequence keeps between steps.

use crate::error::Result;

/// State of one sequence: KV cache, recurrent state, whatever the architecture needs.
pub trait SequenceState: Send + Sized {
    /// Tokens it holds.
    fn len(&self) -> usize;

    /// Has it none?
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A second state that holds the first `len` tokens.
    fn fork(&self, len: usize) -> Result<Self>;

    /// Drops all tokens after the first `len`.
    fn trim(&mut self, len: usize) -> Result<()>;

    /// Memory held.
    fn bytes(&self) -> u64;
}
