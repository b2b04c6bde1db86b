//! The worker process and the link to it.
//!
//! A worker holds one loaded model. It is a process so that a fault, a leak or a hung collective is cured by
//! replacing it. The supervisor speaks to it through [`protocol`] messages only; it never maps a plugin.

pub mod environment;
pub mod link;
pub mod log;
pub mod main;
pub mod message;
pub mod process;
pub mod protocol;

pub(crate) use log::emit as emit_log;
