//! Running every test, with nextest where it is installed and plain cargo where it is not.

use std::process::{Command, Stdio};

use anyhow::Result;
use clap::Args;

use crate::{process, target};

/// Options of `cargo xtask test`.
#[derive(Args)]
pub struct Options {
    /// Passed on to the test runner, e.g. a name filter.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}

/// Builds what the tests load, then runs them.
pub fn run(options: &Options) -> Result<()> {
    process::run(process::cargo().args(["build", "--workspace", "--all-targets"]))?;
    // The plugins that black-box tests load, so that no test has to build them again by itself.
    let plugins = target().join("debug");
    if has_nextest() {
        let mut tests = process::cargo();
        tests.env("NEURON_TEST_PLUGINS", plugins).args(["nextest", "run", "--workspace"]);
        process::run(tests.args(&options.arguments))?;
        if options.arguments.is_empty() {
            process::run(process::cargo().args(["test", "--quiet", "--workspace", "--doc"]))?;
        }
        return Ok(());
    }
    let mut tests = process::cargo();
    tests.env("NEURON_TEST_PLUGINS", plugins).args(["test", "--workspace"]);
    process::run(tests.args(&options.arguments))
}

fn has_nextest() -> bool {
    Command::new("cargo")
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
