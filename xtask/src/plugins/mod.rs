//! Building architecture plugins, one folder per build.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{machine, process, root, target};

/// Options of `cargo xtask plugins`.
#[derive(Args)]
pub struct Options {
    /// cpu-v2, cpu-v3 or cpu-v4; `auto` is the best this processor runs.
    #[arg(long, default_value = "auto")]
    pub build: String,
    /// Compile without optimisation, for tests.
    #[arg(long)]
    pub debug: bool,
    /// Only these plugins; all by default.
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
}

/// Builds the plugins; returns the folder that holds `<build>/<name>.so`.
pub fn run(options: &Options) -> Result<PathBuf> {
    let build = if options.build == "auto" { machine::cpu_build() } else { options.build.as_str() };
    let Some(level) = ["cpu-v2", "cpu-v3", "cpu-v4"].iter().find(|known| **known == build) else {
        bail!("unknown build {build}; known: auto, cpu-v2, cpu-v3, cpu-v4");
    };
    let names = if options.names.is_empty() { available()? } else { options.names.clone() };
    let cargo_target = target().join("plugin-builds").join(build);
    let profile = if options.debug { "debug" } else { "release" };

    let mut command = process::cargo();
    command.arg("build").arg("--target-dir").arg(&cargo_target);
    if !options.debug {
        command.arg("--release");
    }
    for name in &names {
        command.arg("--package").arg(format!("{name}-plugin"));
    }
    command.env("RUSTFLAGS", format!("-C target-cpu=x86-64-{}", &level["cpu-".len()..]));
    command.env("NEURON_BUILD", build).env("NEURON_GIT", revision());
    process::run(&mut command)?;

    let plugins = target().join("plugins");
    let folder = plugins.join(build);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for name in &names {
        let built = cargo_target.join(profile).join(format!("libneuron_{name}.so"));
        install(&built, &folder.join(format!("{name}.so")))?;
    }
    println!("plugins {} -> {}", names.join(", "), folder.display());
    Ok(plugins)
}

/// Names of all architecture plugins in the checkout.
fn available() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root().join("arch-plugins"))? {
        let folder = entry?.path();
        if folder.join("plugin/Cargo.toml").exists() {
            names.extend(folder.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

/// Puts a new file in place of an old one without ever changing the old one: a running worker has it mapped.
fn install(built: &Path, installed: &Path) -> Result<()> {
    let fresh = installed.with_extension("so.new");
    std::fs::copy(built, &fresh).with_context(|| format!("cannot copy {}", built.display()))?;
    std::fs::rename(&fresh, installed).with_context(|| format!("cannot write {}", installed.display()))
}

fn revision() -> String {
    std::process::Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .current_dir(root())
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or_else(String::new, |text| text.trim().to_owned())
}
