//! The project's own tools, run as `cargo xtask <tool>`.
//!
//! They build, start and check things the way a person would, so that README, CI and a newcomer all use the
//! same commands. They never contain anything the products need at run time.

mod book;
mod cuda;
mod demo;
mod generation;
mod gpu_check;
mod inspect;
mod machine;
mod model;
mod plugins;
mod process;
mod soak;
mod test;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Tools of the neuron and cortex project.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    tool: Tool,
}

#[derive(Subcommand)]
enum Tool {
    /// Build the book of `docs/` into `target/book/`.
    Book(book::Options),
    /// Put the CUDA tool chain together in `target/cuda`, or check CUDA code without one.
    Cuda(cuda::Options),
    /// Build everything, obtain a small real model, start neuron and cortex, ask a question, keep serving.
    Demo(demo::Options),
    /// Check plugins on this machine's GPU, or make a bundle that does it on another's.
    GpuCheck(gpu_check::Options),
    /// Build the architecture plugins into `target/plugins/BUILD/`.
    Plugins(plugins::Options),
    /// Let many clients come and go against a running daemon; fail if anything is left behind.
    Soak(soak::Options),
    /// Run every test.
    Test(test::Options),
    /// Check the arrows between rooms, links in docs, forbidden places and words; print what is longest.
    Tidy,
}

fn main() -> ExitCode {
    // As the kernels' compiler, called by build scripts with the compiler's own arguments.
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("nvcc") {
        return cuda::nvcc::run(arguments.collect()).unwrap_or_else(|error| {
            println!("error: {error:#}");
            ExitCode::FAILURE
        });
    }
    match run(Cli::parse().tool) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(tool: Tool) -> Result<()> {
    match tool {
        Tool::Book(options) => book::run(&options),
        Tool::Cuda(options) => cuda::run(&options),
        Tool::Demo(options) => demo::run(&options),
        Tool::GpuCheck(options) => gpu_check::run(&options),
        Tool::Plugins(options) => plugins::run(&options).map(drop),
        Tool::Soak(options) => soak::run(&options),
        Tool::Test(options) => test::run(&options),
        Tool::Tidy => tidy::run(),
    }
}

/// The root of the checkout.
fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("xtask lies in the checkout").to_path_buf()
}

/// Where cargo puts things.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
