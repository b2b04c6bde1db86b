//! `neuron plugin`: begin a plugin, check one, install one.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use plugin_conformance::template::{self, Kind, Sdk};
use plugin_conformance::{Options as CheckOptions, Report, check};

use super::ConfigFile;

/// Prints a line; whoever reads it may have heard enough and closed the pipe.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// What is done with a plugin.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Write the crate of a new plugin: it builds, passes its tests and keeps every promise.
    New(New),
    /// Play the host against a plugin file and report promise by promise.
    Check(Check),
    /// Check plugin files and copy them to where neuron looks for them.
    Install(Install),
}

/// Begins a plugin.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  neuron plugin new most-free --kind router --sdk-path ~/src/neuron/plugin-api/sdk
  neuron plugin new mamba --kind arch --sdk-path ~/src/neuron/plugin-api/sdk")]
pub struct New {
    /// Name of plugin and crate: lower case letters, digits, - and _.
    name: String,
    /// What it is to be.
    #[arg(long, value_enum)]
    kind: PluginKind,
    /// Folder to write; the name if none is given.
    #[arg(long, value_name = "FOLDER")]
    into: Option<PathBuf>,
    /// Take plugin-sdk from this folder.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["sdk_version", "sdk_git"])]
    sdk_path: Option<PathBuf>,
    /// Take plugin-sdk from this git repository.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "sdk_version")]
    sdk_git: Option<String>,
    /// Take plugin-sdk in this version from the registry.
    #[arg(long, value_name = "VERSION")]
    sdk_version: Option<String>,
}

/// Kinds of plugins.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum PluginKind {
    /// A model architecture.
    Arch,
    /// A routing strategy.
    Router,
    /// An eviction strategy.
    Evictor,
}

/// Checks a plugin.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  neuron plugin check target/release/libmost_free.so
  neuron plugin check libneuron_llama.so --model ./SmolLM2-135M-Instruct
  neuron plugin check libmamba.so --json | jq '.findings[] | select(.verdict == \"broken\")'

The exit status is 1 when a promise is broken.")]
pub struct Check {
    /// The plugin.
    file: PathBuf,
    /// Folder of a model to check architectures with; those without weights need none.
    #[arg(long, value_name = "FOLDER")]
    model: Option<PathBuf>,
    /// How often the model is loaded and unloaded in search of growth.
    #[arg(long, default_value_t = 100)]
    loads: u32,
    /// Longest time one promise may take, in seconds.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    timeout: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Installs plugins.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  neuron plugin install target/release/libmost_free.so
  sudo neuron plugin install ./plugins --to /usr/lib/neuron/plugins

A plugin that breaks a promise is not installed. A running neuron serves a new one without a restart.")]
pub struct Install {
    /// A plugin, or a folder of them.
    path: PathBuf,
    /// Directory to install into; the first one neuron looks in if none is given.
    #[arg(long, value_name = "DIRECTORY")]
    to: Option<PathBuf>,
    /// Folder of a model to check architectures with, as in `check`; what cannot be checked without is skipped.
    #[arg(long, value_name = "FOLDER")]
    model: Option<PathBuf>,
    /// Install even what breaks promises.
    #[arg(long)]
    anyway: bool,
    #[command(flatten)]
    file: ConfigFile,
}

/// Runs the command. `false` when a promise is broken.
pub fn run(command: &Command) -> anyhow::Result<bool> {
    match command {
        Command::New(new) => begin(new).map(|()| true),
        Command::Check(check) => examine(check),
        Command::Install(install) => put(install),
    }
}

fn begin(new: &New) -> anyhow::Result<()> {
    let kind = match new.kind {
        PluginKind::Arch => Kind::Architecture,
        PluginKind::Router => Kind::Router,
        PluginKind::Evictor => Kind::Evictor,
    };
    let sdk = match (&new.sdk_path, &new.sdk_git, &new.sdk_version) {
        (Some(path), ..) => {
            Sdk::Path(path.canonicalize().with_context(|| format!("no plugin-sdk at {}", path.display()))?)
        }
        (None, Some(address), _) => Sdk::Git(address.clone()),
        (None, None, Some(version)) => Sdk::Version(version.clone()),
        (None, None, None) => {
            bail!("say where plugin-sdk comes from: --sdk-path, --sdk-git or --sdk-version")
        }
    };
    let folder = new.into.clone().unwrap_or_else(|| PathBuf::from(&new.name));
    template::write(&folder, &new.name, kind, &sdk)?;
    let library = format!("target/release/lib{}.so", new.name.replace('-', "_"));
    say!("{} is begun. Next:", folder.display());
    say!("  cd {} && cargo test && cargo build --release", folder.display());
    say!("  neuron plugin check {library}");
    match new.kind {
        PluginKind::Arch => say!("  neuron plugin install {library}"),
        PluginKind::Router | PluginKind::Evictor => {
            say!("  neuron plugin install {library} --to /usr/lib/cortex/plugins");
            say!("  and name it in cortex.toml, as its README says");
        }
    }
    Ok(())
}

fn examine(options: &Check) -> anyhow::Result<bool> {
    let report = report(&options.file, options.model.clone(), options.loads, options.timeout)?;
    if options.json {
        say!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        say!("{report}");
    }
    Ok(report.passed())
}

fn report(file: &Path, model: Option<PathBuf>, loads: u32, timeout_s: u64) -> anyhow::Result<Report> {
    let file = file.canonicalize().with_context(|| format!("{} cannot be read", file.display()))?;
    let options = CheckOptions {
        model: model
            .map(|model| model.canonicalize().with_context(|| model.display().to_string()))
            .transpose()?,
        loads,
        timeout: Duration::from_secs(timeout_s),
        ..CheckOptions::new(std::env::current_exe()?)
    };
    Ok(check(&file, &options))
}

fn put(options: &Install) -> anyhow::Result<bool> {
    let config = options.file.load()?.config;
    let directory = match &options.to {
        Some(directory) => directory.clone(),
        None => config
            .plugins
            .search_path()
            .into_iter()
            .next()
            .context("there is no plugin directory; use --to")?,
    };
    let files = if options.path.is_dir() {
        plugin_loader::scan([&options.path]).into_iter().map(|found| found.path).collect()
    } else {
        vec![options.path.clone()]
    };
    if files.is_empty() {
        bail!("there is no plugin in {}", options.path.display());
    }
    let mut all = true;
    for file in files {
        let report = report(&file, options.model.clone(), 20, 120)?;
        if !report.passed() && !options.anyway {
            say!("{report}\n\n{} was not installed", file.display());
            all = false;
            continue;
        }
        let place = plugin_loader::install(&file, &directory)?;
        say!("{}", place.display());
    }
    Ok(all)
}
