//! Routers and evictors, all of them through the plugin interface.
//!
//! The built-in strategies are linked in and pass through the same door as those from files. A file
//! may replace a built-in strategy by offering one of the same name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use evictors as _;
use plugin_loader::{
    Evictor, HostServices, Plugin, PluginError, Refusal, Router, StrategyInfo, probe_in_child,
};
use routers as _;

/// Why a strategy cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StrategyError {
    /// A file was turned away.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nobody offers it.
    #[error("there is no {kind} called '{name}'; there are {known}{advice}")]
    Unknown {
        /// `router` or `evictor`.
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
        /// The nearest of them.
        advice: String,
    },
    /// It does not like its options.
    #[error("{0}")]
    Options(PluginError),
}

/// How long a plugin file may take to be looked at.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// Opens each file in a throw-away child first, run as `program plugin-probe FILE`: what crashes, hangs or ends
/// the process while it is opened takes nobody with it.
///
/// # Errors
/// [`StrategyError::Refused`] naming file and cause.
pub fn probe(files: &[PathBuf], program: &Path) -> Result<(), StrategyError> {
    files.iter().try_for_each(|file| Ok(probe_in_child(program, file, PROBE_TIMEOUT).map(drop)?))
}

/// Every strategy there is.
pub struct Strategies {
    plugins: Vec<Plugin>,
}

impl Strategies {
    /// The built-in strategies and those in `files`.
    ///
    /// # Errors
    /// [`StrategyError::Refused`] naming file and cause.
    pub fn open(files: &[PathBuf]) -> Result<Self, StrategyError> {
        let services = HostServices::tracing(1);
        let mut plugins = Vec::new();
        for file in files {
            plugins.push(Plugin::open(file, &services)?);
        }
        plugins.push(Plugin::embedded(plugin_sdk::embedded_plugin!("strategies"), &services)?);
        Ok(Self { plugins })
    }

    /// The router called `name`, made from its options.
    ///
    /// # Errors
    /// [`StrategyError`] when there is none or it refuses the options.
    pub fn router(&self, name: &str, options: &toml::Table) -> Result<Router, StrategyError> {
        let plugin = self.find("router", name, Plugin::routers)?;
        plugin.create_router(name, &json(options)).map_err(StrategyError::Options)
    }

    /// The evictor called `name`, made from its options.
    ///
    /// # Errors
    /// [`StrategyError`] when there is none or it refuses the options.
    pub fn evictor(&self, name: &str, options: &toml::Table) -> Result<Evictor, StrategyError> {
        let plugin = self.find("evictor", name, Plugin::evictors)?;
        plugin.create_evictor(name, &json(options)).map_err(StrategyError::Options)
    }

    /// Routers with one sentence each, by name.
    pub fn routers(&self) -> Vec<&StrategyInfo> {
        self.list(Plugin::routers)
    }

    /// Evictors with one sentence each, by name.
    pub fn evictors(&self) -> Vec<&StrategyInfo> {
        self.list(Plugin::evictors)
    }

    fn list(&self, offered: fn(&Plugin) -> &'static [StrategyInfo]) -> Vec<&StrategyInfo> {
        let mut all: Vec<_> = self.plugins.iter().flat_map(offered).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all.dedup_by(|a, b| a.name == b.name);
        all
    }

    fn find(
        &self,
        kind: &'static str,
        name: &str,
        offered: fn(&Plugin) -> &'static [StrategyInfo],
    ) -> Result<&Plugin, StrategyError> {
        let has = |plugin: &&Plugin| offered(plugin).iter().any(|info| info.name == name);
        self.plugins.iter().find(has).ok_or_else(|| {
            let names: Vec<&str> = self.list(offered).iter().map(|info| info.name.as_str()).collect();
            let advice = crate::config::error::nearest(name, names.iter().copied())
                .map_or_else(String::new, |near| format!("; did you mean '{near}'?"));
            StrategyError::Unknown { kind, name: name.to_owned(), known: names.join(", "), advice }
        })
    }
}

fn json(options: &toml::Table) -> String {
    serde_json::to_string(options).expect("a TOML table is always representable as JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_strategy_passes_the_door() {
        let strategies = Strategies::open(&[]).expect("the embedded plugin");
        let names = |list: Vec<&StrategyInfo>| list.iter().map(|info| info.name.clone()).collect::<Vec<_>>();
        assert_eq!(
            names(strategies.routers()),
            [
                "fit",
                "kv_aware",
                "least_inflight",
                "least_tokens",
                "peak_ewma",
                "power_of_two",
                "prefix_affinity",
                "round_robin",
                "session_hash"
            ]
        );
        assert_eq!(
            names(strategies.evictors()),
            ["gd_wait", "gdsf", "knapsack", "lfu_aging", "lru", "priority", "ttl_idle"]
        );
        for info in strategies.routers() {
            strategies.router(&info.name, &toml::Table::new()).expect("defaults");
        }
        for info in strategies.evictors() {
            strategies.evictor(&info.name, &toml::Table::new()).expect("defaults");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let strategies = Strategies::open(&[]).expect("the embedded plugin");
        let error = strategies.router("least_token", &toml::Table::new()).expect_err("no such").to_string();
        assert!(error.contains("did you mean 'least_tokens'?"), "{error}");
        let options: toml::Table = "horizon = 5".parse().expect("TOML");
        let error = strategies.evictor("gd_wait", &options).expect_err("no such option").to_string();
        assert!(error.contains("did you mean 'horizon_s'?"), "{error}");
        let error = Strategies::open(&["/nowhere/x.so".into()]).err().expect("no such file").to_string();
        assert!(error.contains("/nowhere/x.so"), "{error}");
    }
}
