//! `neuron.toml`: what this node listens on, where its plugins are, which models it has, how far it may go.
//!
//! Every key is known or the file is refused with the nearest key named: a misspelt setting must not be
//! silently at its default. Environment variables `NEURON_<SECTION>_<KEY>` override the file. Each value
//! remembers where it came from, so that `neuron config show` can say.

mod environment;
mod error;
mod node;
mod origin;
mod schema;

use std::collections::BTreeSet;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use error::ConfigError;
pub(crate) use error::nearest;
pub use origin::{Origin, Setting};

/// Address of the API unless something else is said.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:13131";

/// Where plugins of a package are installed.
pub const SYSTEM_PLUGINS: &str = "/usr/lib/neuron/plugins";

/// Where the configuration of a package is installed; read when no other is named.
pub const SYSTEM_CONFIG: &str = "/etc/neuron/neuron.toml";

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address of all APIs, host and port.
    pub listen: String,
    /// Name of this node, for people; the machine's when empty.
    pub name: String,
    /// Where plugins come from.
    pub plugins: Plugins,
    /// How models are run.
    pub engine: Engine,
    /// How much one request may ask for.
    pub limits: Limits,
    /// Pictures in requests.
    pub images: Images,
    /// NVIDIA GPUs.
    pub cuda: Cuda,
    /// Where models come from.
    pub hub: Hub,
    /// Gateways to make this node known to.
    pub register: Register,
    /// What is logged.
    pub log: Log,
    /// The models this node has.
    pub models: Vec<Model>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: DEFAULT_LISTEN.into(),
            name: String::new(),
            plugins: Plugins::default(),
            engine: Engine::default(),
            limits: Limits::default(),
            images: Images::default(),
            cuda: Cuda::default(),
            hub: Hub::default(),
            register: Register::default(),
            log: Log::default(),
            models: Vec::new(),
        }
    }
}

/// `[plugins]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plugins {
    /// Directories, the most important first; relative ones start at this file.
    pub directories: Vec<PathBuf>,
    /// Whether `plugins` beside the binary and the system's directory are looked into as well.
    pub search_defaults: bool,
    /// Use plugins whoever owns them or may write to them. For development only.
    pub allow_unowned: bool,
    /// File with the SHA-256 sums of the only plugins that may be used, as `sha256sum` prints them.
    pub allow_list: Option<PathBuf>,
    /// Minisign public keys, one of which must have signed that file (signature in `<file>.minisig`); none for
    /// a file that need not be signed.
    pub trusted_keys: Vec<String>,
    /// How long a plugin may take to describe itself, in seconds.
    pub probe_timeout_s: u64,
}

impl Default for Plugins {
    fn default() -> Self {
        Self {
            directories: Vec::new(),
            search_defaults: true,
            allow_unowned: false,
            allow_list: None,
            trusted_keys: Vec::new(),
            probe_timeout_s: 20,
        }
    }
}

/// `[engine]`: every model of this node, unless its own entry says otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Engine {
    /// Threads a model keeps busy; the physical cores this process may use when absent.
    pub threads: Option<u32>,
    /// Main memory all models together may use, like `"24 GiB"`; the machine's when absent.
    #[serde(deserialize_with = "wire_api::size::deserialize")]
    pub memory: Option<u64>,
    /// Sequences at once.
    pub slots: u32,
    /// Most tokens of one step.
    pub max_step_tokens: u32,
    /// Prompt tokens of a step while other sequences generate.
    pub prefill_chunk: u32,
    /// Share of the free memory a model may take for the state of its sequences, 0 to 1.
    pub state_share: f64,
    /// Share of that state cached prefixes may hold, 0 to 1; 0 switches the prefix cache off.
    pub prefix_cache_share: f64,
    /// Recurrent state is frozen at least every so many prompt tokens.
    pub snapshot_every: u32,
    /// Cached prefixes at most.
    pub max_snapshots: u32,
    /// A step that takes longer is taken for hung, in seconds.
    pub step_deadline_s: u64,
    /// A load that makes no progress for longer is taken for hung, in seconds.
    pub load_patience_s: u64,
    /// A worker that is silent for longer is taken for hung, in seconds.
    pub worker_patience_s: u64,
    /// An idle model proves this often that it still generates, in seconds.
    pub prove_every_s: u64,
    /// Time for requests in flight before an unload or the end, in seconds.
    pub drain_timeout_s: u64,
    /// Requests in flight when a worker dies go on with the next one instead of failing.
    pub replay: bool,
    /// First pause before a model that failed is tried again, in milliseconds; it doubles each time.
    pub first_pause_ms: u64,
    /// Longest pause before a model that failed is tried again, in milliseconds.
    pub longest_pause_ms: u64,
    /// Options of architectures, which validate them themselves.
    pub options: toml::Table,
}

