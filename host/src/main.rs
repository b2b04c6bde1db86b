//! The `neuron` binary: what it starts itself as, or else the command line of [`neuron::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    match neuron::worker::main::hidden_command() {
        Some(code) => code,
        None => neuron::cli::run(),
    }
}
