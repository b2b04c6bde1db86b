//! From the author's safe traits to the verbs of the ABI, and back.
//!
//! Every verb checks what it was handed, catches panics, and writes its result into the caller's memory.

pub mod arch;
mod budget;
pub mod entry;
pub mod evictors;
pub mod guard;
mod model;
pub mod routers;
mod slab;
mod strategies;
mod text;

use std::sync::OnceLock;

use crate::embedded::Manifest;

static MANIFEST: OnceLock<&'static Manifest> = OnceLock::new();

/// Remembers what this file is. The first one wins, which matters only when several embedded plugins share a
/// binary, where the probe is trivial.
pub(crate) fn set_manifest(manifest: &'static Manifest) {
    let _ = MANIFEST.set(manifest);
}

pub(crate) fn manifest() -> Option<&'static Manifest> {
    MANIFEST.get().copied()
}