impl Default for Engine {
    fn default() -> Self {
        let models =
            crate::lifecycle::ModelsOptions::new(crate::worker::process::WorkerCommand::program("neuron"));
        Self {
            threads: models.threads,
            memory: models.memory_bytes,
            slots: models.slots,
            max_step_tokens: models.max_step_tokens,
            prefill_chunk: models.prefill_chunk,
            state_share: models.state_share,
            prefix_cache_share: models.prefix_cache_share,
            snapshot_every: models.snapshot_every,
            max_snapshots: models.max_snapshots,
            step_deadline_s: models.step_deadline.as_secs(),
            load_patience_s: models.load_patience.as_secs(),
            worker_patience_s: models.worker_patience.as_secs(),
            prove_every_s: models.prove_every.as_secs(),
            drain_timeout_s: models.drain_timeout.as_secs(),
            replay: models.replay,
            first_pause_ms: models.first_pause.as_millis() as u64,
            longest_pause_ms: models.longest_pause.as_millis() as u64,
            options: toml::Table::new(),
        }
    }
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Largest request body, in MiB.
    pub body_mib: u64,
    /// Requests that may wait for a slot of one model.
    pub queue_depth: u32,
    /// How long a request waits for a model that is loading or coming back, in seconds.
    pub load_wait_s: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { body_mib: 64, queue_depth: 256, load_wait_s: 600 }
    }
}

/// `[images]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Images {
    /// Hosts pictures may be fetched from; none are fetched by default, only `data:` URIs are read.
    pub allowed_hosts: Vec<String>,
    /// Whether those hosts may be at private or loopback addresses.
    pub allow_private_addresses: bool,
    /// Longest fetch of one picture, in seconds.
    pub timeout_s: u64,
    /// Largest encoded picture, in MiB.
    pub max_mib: u64,
    /// Most pixels of one picture, in millions.
    pub max_megapixels: u64,
    /// Most pictures in one request.
    pub max_count: usize,
}

impl Default for Images {
    fn default() -> Self {
        Self {
            allowed_hosts: Vec::new(),
            allow_private_addresses: false,
            timeout_s: 10,
            max_mib: 24,
            max_megapixels: 64,
            max_count: 64,
        }
    }
}

/// `[cuda]`: for models on NVIDIA GPUs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cuda {
    /// Folders with CUDA's libraries, looked through before the system's; relative ones start at this file.
    pub libs: Vec<PathBuf>,
    /// Folder for kernels the driver compiles; a folder of the user's cache when absent.
    pub cache: Option<PathBuf>,
}

/// `[hub]`. What is absent is taken from `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME` and `HF_HUB_OFFLINE`; the
/// token comes from `HF_TOKEN` or the token file only, so that it need not stand in a configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hub {
    /// Address of the hub.
    pub endpoint: Option<String>,
    /// Folder downloads are kept in.
    pub cache: Option<PathBuf>,
    /// Use only what is in the cache.
    pub offline: Option<bool>,
}

