//! `cargo xtask gpu-check`: the acceptance run on a GPU, here or in a bundle for a machine that has one.
//!
//! The run itself is the program `gpu-check`. This builds what it needs: here from what lies in the checkout, or
//! as one file to carry, with plugins, fixtures and a script that finds the CUDA libraries of a Python.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{plugins, process, root, target};

/// Largest bundle that is made, in bytes.
const LARGEST: u64 = 64 << 20;

/// Files of a fixture that a run reads; tokenizers are none of its business.
const FIXTURE_FILES: &[&str] = &["config.json", "expected.json", "preprocessor_config.json"];

const START: &str = include_str!("gpu_check/run.sh");
const README: &str = include_str!("gpu_check/README.txt");

/// Options of `cargo xtask gpu-check`.
#[derive(Args)]
pub struct Options {
    /// Make `target/gpu-check.tar.gz`, to be run on another machine, instead of running here.
    #[arg(long)]
    bundle: bool,
    /// Builds in the bundle, e.g. `hopper` or `hopper,ada`.
    #[arg(long, default_value = "hopper", value_delimiter = ',')]
    build: Vec<String>,
    /// Take the plugins as they were compiled last.
    #[arg(long)]
    no_compile: bool,
    /// Compiler processes at a time.
    #[arg(long, short)]
    jobs: Option<u32>,
    /// Passed on to the run, after `--`; `-- --help` lists what it takes.
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Runs here, or makes a bundle.
pub fn run(options: &Options) -> Result<()> {
    if options.bundle { bundle(options) } else { here(options) }
}

/// Runs with the plugins and fixtures of this checkout.
fn here(options: &Options) -> Result<()> {
    let program = plugins::describer()?;
    let folder = target().join("gpu-check-here");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let links = [
        ("plugins", target().join("plugins")),
        ("fixtures", root().join("fixtures")),
        ("reference.py", reference()),
    ];
    for (name, to) in links {
        let link = folder.join(name);
        if !link.exists() {
            let _ = std::fs::remove_file(&link); // one that leads nowhere
            symlink(&to, &link).with_context(|| format!("cannot create {}", link.display()))?;
        }
    }
    let mut run = Command::new(program);
    run.arg("--bundle").arg(&folder).arg("--out").arg(target().join("gpu-check-results"));
    process::run(run.args(&options.arguments))
}

/// Puts together everything a machine needs that has a GPU and nothing else.
fn bundle(options: &Options) -> Result<()> {
    for build in &options.build {
        plugins::run(&plugins::Options {
            build: build.clone(),
            debug: false,
            no_compile: options.no_compile,
            jobs: options.jobs,
            describer: None,
            names: Vec::new(),
        })?;
    }
    let mut build = process::cargo();
    build.args(["build", "--release", "--package", "gpu-check"]);
    if let Some(jobs) = options.jobs {
        build.arg("--jobs").arg(jobs.to_string());
    }
    process::run(&mut build)?;

    let folder = target().join("gpu-check");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    copy(&target().join("release/gpu-check"), &folder.join("gpu-check"))?;
    copy(&reference(), &folder.join("reference.py"))?;
    for build in &options.build {
        copy_all(&target().join("plugins").join(build), &folder.join("plugins").join(build), &|_| true)?;
    }
    copy_all(&root().join("fixtures/models"), &folder.join("fixtures/models"), &is_wanted)?;
    let start = folder.join("run.sh");
    std::fs::write(&start, START)?;
    std::fs::set_permissions(&start, std::fs::Permissions::from_mode(0o755))?;
    std::fs::write(folder.join("README.txt"), README)?;
    pack(&folder)
}

/// Packs the folder, and refuses what has become too large to carry.
fn pack(folder: &Path) -> Result<()> {
    let archive = folder.with_extension("tar.gz");
    let mut tar = Command::new("tar");
    tar.arg("--directory").arg(target()).arg("--owner=0").arg("--group=0").arg("-czf").arg(&archive);
    process::run(tar.arg("gpu-check")).context("tar packs the bundle")?;
    let bytes = std::fs::metadata(&archive)?.len();
    let shown = format!("{}: {:.1} MiB", archive.display(), bytes as f64 / f64::from(1 << 20));
    if bytes > LARGEST {
        bail!("{shown}, more than the {} MiB that are carried; bundle fewer builds", LARGEST >> 20);
    }
    println!("{shown}\nthere: tar -xzf gpu-check.tar.gz && gpu-check/run.sh");
    Ok(())
}

fn reference() -> PathBuf {
    root().join("plugin-api/gpu-check/reference.py")
}

fn is_wanted(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    FIXTURE_FILES.contains(&name.as_ref()) || name.contains(".safetensors")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    std::fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// Copies the files of a folder and of those in it.
fn copy_all(from: &Path, to: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<()> {
    for entry in std::fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry?.path();
        let copied = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy_all(&path, &copied, wanted)?;
        } else if wanted(&path) {
            copy(&path, &copied)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_run_reads_is_carried() {
        let cases = [
            ("model.safetensors", true),
            ("model.safetensors-00001-of-00002.safetensors", true),
            ("model.safetensors.index.json", true),
            ("expected.json", true),
            ("tokenizer.json", false),
            ("a_exact.png", false),
        ];
        for (name, wanted) in cases {
            assert_eq!(is_wanted(Path::new(name)), wanted, "{name}");
        }
    }
}
