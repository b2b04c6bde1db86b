//! Devices: the threads that own them, and what a model on one of them can be asked to do.
//!
//! One thread owns a device for the worker's life and runs every load, step, fork, free and drop for it;
//! tensors never leave it. [`rank::Rank`] is one rank of a loaded model as such a thread sees it, [`group`]
//! drives the ranks of one model in lockstep. Nothing here knows about requests, queues or sampling.

pub mod found;
pub mod group;
pub mod plugin;
pub mod rank;
pub mod thread;

#[cfg(test)]
pub(crate) mod double;