/// `[register]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Register {
    /// Endpoints of etcd, `http://host:2379`; none to stay unknown.
    pub etcd: Vec<String>,
    /// Where gateways reach this node, `http://host:13131`. Must be given with `etcd`: nobody else knows it.
    pub endpoint: String,
    /// How much of the work it wants compared with other nodes; 0 is taken for 1.
    pub weight: f32,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// What is logged: `info`, `debug`, or per module as `info,neuron::engine=trace`.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".into() }
    }
}

/// One `[[models]]` entry.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// What requests call it; the source when empty.
    pub id: String,
    /// What to load: a local path, or `org/name[@revision][:file.gguf]`.
    pub source: String,
    /// Other names it answers to.
    pub aliases: Vec<String>,
    /// Where to: `cpu`, `cuda-1`, a GPU's number, UUID or PCI address; the node chooses when empty. Several are one
    /// model split over them.
    pub devices: Vec<String>,
    /// Type to compute in: `f32`, `bf16`, `f16`.
    pub dtype: Option<String>,
    /// Format to hold the weights in, if not the one on disk: `q8_0`, `q6k`, `q5k`, `q4k`, `q4_0`.
    pub quantize: Option<String>,
    /// Longest prompt and answer together; the model's own limit when absent.
    pub context_tokens: Option<u64>,
    /// Sequences at once; as in `[engine]` when absent.
    pub slots: Option<u32>,
    /// Memory cached prefixes may hold, like `"2 GiB"`, beside what the sequences need; 0 switches the cache off, and
    /// `engine.prefix_cache_share` decides when absent.
    #[serde(deserialize_with = "wire_api::size::deserialize")]
    pub prefix_cache_bytes: Option<u64>,
    /// Options of its architecture, instead of those of `[engine]`.
    pub options: toml::Table,
    /// Never evicted.
    pub pinned: bool,
    /// Known by name, but loaded only when somebody asks for a load.
    pub on_demand: bool,
}

/// A configuration, and where each of its values came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// The file, if there is one.
    pub path: Option<PathBuf>,
    origins: origin::Origins,
}

impl Loaded {
    /// Every setting with its value and where it came from, in the order of the file.
    pub fn settings(&self) -> Vec<Setting> {
        origin::settings(&self.config, &self.origins)
    }
}

