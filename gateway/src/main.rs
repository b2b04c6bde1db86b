//! The `cortex` binary: see [`cortex::cli`].

fn main() -> std::process::ExitCode {
    cortex::cli::run()
}
