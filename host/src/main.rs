//! The `neuron` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = neuron::worker::main::hidden_command() {
        return code;
    }
    ExitCode::SUCCESS
}
