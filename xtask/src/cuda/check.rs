//! A check of all CUDA code where there is no CUDA: types and lints, with a stand-in for the kernels' compiler.
//!
//! What it makes can never be linked or shipped: it stays in metadata, and kernels are empty. It checks the whole
//! workspace with the feature on, so that everything without CUDA code is taken over from a check without it.

use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{nvcc, toolchain};
use crate::{process, target};

/// The oldest generation stands for all: capabilities decide over kernels, not over Rust code.
const COMPUTE_CAP: &str = "80";

/// Runs clippy over every plugin with its CUDA code, warnings being errors.
pub fn run() -> Result<()> {
    let folder = target().join("cuda-check");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let compiler = folder.join("nvcc");
    let this = std::env::current_exe().context("this tool does not know where it lies")?;
    std::fs::write(&compiler, format!("#!/bin/sh\nexec '{}' nvcc \"$@\"\n", this.display()))?;
    std::fs::set_permissions(&compiler, std::fs::Permissions::from_mode(0o755))?;

    let mut clippy = process::cargo();
    let features: Vec<String> = packages()?.iter().map(|package| format!("{package}/cuda")).collect();
    clippy.args(["clippy", "--quiet", "--workspace", "--features", &features.join(",")]);
    clippy.args(["--", "--deny", "warnings"]);
    clippy
        .env("NVCC", &compiler)
        .env(nvcc::STAND_IN, "1")
        .env("CUDA_HOME", &folder)
        .env("CUDA_PATH", &folder);
    clippy.env("CUDA_COMPUTE_CAP", COMPUTE_CAP).env("CUDARC_CUDA_VERSION", toolchain::CUDA_VERSION);
    clippy.env(toolchain::LINK_SHIMS, "1");
    process::run(&mut clippy).context("the CUDA code does not pass its check")?;
    println!("CUDA code checked: types and lints, no kernel compiled");
    Ok(())
}

/// Our packages that have CUDA code: those with a feature of that name.
fn packages() -> Result<Vec<String>> {
    let output = process::cargo().args(["metadata", "--format-version", "1", "--no-deps"]).output()?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let with_cuda = packages.iter().filter(|package| package["features"].get("cuda").is_some());
    let names: Vec<String> =
        with_cuda.filter_map(|package| package["name"].as_str().map(str::to_owned)).collect();
    ensure!(!names.is_empty(), "no package here has a feature `cuda`; there is nothing to check");
    Ok(names)
}
