//! The door: nothing unwinds through it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use plugin_abi::{Code, Failure};

use crate::error::{Error, Result};

/// Runs one verb's body; an error or a panic becomes a code and a sentence.
pub(crate) fn guard(failure: &mut Failure, body: impl FnOnce() -> Result<()>) -> Code {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => Code::OK,
        Ok(Err(error)) => error.write(failure),
        Err(payload) => Error::Internal(panic_text(payload)).write(failure),
    }
}

/// What a panic said. The payload is leaked: its destructor is the author's code and may panic again, and
/// then nothing could catch it.
fn panic_text(payload: Box<dyn Any + Send>) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    std::mem::forget(payload);
    format!("the plugin panicked: {text}")
}

/// Runs a verb that has no way to report; a panic is swallowed after the panic hook has logged it.
pub(crate) fn guard_silently<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => value,
        Err(payload) => {
            std::mem::forget(payload);
            fallback
        }
    }
}
