//! `cargo xtask cuda`: what CUDA code is compiled with, and a check of that code which needs none of it.

mod check;
pub mod nvcc;
mod shims;
mod toolchain;

use anyhow::Result;
use clap::Args;

pub use toolchain::Toolchain;

/// Options of `cargo xtask cuda`.
#[derive(Args)]
pub struct Options {
    /// Only check the CUDA code with the compiler and clippy; needs no tool chain.
    #[arg(long)]
    check: bool,
}

/// Provides the tool chain, or checks the code.
pub fn run(options: &Options) -> Result<()> {
    if options.check { check::run() } else { Toolchain::provide().map(drop) }
}
