//! `cortex.toml`: what the gateway listens on, which nodes it fronts, how it decides.
//!
//! Every key is known or the file is refused with the nearest key named: a misspelt setting must not
//! be silently at its default. Environment variables `CORTEX_<SECTION>_<KEY>` override the file.

pub mod catalogue;
pub mod coordinator;
pub mod edge;
pub mod environment;
pub mod error;
pub mod neuron;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub use catalogue::{Catalogue, ModelSpec};
pub use edge::{Proxy, Telemetry, UsageSettings};
pub use error::ConfigError;

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen and how to carry requests.
    pub gateway: Gateway,
    /// How nodes are asked for their state.
    pub polling: Polling,
    /// Which replica serves a request.
    pub routing: Routing,
    /// What makes room for a model.
    pub eviction: Eviction,
    /// Strategies from files.
    pub plugins: Plugins,
    /// Who may ask.
    pub keys: KeySettings,
    /// What is written down.
    pub usage: UsageSettings,
    /// How requests are carried when a node is slow.
    pub proxy: Proxy,
    /// Where traces go.
    pub telemetry: Telemetry,
    /// How several gateways agree.
    pub coordinator: coordinator::Coordinator,
    /// The nodes.
    pub neurons: Vec<Neuron>,
}

/// `[gateway]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gateway {
    /// Address of the API, host and port.
    pub listen: String,
    /// Address of `/metrics`; empty for none.
    pub metrics_listen: String,
    /// The catalogue, relative to this file. Without it `models.toml` beside this file, if there is one.
    pub models: Option<PathBuf>,
    /// Largest request body, in MiB.
    pub max_body_mib: u64,
    /// Longest silence of a node while it answers, in seconds. There is no limit on the whole answer.
    pub idle_timeout_s: u64,
    /// Longest wait for a connection to a node, in seconds.
    pub connect_timeout_s: u64,
    /// Longest wait of a request for a cold model, in seconds.
    pub load_wait_s: u64,
    /// Time for running requests after SIGTERM, in seconds.
    pub drain_timeout_s: u64,
    /// Share of requests that may be retried on another node before their first byte, 0 to 1.
    pub retry_budget: f64,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:13132".into(),
            metrics_listen: "127.0.0.1:13133".into(),
            models: None,
            max_body_mib: 32,
            idle_timeout_s: 300,
            connect_timeout_s: 5,
            load_wait_s: 600,
            drain_timeout_s: 30,
            retry_budget: 0.2,
        }
    }
}

/// `[polling]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Polling {
    /// Time between two polls of a node, in milliseconds.
    pub interval_ms: u64,
    /// Longest wait for an answer, in milliseconds.
    pub timeout_ms: u64,
    /// Polls missed in a row before a node gets no new work.
    pub misses: u32,
}

impl Default for Polling {
    fn default() -> Self {
        Self { interval_ms: 1000, timeout_ms: 2000, misses: 3 }
    }
}

/// `[routing]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Routing {
    /// Name of the router.
    pub strategy: String,
    /// Its options, which it validates itself.
    pub options: toml::Table,
    /// Whether nodes that could load the model are candidates while another has it. By default only for `fit`.
    pub consider_loading: Option<bool>,
}

impl Default for Routing {
    fn default() -> Self {
        Self { strategy: "least_tokens".into(), options: toml::Table::new(), consider_loading: None }
    }
}

impl Routing {
    /// Whether nodes that could load the model are candidates while another has it.
    pub fn considers_loading(&self) -> bool {
        self.consider_loading.unwrap_or(self.strategy == "fit")
    }
}

/// `[eviction]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Eviction {
    /// Name of the evictor.
    pub strategy: String,
    /// Its options, which it validates itself.
    pub options: toml::Table,
    /// Loads and unloads of a node after which an idle model there is loaded afresh; 0 is never.
    pub defrag_after_cycles: u32,
    /// Time a model stays after it was loaded, whoever wants its place, in seconds.
    pub min_residency_s: u64,
    /// Time after which a model that waits for a busy one gets its turn, in seconds.
    pub turn_after_s: u64,
    /// Idle time after which a model is unloaded, in seconds; 0 is never. A model may have its own.
    pub idle_timeout_s: u64,
}

