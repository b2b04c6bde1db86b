//! `cortex serve`: everything put together.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::{Config, Loaded};
use crate::coordinator::membership::{self, Limits};
use crate::coordinator::{Coordinator, Etcd};
use crate::fleet::directory::Directory;
use crate::fleet::identity::new_id;
use crate::fleet::transport::Http;
use crate::fleet::{Fleet, poll};
use crate::metrics::Metrics;
use crate::placement::{Placement, Policy, background};
use crate::proxy::client::{Client, client};
use crate::server::{self, Gateway, listen, reload};
use crate::strategies::{self, Strategies};
use crate::telemetry::Tracer;
use crate::usage::Ledger;

/// How often the house is kept.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// A gateway with the tasks that keep it informed. Dropping it stops them.
pub struct Assembled {
    /// The gateway.
    pub gateway: Arc<Gateway>,
    _tasks: Vec<JoinSet<()>>,
}

/// Puts a gateway together and starts asking its nodes.
///
/// # Errors
/// What is wrong with the strategies.
pub fn assemble(loaded: Loaded) -> anyhow::Result<Assembled> {
    let Loaded { config, catalogue, catalogue_path } = loaded;
    let known = Strategies::open(&config.plugins.files)?;
    let router = known.router(&config.routing.strategy, &config.routing.options)?;
    let evictor = known.evictor(&config.eviction.strategy, &config.eviction.options)?;
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
    let coordinator = agree(&config, &client);
    let placement = match &coordinator {
        Some((etcd, name)) => placement.together(Arc::clone(etcd), name),
        None => placement,
    };
    let placement = Arc::new(placement);
    let ledger = config.usage.source()?.map(Ledger::of).transpose()?.map(Arc::new);
    let keys = reload::keys(config.keys.file.as_deref(), ledger.as_deref())?;
    let files = reload::Files { catalogue: catalogue_path, keys: config.keys.file.clone() };
    let key_env = config.coordinator.node_api_key_env.clone();
    let mut tasks = vec![
        poll::start(Arc::clone(&fleet), nodes.clone(), Duration::from_millis(config.polling.interval_ms)),
        background::start(Arc::clone(&placement), HOUSEKEEPING),
    ];
    if let Some((etcd, _)) = &coordinator {
        tasks.push(membership::follow(etcd, Arc::clone(&fleet), nodes, key_env));
    }
    let (tracer, tracing) = Tracer::start(&config.telemetry, client.clone()).unzip();
    tasks.extend(tracing);
    let gateway = Gateway::new(config, fleet, placement, client, metrics, keys, ledger).traced_by(tracer);
    let gateway = Arc::new(gateway);
    tasks.push(reload::start(Arc::clone(&gateway), files, HOUSEKEEPING));
    if let Some((etcd, _)) = coordinator {
        tasks.push(membership::share_limits(etcd, Arc::clone(&gateway) as Arc<dyn Limits>));
    }
    Ok(Assembled { gateway, _tasks: tasks })
}

/// The coordinator the configuration names, and what this gateway is called there.
fn agree(config: &Config, client: &Client) -> Option<(Arc<dyn Coordinator>, String)> {
    let settings = &config.coordinator;
    if settings.etcd.is_empty() {
        return None;
    }
    let name = settings.name.clone().unwrap_or_else(|| new_id("cortex-"));
    Some((Arc::new(Etcd::join(client.clone(), &settings.etcd, &name)), name))
}

/// Serves until SIGTERM or SIGINT, then drains.
pub async fn run(config: Option<&Path>) -> anyhow::Result<()> {
    start_log();
    allow_many_connections();
    let loaded = Config::load(config)?;
    if loaded.config.neurons.is_empty() {
        tracing::warn!("no [[neurons]] are configured; every request will be turned away");
    }
    strategies::probe(&loaded.config.plugins.files, &std::env::current_exe()?)?;
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

/// Every open stream is two connections; the soft limit of most systems is a thousand files.
fn allow_many_connections() {
    let limit = getrlimit(Resource::Nofile);
    let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) else { return };
    tracing::warn!(%error, files = limit.current, "the limit of open files stays as it was");
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
