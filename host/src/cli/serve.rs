//! `neuron serve`: everything put together, behind a socket.

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use wire_api::node::registration::Registration;

use super::node::Node;
use super::{ConfigFile, log};
use crate::config::{Config, Model};
use crate::lifecycle::Models;
use crate::{registration, server};

/// The command's arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  neuron serve --model ./SmolLM2-135M-Instruct
  neuron serve --config neuron.toml --listen 0.0.0.0:13131
  curl http://127.0.0.1:13131/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"model\": \"./SmolLM2-135M-Instruct\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'

Without models it serves all the same: load them with `neuron load`. Ctrl-C lets requests in flight finish; a
second Ctrl-C does not.")]
pub struct Options {
    #[command(flatten)]
    file: ConfigFile,
    /// Address of all APIs, instead of the configured one; port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Load this model as well: a path, or org/name of the hub, as [ID=]SOURCE; may be given several times.
    #[arg(long = "model", value_name = "[ID=]SOURCE")]
    models: Vec<String>,
}

/// Serves until SIGTERM or SIGINT, then drains.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let loaded = options.file.load()?;
    let mut config = loaded.config;
    log::start(&config.log.filter);
    if let Some(listen) = &options.listen {
        config.listen.clone_from(listen);
    }
    config.models.extend(options.models.iter().map(|text| model(text)));
    let listener = bind(&config.listen).await?;
    let node = Node::assemble(&config)?;
    let house = node.house(&config)?;
    want(&node.models, &config)?;
    tracing::info!(
        address = %listener.local_addr()?,
        config = %loaded.path.map_or_else(|| "none, defaults".into(), |path| path.display().to_string()),
        models = config.models.len(),
        version = env!("CARGO_PKG_VERSION"),
        "neuron serves"
    );
    // Ends with this function: a node that is going is known to nobody new.
    let _registering = register(&config);
    let asked = stop_signals()?;
    server::serve(listener, house, asked).await.context("the server failed")?;
    tracing::info!("neuron has ended");
    Ok(())
}

/// Makes the node known to gateways, where the configuration says to whom.
fn register(config: &Config) -> Option<tokio::task::JoinSet<()>> {
    let settings = &config.register;
    if settings.etcd.is_empty() {
        return None;
    }
    let told = Registration {
        name: config.node_name(),
        endpoint: settings.endpoint.clone(),
        weight: settings.weight,
    };
    let mut task = tokio::task::JoinSet::new();
    task.spawn(registration::keep(settings.etcd.clone(), told));
    Some(task)
}

/// `ID=SOURCE`, or just the source.
pub(super) fn model(text: &str) -> Model {
    match text.split_once('=') {
        Some((id, source)) if !id.contains('/') => {
            Model { id: id.to_owned(), source: source.to_owned(), ..Model::default() }
        }
        _ => Model { source: text.to_owned(), ..Model::default() },
    }
}

/// Makes the configured models known and begins to load those that are wanted from the start.
fn want(models: &Models, config: &Config) -> anyhow::Result<()> {
    for model in &config.models {
        models.declare(model.request());
        if !model.on_demand {
            let job = models.desire(model.request());
            job.with_context(|| format!("the model {} of the configuration cannot be loaded", model.name()))?;
        }
    }
    Ok(())
}

/// Listens, or says what to do about it.
pub(super) async fn bind(address: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "; another neuron may be running there (see `neuron models`), or choose another with --listen"
            }
            std::io::ErrorKind::PermissionDenied => {
                "; ports below 1024 are for root, choose another with --listen"
            }
            std::io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
            _ => "",
        };
        anyhow::anyhow!("cannot listen on {address}: {error}{advice}")
    })
}

/// Resolves when this process is asked to stop. A second request ends it on the spot.
fn stop_signals() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::warn!("asked to stop a second time: ending without waiting");
            // The workers' links end with this process, and the workers with their links.
            std::process::exit(130);
        });
    })
}