impl Default for Eviction {
    fn default() -> Self {
        Self {
            strategy: "gd_wait".into(),
            options: toml::Table::new(),
            defrag_after_cycles: 0,
            min_residency_s: 60,
            turn_after_s: 30,
            idle_timeout_s: 0,
        }
    }
}

/// `[plugins]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plugins {
    /// Plugin files with further strategies, relative to this file.
    pub files: Vec<PathBuf>,
}

/// `[keys]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeySettings {
    /// The key file, relative to this file. Without one everybody may do everything.
    pub file: Option<PathBuf>,
}

/// What kind of server a node is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// A neuron: it can be asked to load and unload.
    #[default]
    Neuron,
    /// Another server that speaks OpenAI's API: it serves what it lists.
    OpenAi,
    /// A server that speaks only Anthropic's API: it serves what it lists, chat is translated for it.
    Anthropic,
}

/// One `[[neurons]]` entry.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Neuron {
    /// Name of the node; what the gateway calls it everywhere.
    pub name: String,
    /// Where it is reached: `http://host:port` or `https://host`, without `/v1`.
    pub endpoint: String,
    /// What it is.
    #[serde(default)]
    pub kind: NodeKind,
    /// How much of the work it gets compared with others; 1 by default.
    #[serde(default = "one")]
    pub weight: f32,
    /// Environment variable that holds the key this node wants.
    #[serde(default)]
    pub api_key_env: Option<String>,
    /// File that holds the key this node wants, relative to this file.
    #[serde(default)]
    pub api_key_file: Option<PathBuf>,
}

impl Neuron {
    /// The key this node wants, from the variable or the file its entry names. None where it names neither.
    ///
    /// # Errors
    /// [`ConfigError`] for a variable that is not set and a file that cannot be read.
    pub fn api_key(&self) -> Result<Option<String>, ConfigError> {
        if let Some(name) = &self.api_key_env {
            let key = std::env::var(name).map_err(|_| {
                ConfigError::value(
                    "neurons.api_key_env",
                    format!("the variable {name} of node {:?} is not set", self.name),
                )
            })?;
            return Ok(Some(key));
        }
        let Some(path) = &self.api_key_file else { return Ok(None) };
        Ok(Some(read(path)?.trim().to_owned()))
    }
}

fn one() -> f32 {
    1.0
}

/// The configuration with what it names beside it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// The catalogue; empty without a file.
    pub catalogue: Catalogue,
    /// Where the catalogue is, if there is one.
    pub catalogue_path: Option<PathBuf>,
}

impl Config {
    /// Reads the settings from text, with overrides from `environment`, and checks them.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key, and the nearest known one if it is unknown.
    pub fn parse(
        text: &str,
        source: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let plain: Config = toml::from_str(text).map_err(|error| ConfigError::parse(source, error))?;
        let mut table: toml::Table =
            toml::from_str(text).map_err(|error| ConfigError::parse(source, error))?;
        let config = if environment::apply(&mut table, environment)? {
            table.try_into().map_err(|error| ConfigError::parse(Path::new("environment"), error))?
        } else {
            plain
        };
        config.check()?;
        Ok(config)
    }

    /// Reads `path` and the catalogue it names. Without a path, defaults and environment alone.
    ///
    /// # Errors
    /// [`ConfigError`] when a file is missing, unreadable or wrong; a catalogue that was named must exist.
    pub fn load(path: Option<&Path>) -> Result<Loaded, ConfigError> {
        let (text, folder) = match path {
            Some(path) => (read(path)?, path.parent().unwrap_or(Path::new(".")).to_owned()),
            None => (String::new(), PathBuf::from(".")),
        };
        let source = path.unwrap_or(Path::new("defaults"));
        let mut config = Self::parse(&text, source, std::env::vars())?;
        let files = config.plugins.files.iter_mut();
        let node_keys = config.neurons.iter_mut().filter_map(|node| node.api_key_file.as_mut());
        let named = [&mut config.keys.file, &mut config.usage.database, &mut config.usage.postgres_file];
        for file in files.chain(named.into_iter().flatten()).chain(node_keys) {
            *file = folder.join(&*file);
        }
        for node in &config.neurons {
            node.api_key()?;
        }
        if config.usage.database.is_none()
            && config.usage.postgres_address()?.is_none()
            && let Some(state) = std::env::var_os("STATE_DIRECTORY")
        {
            config.usage.database = Some(PathBuf::from(state).join("usage.sqlite"));
        }
        let catalogue_path = match &config.gateway.models {
            Some(named) => Some(folder.join(named)),
            None => Some(folder.join("models.toml")).filter(|beside| path.is_some() && beside.exists()),
        };
        let catalogue = match &catalogue_path {
            Some(path) => Catalogue::parse(&read(path)?, path)?,
            None => Catalogue::default(),
        };
        catalogue.check_nodes(config.neurons.iter().map(|node| node.name.as_str()))?;
        Ok(Loaded { config, catalogue, catalogue_path })
    }

