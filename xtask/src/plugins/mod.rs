//! Building architecture plugins, one folder per build, each with a manifest beside it.

mod manifest;
mod verify;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use manifest::Manifest;
pub use manifest::describer;

use crate::cuda::Toolchain;
use crate::generation::Build;
use crate::{inspect, machine, process, root, target};

/// Options of `cargo xtask plugins`.
#[derive(Args)]
pub struct Options {
    /// cpu-v2, cpu-v3, cpu-v4, ampere, ada, hopper or blackwell; `auto` is the best this processor runs, `all` is
    /// every one of them.
    #[arg(long, default_value = "auto")]
    pub build: String,
    /// Compile without optimisation, for tests.
    #[arg(long)]
    pub debug: bool,
    /// Compile nothing: look into what was compiled last, and install that.
    #[arg(long)]
    pub no_compile: bool,
    /// Compiler processes at a time; cargo's default when left out.
    #[arg(long, short)]
    pub jobs: Option<u32>,
    /// A program that opens plugins and is built already; otherwise one is built.
    #[arg(skip)]
    pub describer: Option<PathBuf>,
    /// Only these plugins; all by default.
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
}

/// Builds the plugins; returns the folder that holds `<build>/<name>.so`.
pub fn run(options: &Options) -> Result<PathBuf> {
    let builds = builds(&options.build)?;
    let names = if options.names.is_empty() { available()? } else { options.names.clone() };
    let plugins = target().join("plugins");
    let describer = options.describer.clone().map_or_else(describer, Ok)?;
    for build in builds {
        let compiled = compile(&build, &names, options)?;
        deliver(&build, &names, &compiled, &plugins.join(build.name()), &describer)?;
    }
    manifest::write_sums(&plugins)?;
    Ok(plugins)
}

fn builds(asked: &str) -> Result<Vec<Build>> {
    let name = if asked == "auto" { machine::cpu_build() } else { asked };
    if name == "all" {
        return Ok(Build::all());
    }
    let Some(build) = Build::named(name) else {
        let known: Vec<_> = Build::all().iter().map(Build::name).collect();
        bail!("unknown build {name}; known: auto, all, {}", known.join(", "));
    };
    Ok(vec![build])
}

/// Compiles the plugins; returns the folder with what the compiler made. Each build has a target folder of its
/// own, so that the kernels of a generation are compiled once.
fn compile(build: &Build, names: &[String], options: &Options) -> Result<PathBuf> {
    let folder = target().join("plugin-builds").join(build.name());
    let compiled = folder.join(if options.debug { "debug" } else { "release" });
    if options.no_compile {
        return Ok(compiled);
    }
    let mut command = process::cargo();
    command.arg("build").arg("--target-dir").arg(&folder);
    if !options.debug {
        command.arg("--release");
    }
    if let Some(jobs) = options.jobs {
        command.arg("--jobs").arg(jobs.to_string());
    }
    for name in names {
        command.arg("--package").arg(format!("{name}-plugin"));
    }
    if let Build::Gpu(generation) = build {
        let toolchain = Toolchain::provide()?;
        command.args(["--features", "cuda"]);
        command.envs(toolchain.environment(generation, &folder)?);
        println!("compiling for {} (kernels take minutes the first time) …", build.name());
    }
    command.env("RUSTFLAGS", format!("-C target-cpu=x86-64-v{}", build.cpu_level()));
    command.env("NEURON_BUILD", build.name()).env("NEURON_GIT", revision());
    process::run(&mut command)?;
    Ok(compiled)
}

/// Looks into what was built, and installs what is right with a manifest.
fn deliver(build: &Build, names: &[String], compiled: &Path, folder: &Path, describer: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for name in names {
        let built = compiled.join(format!("libneuron_{name}.so"));
        let contents = inspect::read(&built)?;
        verify::check(build, name, &contents)
            .with_context(|| format!("{} is not what a {} build must be", built.display(), build.name()))?;
        let installed = folder.join(format!("{name}.so"));
        install(&built, &installed)?;
        let manifest = Manifest::of(build, &installed, contents, describer)?;
        manifest.write(&installed.with_extension("json"))?;
        println!("  {}", manifest.sentence());
    }
    println!("plugins {} -> {}", names.join(", "), folder.display());
    Ok(())
}

/// Names of all architecture plugins in the checkout.
pub fn available() -> Result<Vec<String>> {
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

/// The revision of the checkout; empty outside one.
pub fn revision() -> String {
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git").args(arguments).current_dir(root()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_default()
}
