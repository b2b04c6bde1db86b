//! The command line: one file per command, each a thin doer around the library.

mod ask;
mod config;
mod keys;
mod models;
pub mod serve;
mod status;
mod usage;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// One address in front of many neurons: routes, loads and evicts as one decision.
#[derive(Debug, Parser)]
#[command(name = "cortex", version, arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API in front of the configured neurons.
    Serve {
        /// The configuration; without it, defaults and environment alone.
        #[arg(long, env = "CORTEX_CONFIG")]
        config: Option<PathBuf>,
    },
    /// Show the fleet.
    Status {
        #[command(flatten)]
        ask: ask::Options,
        /// Show it again every second.
        #[arg(long)]
        watch: bool,
    },
    /// List every model any node serves or could load.
    Models {
        #[command(flatten)]
        ask: ask::Options,
    },
    /// Load a model, where placement wants it or on a node.
    Load {
        #[command(flatten)]
        ask: ask::Options,
        /// Id or alias.
        model: String,
        /// The node.
        #[arg(long)]
        node: Option<String>,
    },
    /// Unload a model, everywhere or from a node.
    Unload {
        #[command(flatten)]
        ask: ask::Options,
        /// Id or alias.
        model: String,
        /// The node.
        #[arg(long)]
        node: Option<String>,
    },
    /// Send a node no new work.
    Drain {
        #[command(flatten)]
        ask: ask::Options,
        /// The node.
        node: String,
        /// Send it work again.
        #[arg(long)]
        undo: bool,
    },
    /// Keep a model where it is, whoever wants its place.
    Pin {
        #[command(flatten)]
        ask: ask::Options,
        /// Id or alias.
        model: String,
        /// The node; all that have it by default.
        #[arg(long)]
        node: Option<String>,
        /// Let it go again.
        #[arg(long)]
        undo: bool,
    },
    /// Say why a request went where it went.
    Explain {
        #[command(flatten)]
        ask: ask::Options,
        /// The request's id, from the x-request-id header of its answer.
        request_id: String,
    },
    /// Work on the key file.
    Keys {
        #[command(subcommand)]
        command: keys::Command,
    },
    /// Print the usage ledger: one row per request.
    Usage {
        #[command(flatten)]
        options: usage::Options,
    },
    /// Work on the configuration.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Open a plugin file and say what is in it: the throw-away child of `serve`.
    #[command(hide = true)]
    PluginProbe {
        /// The file.
        file: PathBuf,
    },
    /// Print shell completions.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Read the configuration, the catalogue and the strategies' options, and say what is wrong with them.
    Check {
        /// The configuration.
        #[arg(long, env = "CORTEX_CONFIG")]
        config: PathBuf,
    },
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    if let Command::PluginProbe { file } = &arguments.command {
        return ExitCode::from(u8::from(plugin_loader::probe_main(file) != 0));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    match runtime.block_on(execute(arguments.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

#[expect(clippy::print_stderr, reason = "the command line's last word")]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("cortex: {error:#}");
    ExitCode::FAILURE
}

async fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve { config } => serve::run(config.as_deref()).await,
        Command::Status { ask, watch } => status::run(&ask, watch).await,
        Command::Models { ask } => models::run(&ask).await,
        Command::Load { ask, model, node } => {
            let command = serde_json::json!({"model": model, "node": node});
            ask.print(&ask.post("/cortex/v1/models/load", &command).await?)
        }
        Command::Unload { ask, model, node } => {
            let command = serde_json::json!({"model": model, "node": node});
            ask.print(&ask.post("/cortex/v1/models/unload", &command).await?)
        }
        Command::Pin { ask, model, node, undo } => {
            let command = serde_json::json!({"model": model, "node": node, "pinned": !undo});
            ask.print(&ask.post("/cortex/v1/models/pin", &command).await?)
        }
        Command::Keys { command } => keys::run(command),
        Command::Usage { options } => usage::run(&options),
        Command::Drain { ask, node, undo } => {
            let path = format!("/cortex/v1/nodes/{node}/drain");
            ask.print(&ask.post(&path, &serde_json::json!({"draining": !undo})).await?)
        }
        Command::Explain { ask, request_id } => {
            ask.print(&ask.get::<serde_json::Value>(&format!("/cortex/v1/explain/{request_id}")).await?)
        }
        Command::Config { command: ConfigCommand::Check { config } } => config::check(&config),
        // Answered before there is a runtime.
        Command::PluginProbe { .. } => Ok(()),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "cortex", &mut std::io::stdout());
            Ok(())
        }
    }
}
