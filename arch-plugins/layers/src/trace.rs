//! Named taps of intermediate tensors.
use crate::error::Result;
use candle_core::Tensor;
use std::cell::RefCell;

/// Collects intermediates under the names golden files use (`hidden/0`, `layer0/attn/q_rope`); free when off.
#[derive(Default)]
pub struct Trace(Option<RefCell<Vec<(String, Tensor)>>>);

impl Trace {
    /// Taps do nothing.
    pub fn off() -> Self {
        Self(None)
    }

    /// Taps are kept.
    pub fn on() -> Self {
        Self(Some(RefCell::new(Vec::new())))
    }

    /// Is anything kept?
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Keeps what `tensor` gives under `name`; neither is evaluated when the trace is off.
    pub fn tap<N: Into<String>>(
        &self,
        name: impl FnOnce() -> N,
        tensor: impl FnOnce() -> Result<Tensor>,
    ) -> Result<()> {
        if let Some(taps) = &self.0 {
            taps.borrow_mut().push((name().into(), tensor()?));
        }
        Ok(())
    }

    /// Everything kept, in order.
    pub fn into_taps(self) -> Vec<(String, Tensor)> {
        self.0.map(RefCell::into_inner).unwrap_or_default()
    }
}
