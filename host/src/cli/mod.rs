//! The command line: one file per command, each a thin doer around the library.
//!
//! What a person reads goes to standard output, logs and progress to standard error, so that every command can
//! be piped. With `--json` standard output is one JSON document and nothing else.

mod ask;
mod bench;
mod chat;
mod config;
mod doctor;
mod load;
mod log;
mod models;
mod node;
mod plugin;
mod plugins;
mod pull;
mod run;
mod serve;
mod table;
mod unload;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{Config, Loaded};

/// Serves language models on this machine.
///
/// Architectures are plugins, each model runs in a process of its own, and everything is spoken over one port:
/// OpenAI's API under /v1, and an API to load, unload and watch models.
#[derive(Debug, Parser)]
#[command(name = "neuron", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "Examples:
  neuron run HuggingFaceTB/SmolLM2-135M-Instruct        talk to a model, nothing else needed
  neuron serve --model ./SmolLM2                        serve it at http://127.0.0.1:13131/v1
  neuron doctor                                         find out what is in the way

Every command explains itself: neuron <command> --help")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// Where settings come from.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ConfigFile {
    /// Configuration file; /etc/neuron/neuron.toml if there is one and no other is named.
    #[arg(long, env = "NEURON_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Plugin directory, before all others; may be given several times.
    #[arg(long = "plugins", value_name = "DIRECTORY")]
    plugins: Vec<PathBuf>,
}

impl ConfigFile {
    /// Reads the configuration, with what the command line says in front.
    fn load(&self) -> anyhow::Result<Loaded> {
        let mut loaded = Config::load(self.config.as_deref())?;
        let here = std::env::current_dir()?;
        let named = self.plugins.iter().map(|directory| here.join(directory));
        loaded.config.plugins.directories.splice(0..0, named);
        Ok(loaded)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models over HTTP until SIGTERM or Ctrl-C.
    Serve(serve::Options),
    /// Talk to a model in the terminal, or ask it one thing.
    Run(run::Options),
    /// Fetch a model from the hub without loading it.
    Pull(pull::Options),
    /// List the models of a running neuron.
    Models(models::Options),
    /// Load a model into a running neuron.
    Load(load::Options),
    /// Unload a model from a running neuron.
    Unload(unload::Options),
    /// Show which plugins there are, which serve which device, and why others do not.
    Plugins(plugins::Options),
    /// Begin, check or install a plugin.
    Plugin {
        #[command(subcommand)]
        command: plugin::Command,
    },
    /// Look for what keeps neuron from working well on this machine, and say what to do about it.
    Doctor(doctor::Options),
    /// Measure how fast a model runs here, and how much of the memory bandwidth it reaches.
    Bench(bench::Options),
    /// Work on the configuration.
    Config {
        #[command(subcommand)]
        command: config::Command,
    },
    /// Print completions for a shell.
    #[command(
        after_help = "Example:\n  neuron completions bash > ~/.local/share/bash-completion/completions/neuron"
    )]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    let outcome = runtime.block_on(execute(arguments.command));
    // A thread that waits for a key would keep the process for ever.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

async fn execute(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(options) => serve::run(&options).await,
        Command::Run(options) => run::run(&options).await,
        Command::Pull(options) => pull::run(&options).await,
        Command::Models(options) => models::run(&options).await,
        Command::Load(options) => load::run(&options).await,
        Command::Unload(options) => unload::run(&options).await,
        Command::Plugins(options) => plugins::run(&options).await,
        Command::Plugin { command } => {
            let kept = plugin::run(&command)?;
            return Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Doctor(options) => return doctor::run(&options).await,
        Command::Bench(options) => bench::run(&options).await,
        Command::Config { command } => config::run(&command),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "neuron", &mut std::io::stdout());
            Ok(())
        }
    }?;
    Ok(ExitCode::SUCCESS)
}

#[allow(clippy::print_stderr)] // the last words of a command are for the person who gave it
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("neuron: {error:#}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests;