    fn check(&self) -> Result<(), ConfigError> {
        self.coordinator.check()?;
        let mut names = BTreeSet::new();
        for node in &self.neurons {
            if node.name.is_empty() || !names.insert(&node.name) {
                return Err(ConfigError::value(
                    "neurons.name",
                    format!("{:?} is empty or used twice; each node needs a name of its own", node.name),
                ));
            }
            check_endpoint(node)?;
            if !(node.weight.is_finite() && node.weight > 0.0) {
                return Err(ConfigError::value("neurons.weight", "must be a number above 0"));
            }
        }
        for (key, share) in [
            ("gateway.retry_budget", self.gateway.retry_budget),
            ("proxy.hedge_budget", self.proxy.hedge_budget),
            ("telemetry.sample", self.telemetry.sample),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Err(ConfigError::value(key, "must be from 0 to 1"));
            }
        }
        if self.usage.database.is_some()
            && (self.usage.postgres.is_some() || self.usage.postgres_file.is_some())
        {
            return Err(ConfigError::value(
                "usage",
                "has a database file and PostgreSQL; one of them keeps the books",
            ));
        }
        let positive = [
            ("polling.interval_ms", self.polling.interval_ms),
            ("polling.timeout_ms", self.polling.timeout_ms),
            ("polling.misses", u64::from(self.polling.misses)),
            ("gateway.max_body_mib", self.gateway.max_body_mib),
            ("gateway.idle_timeout_s", self.gateway.idle_timeout_s),
        ];
        match positive.iter().find(|(_, value)| *value == 0) {
            Some((key, _)) => Err(ConfigError::value(key, "must be at least 1")),
            None => Ok(()),
        }
    }
}

