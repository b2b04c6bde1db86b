//! A node put together in this process: plugins, models and the server's state.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::generation::{Generator, Pictures};
use crate::hub::{Hub, HubOptions};
use crate::lifecycle::{Models, Resolver};
use crate::metrics::Metrics;
use crate::prompt::fetch::ImageSource;
use crate::server::{House, Settings};
use crate::worker::log::FILTER;
use crate::worker::process::WorkerCommand;

/// A node without a socket. Dropping it stops watching the plugin directories.
pub struct Node {
    /// Its models.
    pub models: Models,
    watch: tokio::task::JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Node {
    /// Puts a node together and begins to look for plugins.
    ///
    /// # Errors
    /// What in the configuration cannot be used.
    pub fn assemble(config: &Config) -> anyhow::Result<Self> {
        let catalogue = Catalogue::new(config.plugins.catalogue_options()?);
        let watch = catalogue.watch();
        // A driver that nobody keeps awake takes seconds for its first answer.
        tokio::task::spawn_blocking(crate::discovery::gpu::look);
        let mut worker =
            WorkerCommand::this_binary().context("cannot find the neuron binary to start workers with")?;
        worker.environment.push((FILTER.into(), config.log.filter.clone().into()));
        let models =
            Models::new(config.models_options(worker), catalogue, resolver(config, false)?, Metrics::new());
        Ok(Self { models, watch })
    }

    /// The state of the server in front of it.
    ///
    /// # Errors
    /// When the TLS library for fetching pictures cannot start.
    pub fn house(&self, config: &Config) -> anyhow::Result<Arc<House>> {
        let source = ImageSource::new(config.images.fetch_rules())?;
        let pictures = Pictures::new(source, config.images.limits());
        let generator = Generator::new(self.models.clone(), pictures);
        let settings = Settings {
            name: config.node_name(),
            body_limit_bytes: config.max_body_bytes(),
            model_patience: Duration::from_secs(config.limits.load_wait_s),
            shutdown_patience: Duration::from_secs(config.engine.drain_timeout_s),
        };
        Ok(Arc::new(House::new(self.models.clone(), generator, settings)))
    }
}

/// Finds models: on this machine and on the hub. With `refresh` the hub is asked even for what is cached.
///
/// # Errors
/// When the hub's address is none.
pub fn resolver(config: &Config, refresh: bool) -> anyhow::Result<Arc<dyn Resolver>> {
    let options = HubOptions {
        endpoint: config.hub.endpoint.clone(),
        cache: config.hub.cache.clone(),
        offline: config.hub.offline,
        refresh,
        token: None,
    };
    Ok(Arc::new(Hub::new(options)?))
}
