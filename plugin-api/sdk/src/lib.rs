//! The plugin author's side: ordinary safe Rust in, a loadable plugin out.
//!
//! An author implements a trait ([`Architecture`] and [`Model`], or [`Router`], or [`Evictor`]), submits one
//! entry per implementation, and lets a leaf `cdylib` crate of three lines export the file:
//!
//! ```ignore
//! // the library crate
//! plugin_sdk::architecture!(Llama);
//!
//! // the leaf cdylib, complete
//! plugin_sdk::export_plugin! { name: "llama", crates: [arch_llama] }
//! ```
//!
//! Panics are caught at the door and become [`Error::Internal`]; a model whose step panicked refuses every
//! later call. `tracing` events reach the host's log. Several implementations may live in one file.
//!
//! This crate must never load anything: that is the host's side (`plugin-loader`).

pub mod arch;
pub mod device;
pub mod embedded;
mod error;
mod glue;
mod host;
pub mod strategy;

pub use arch::{
    Architecture, Batch, BatchRow, Encoded, ImageView, Loaded, Model, Options, Plan, Progress, RowImage,
    Source, Want,
};
pub use error::{Error, Result};
pub use host::thread_budget;
pub use plugin_abi::arch::{DeviceInfo, DeviceKind, WeightFormat, capability};
pub use plugin_abi::host::Phase;
pub use plugin_abi::strategy::{Candidate, Purpose, Residency, Resident};
pub use strategy::{EvictChoice, EvictRequest, Evictor, Explain, RouteChoice, RouteRequest, Router};

#[doc(hidden)]
pub mod export {
    //! What the macros expand to. Not for authors.
    pub use crate::embedded::{Manifest, root};
    pub use crate::glue::entry::{ArchitectureEntry, EvictorEntry, RouterEntry};
    pub use inventory;
    pub use plugin_abi;
}
