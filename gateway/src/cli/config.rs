//! `cortex config check`.

use std::path::Path;

use crate::config::Config;
use crate::strategies::{Strategies, probe};

/// Reads everything `serve` would read, and says what is in it.
pub fn check(path: &Path) -> anyhow::Result<()> {
    let loaded = Config::load(Some(path))?;
    let config = &loaded.config;
    probe(&config.plugins.files, &std::env::current_exe()?)?;
    let strategies = Strategies::open(&config.plugins.files)?;
    strategies.router(&config.routing.strategy, &config.routing.options)?;
    strategies.evictor(&config.eviction.strategy, &config.eviction.options)?;
    println!(
        "{}: {} nodes, {} models in the catalogue, router {}, evictor {}",
        path.display(),
        config.neurons.len(),
        loaded.catalogue.models.len(),
        config.routing.strategy,
        config.eviction.strategy
    );
    Ok(())
}
