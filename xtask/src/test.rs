//! Running every test, with nextest where it is installed and plain cargo where it is not.

use std::process::{Command, Stdio};

use anyhow::Result;
use clap::Args;

use crate::process;

/// Options of `cargo xtask test`.
#[derive(Args)]
pub struct Options {
    /// Passed on to the test runner, e.g. a name filter.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}

/// Builds what the tests load, then runs them.
pub fn run(options: &Options) -> Result<()> {
    // The daemons and plugins that black-box tests start; the tests find them beside their own binaries.
    let mut build = process::cargo();
    process::run(build.args(["build", "--workspace", "--all-targets"]))?;
    if has_nextest() {
        process::run(process::cargo().args(["nextest", "run", "--workspace"]).args(&options.arguments))?;
        if options.arguments.is_empty() {
            process::run(process::cargo().args(["test", "--quiet", "--workspace", "--doc"]))?;
        }
        return Ok(());
    }
    process::run(process::cargo().args(["test", "--workspace"]).args(&options.arguments))
}

fn has_nextest() -> bool {
    Command::new("cargo")
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