fn check_endpoint(node: &Neuron) -> Result<(), ConfigError> {
    let wrong = |why: &str| {
        ConfigError::value("neurons.endpoint", format!("{:?} of node {:?} {why}", node.endpoint, node.name))
    };
    let uri: http::Uri =
        node.endpoint.parse().map_err(|_| wrong("is not a URL such as http://host:13131"))?;
    match uri.scheme_str() {
        Some("http" | "https") => {}
        _ => return Err(wrong("must begin with http:// or https://")),
    }
    if uri.path().trim_end_matches('/').ends_with("/v1") {
        return Err(wrong("must be given without /v1; the gateway adds the path of each request"));
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

impl Gateway {
    /// Longest silence of a node while it answers.
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_secs(self.idle_timeout_s)
    }

    /// Largest request body, in bytes.
    pub fn max_body_bytes(&self) -> usize {
        usize::try_from(self.max_body_mib.saturating_mul(1 << 20)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNERS_FORM: &str = r#"
        [gateway]
        listen = "0.0.0.0:8080"
        metrics_listen = "0.0.0.0:9090"
        [eviction]
        strategy = "lru"
        defrag_after_cycles = 50
        [[neurons]]
        name = "beast"
        endpoint = "http://beast:13131"
        [[neurons]]
        name = "benjy"
        endpoint = "http://benjy:13131/"
    "#;

    fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::parse(text, Path::new("cortex.toml"), environment).map_err(|error| error.to_string())
    }

    #[test]
    fn the_owners_form_parses() {
        let config = parse(OWNERS_FORM, &[]).expect("the form in use");
        assert_eq!(config.gateway.listen, "0.0.0.0:8080");
        assert_eq!((config.eviction.strategy.as_str(), config.eviction.defrag_after_cycles), ("lru", 50));
        assert_eq!(config.routing.strategy, "least_tokens");
        assert_eq!(config.neurons.len(), 2);
        assert!(parse("", &[]).expect("defaults").neurons.is_empty());
    }

    #[test]
    fn the_examples_parse_and_so_does_what_they_leave_commented_out() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect("an example");
        let uncommented = |text: &str| -> String {
            // "# key = value" is an example of a setting, "# Some words" is prose.
            let mut lines = Vec::new();
            for line in text.lines() {
                let bare =
                    line.strip_prefix("# ").filter(|bare| bare.contains(" = ") || bare.starts_with('['));
                lines.push(bare.unwrap_or(line));
            }
            lines.join("\n")
        };
        let cortex = read("cortex.toml");
        assert!(parse(&cortex, &[]).is_ok());
        let all = parse(&uncommented(&cortex), &[]).expect("with every setting");
        assert_eq!(all.neurons.len(), 2);
        let models = read("models.toml");
        for text in [models.clone(), uncommented(&models)] {
            Catalogue::parse(&text, Path::new("models.toml")).expect("the example catalogue");
        }
    }

    #[test]
    fn wrong_keys_and_values_are_named() {
        let cases = [
            ("[gateway]\nlisten_adress = \"x\"", "listen_adress"),
            ("[gateway]\nlissten = \"x\"", "did you mean 'listen'?"),
            ("[evction]\nstrategy = \"lru\"", "did you mean 'eviction'?"),
            ("[[neurons]]\nname = \"a\"", "endpoint"),
            ("[[neurons]]\nname = \"a\"\nendpoint = \"a:1\"", "http://"),
            ("[[neurons]]\nname = \"a\"\nendpoint = \"http://a:1/v1\"", "without /v1"),
            ("[[neurons]]\nname = \"a\"\nendpoint = \"http://a:1\"\nkind = \"vllm\"", "openai"),
            (
                "[[neurons]]\nname = \"a\"\nendpoint = \"http://a\"\n[[neurons]]\nname = \"a\"\nendpoint = \"http://b\"",
                "twice",
            ),
            ("[polling]\nmisses = 0", "polling.misses"),
            ("[gateway]\nretry_budget = 2.0", "retry_budget"),
            ("[proxy]\nhedge_budget = -1.0", "hedge_budget"),
            ("[usage]\ndatabase = \"a\"\npostgres = \"postgresql://b\"", "one of them"),
            ("[[neurons]]\nname = \"a\"\nendpoint = \"ftp://a:1\"", "https://"),
            ("[gateway", "cortex.toml"),
        ];
        for (text, expected) in cases {
            let error = parse(text, &[]).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn the_environment_overrides() {
        let config = parse(
            OWNERS_FORM,
            &[
                ("CORTEX_GATEWAY_METRICS_LISTEN", "127.0.0.1:1"),
                ("CORTEX_EVICTION_DEFRAG_AFTER_CYCLES", "7"),
                ("CORTEX_ROUTING_OPTIONS", "{ kv_barrier_s = 0.5 }"),
                ("CORTEX_NEURONS", "a=http://a:1,b=http://b:2"),
                ("CORTEX_LOG", "debug"),
                ("HOME", "/root"),
            ],
        )
        .expect("overrides");
        assert_eq!(config.gateway.metrics_listen, "127.0.0.1:1");
        assert_eq!(config.gateway.listen, "0.0.0.0:8080");
        assert_eq!(config.eviction.defrag_after_cycles, 7);
        assert_eq!(config.routing.options["kv_barrier_s"].as_float(), Some(0.5));
        assert_eq!(config.neurons[1].endpoint, "http://b:2");
    }

    #[test]
    fn a_wrong_variable_is_named() {
        for (name, value, expected) in [
            ("CORTEX_GATWAY_LISTEN", "x", "CORTEX_GATWAY_LISTEN"),
            ("CORTEX_GATEWAY_LISSTEN", "x", "did you mean 'listen'?"),
            ("CORTEX_POLLING_MISSES", "many", "misses"),
            ("CORTEX_NEURONS", "a", "name=endpoint"),
        ] {
            let error = parse(OWNERS_FORM, &[(name, value)]).expect_err(name);
            assert!(error.contains(expected), "{name}: {error}");
        }
    }
}