impl Config {
    /// Reads the settings from text, with overrides from `environment`, and checks them.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file or variable, the key, and the nearest known one if it is unknown.
    pub fn parse(
        text: &str,
        source: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Loaded, ConfigError> {
        let mut table: toml::Table =
            toml::from_str(text).map_err(|error| ConfigError::parse(source, &error))?;
        schema::check(&table, source)?;
        // Read once as it stands, so that a wrong type is shown with its line.
        let _: Config = toml::from_str(text).map_err(|error| ConfigError::parse(source, &error))?;
        let mut origins = origin::Origins::of_file(&table);
        environment::apply(&mut table, &mut origins, environment)?;
        let mut config: Config = table.try_into().map_err(|error| ConfigError::parse(source, &error))?;
        config.start_paths_at(source.parent().unwrap_or(Path::new("")));
        config.check()?;
        Ok(Loaded { config, path: None, origins })
    }

    /// Reads `path`; without one, [`SYSTEM_CONFIG`] if it exists, else defaults and environment alone.
    ///
    /// # Errors
    /// [`ConfigError`] when the file is missing, unreadable or wrong.
    pub fn load(path: Option<&Path>) -> Result<Loaded, ConfigError> {
        let path = path
            .map(Path::to_owned)
            .or_else(|| Some(SYSTEM_CONFIG.into()).filter(|path: &PathBuf| path.exists()));
        let text = match &path {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.clone(), source })?,
            None => String::new(),
        };
        // Variables that are not text cannot be settings of ours.
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let loaded = Self::parse(&text, path.as_deref().unwrap_or(Path::new("defaults")), environment)?;
        Ok(Loaded { path, ..loaded })
    }

    /// A relative path in the file is one relative to the file, wherever the process was started.
    fn start_paths_at(&mut self, folder: &Path) {
        let paths = self
            .plugins
            .directories
            .iter_mut()
            .chain(&mut self.plugins.allow_list)
            .chain(&mut self.cuda.libs)
            .chain(&mut self.cuda.cache)
            .chain(&mut self.hub.cache);
        for path in paths.filter(|path| path.is_relative()) {
            *path = folder.join(&*path);
        }
        for model in &mut self.models {
            // A hub id has no dot in front; a relative path has.
            if model.source.starts_with("./") || model.source.starts_with("../") {
                model.source = folder.join(&model.source).to_string_lossy().into_owned();
            }
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        check_address(&self.listen)?;
        if !self.register.etcd.is_empty() && !self.register.endpoint.starts_with("http") {
            let message = "is missing; say where gateways reach this node, such as http://this-host:13131";
            return Err(ConfigError::value("register.endpoint", message));
        }
        if tracing_subscriber::EnvFilter::try_new(&self.log.filter).is_err() {
            let message = format!(
                "{:?} is no filter; write a level such as \"info\", or \"info,neuron=debug\"",
                self.log.filter
            );
            return Err(ConfigError::value("log.filter", message));
        }
        if self.plugins.allow_list.is_none() && !self.plugins.trusted_keys.is_empty() {
            let message = "are set, but there is no plugins.allow_list that they could have signed";
            return Err(ConfigError::value("plugins.trusted_keys", message));
        }
        let engine = &self.engine;
        for (key, share) in [
            ("engine.state_share", engine.state_share),
            ("engine.prefix_cache_share", engine.prefix_cache_share),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Err(ConfigError::value(key, format!("is {share}; it must be from 0 to 1")));
            }
        }
        let positive = [
            ("plugins.probe_timeout_s", self.plugins.probe_timeout_s),
            ("engine.threads", engine.threads.map_or(1, u64::from)),
            ("engine.memory", engine.memory.unwrap_or(1)),
            ("engine.slots", engine.slots.into()),
            ("engine.max_step_tokens", engine.max_step_tokens.into()),
            ("engine.prefill_chunk", engine.prefill_chunk.into()),
            ("engine.snapshot_every", engine.snapshot_every.into()),
            ("engine.step_deadline_s", engine.step_deadline_s),
            ("engine.load_patience_s", engine.load_patience_s),
            ("engine.worker_patience_s", engine.worker_patience_s),
            ("engine.prove_every_s", engine.prove_every_s),
            ("limits.body_mib", self.limits.body_mib),
            ("images.timeout_s", self.images.timeout_s),
            ("images.max_mib", self.images.max_mib),
            ("images.max_megapixels", self.images.max_megapixels),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::value(key, "is 0; it must be at least 1"));
        }
        self.check_models()
    }

    fn check_models(&self) -> Result<(), ConfigError> {
        let mut names = BTreeSet::new();
        for (place, model) in self.models.iter().enumerate() {
            let wrong = |key: &str, message: String| {
                Err(ConfigError::value(&format!("models[{place}].{key}"), message))
            };
            if model.source.is_empty() {
                return wrong("source", "is missing; name a local path, or org/name of the hub".into());
            }
            if let Some(twice) = std::iter::once(model.name())
                .chain(model.aliases.iter().map(String::as_str))
                .find(|name| !names.insert(*name))
            {
                return wrong("id", format!("{twice:?} is used twice; ids and aliases must differ"));
            }
            if model.slots == Some(0) {
                return wrong("slots", "is 0; it must be at least 1".into());
            }
            if model.context_tokens == Some(0) {
                return wrong("context_tokens", "is 0; leave it out for the model's own limit".into());
            }
        }
        Ok(())
    }
}

fn check_address(listen: &str) -> Result<(), ConfigError> {
    let advice = "write host:port, such as 127.0.0.1:13131 or 0.0.0.0:13131";
    match listen.to_socket_addrs().map(|mut addresses| addresses.next()) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(ConfigError::value("listen", format!("{listen:?} stands for no address; {advice}"))),
        Err(error) => {
            Err(ConfigError::value("listen", format!("{listen:?} is no address ({error}); {advice}")))
        }
    }
}

#[cfg(test)]
mod tests;
