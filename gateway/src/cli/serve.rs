//! `cortex serve`: everything put together.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::{Config, Loaded};
use crate::fleet::directory::Directory;
use crate::fleet::transport::Http;
use crate::fleet::{Fleet, poll};
use crate::metrics::Metrics;
use crate::placement::{Placement, Policy, background};
use crate::proxy::client::client;
use crate::server::{self, Gateway, listen, reload};
use crate::strategies::Strategies;
use crate::usage::Ledger;

/// How often the house is kept.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// A gateway with the tasks that keep it informed. Dropping it stops them.
pub struct Assembled {
    /// The gateway.
    pub gateway: Arc<Gateway>,
    _tasks: [JoinSet<()>; 3],
}

/// Puts a gateway together and starts asking its nodes.
///
/// # Errors
/// What is wrong with the strategies.
pub fn assemble(loaded: Loaded) -> anyhow::Result<Assembled> {
    let Loaded { config, catalogue, catalogue_path } = loaded;
    let strategies = Strategies::open(&config.plugins.files)?;
    let router = strategies.router(&config.routing.strategy, &config.routing.options)?;
    let evictor = strategies.evictor(&config.eviction.strategy, &config.eviction.options)?;
    let metrics = Arc::new(Metrics::default());
    let fleet = Arc::new(Fleet::new(config.neurons.clone(), catalogue, config.polling.misses));
    let client = client(Duration::from_secs(config.gateway.connect_timeout_s));
    let timeout = Duration::from_millis(config.polling.timeout_ms);
    let nodes = Directory::new(Arc::new(Http(client.clone())), timeout, &fleet.nodes());
    let placement = Placement::new(
        Arc::clone(&fleet),
        nodes.clone(),
        router,
        evictor,
        Policy::of(&config),
        Arc::clone(&metrics),
    );
    let placement = Arc::new(placement);
    let ledger = match &config.usage.database {
        Some(path) => Some(Arc::new(Ledger::open(path)?)),
        None => None,
    };
    let keys = reload::keys(config.keys.file.as_deref(), ledger.as_deref())?;
    let files = reload::Files { catalogue: catalogue_path, keys: config.keys.file.clone() };
    let pollers = [
        poll::start(Arc::clone(&fleet), nodes, Duration::from_millis(config.polling.interval_ms)),
        background::start(Arc::clone(&placement), HOUSEKEEPING),
    ];
    let gateway = Arc::new(Gateway::new(config, fleet, placement, client, metrics, keys, ledger));
    let [polling, keeping] = pollers;
    let reloading = reload::start(Arc::clone(&gateway), files, HOUSEKEEPING);
    Ok(Assembled { gateway, _tasks: [polling, keeping, reloading] })
}

/// Serves until SIGTERM or SIGINT, then drains.
pub async fn run(config: Option<&Path>) -> anyhow::Result<()> {
    start_log();
    let loaded = Config::load(config)?;
    if loaded.config.neurons.is_empty() {
        tracing::warn!("no [[neurons]] are configured; every request will be turned away");
    }
    let assembled = assemble(loaded)?;
    if assembled.gateway.keys.load().is_open() {
        tracing::warn!("no [keys] file is configured; everybody may do everything");
    }
    let gateway = &assembled.gateway;
    let settings = gateway.config.gateway.clone();
    let listener = bind(&settings.listen).await?;
    tracing::info!(address = %listener.local_addr()?, nodes = gateway.config.neurons.len(), "cortex serves");
    let (stop, stopped) = watch::channel(false);
    let drain = Duration::from_secs(settings.drain_timeout_s);
    let mut doors = JoinSet::new();
    doors.spawn(listen::serve(listener, server::router(Arc::clone(gateway)), stopped.clone(), drain));
    if !settings.metrics_listen.is_empty() {
        let listener = bind(&settings.metrics_listen).await?;
        tracing::info!(address = %listener.local_addr()?, "metrics");
        doors.spawn(listen::serve(
            listener,
            server::metrics_router(Arc::clone(gateway)),
            stopped,
            Duration::ZERO,
        ));
    }
    asked_to_stop().await?;
    tracing::info!(inflight = gateway.fleet.gauges().inflight(), "draining");
    gateway.drain();
    stop.send_replace(true);
    doors.join_all().await;
    Ok(())
}

async fn bind(address: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

async fn asked_to_stop() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(())
}

fn start_log() {
    let filter = std::env::var("CORTEX_LOG").unwrap_or_else(|_| "info".into());
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // A second subscriber is a test's business, not an error.
    let colours = std::io::stderr().is_terminal();
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    let _ = log.try_init();
}
