//! Plays the host against any plugin file and reports promise by promise.
//!
//! A promise is one checkable clause of the contract between host and plugin. [`check`] keeps them all in one
//! list, tries each against the file in a child process, and says of each whether it was kept, broken (and
//! how), or could not be tried (and why). A plugin that ends or hangs the child breaks the promise that was
//! being tried; the rest are tried in a new child.
//!
//! [`template`] writes the crate of a new plugin, which keeps every promise from its first build on.
//!
//! This crate must never depend on the author's side or on any plugin: it sees what a host sees.

mod architecture;
mod child;
mod file;
mod folder;
mod parent;
mod promise;
mod report;
mod strategy;
pub mod template;
mod witness;

pub use child::child_main;
pub use parent::{Options, check};
pub use report::{Finding, Report, Verdict};
