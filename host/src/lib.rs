//! neuron serves language models on one machine.
//!
//! The supervisor (`neuron serve`) owns sockets and text; each loaded model lives in a worker process
//! (`neuron worker`) that maps an architecture plugin. This library is the two of them; the binary only
//! parses the command line.

pub mod catalogue;
pub mod cli;
pub mod config;
pub mod device;
pub mod discovery;
pub mod engine;
pub mod generation;
pub mod hub;
pub mod lifecycle;
pub mod metrics;
pub mod output;
pub mod prompt;
mod registration;
pub mod server;
pub mod worker;
