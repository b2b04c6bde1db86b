//! From settings to what the rooms of the node take.

use std::path::{Path, PathBuf};
use std::time::Duration;

use plugin_loader::{AllowList, Ownership, Policy};
use wire_api::node::load::LoadRequest;

use super::{Config, ConfigError, Engine, Images, Model, Plugins, SYSTEM_PLUGINS};
use crate::catalogue::CatalogueOptions;
use crate::lifecycle::ModelsOptions;
use crate::prompt::fetch::FetchRules;
use crate::prompt::image::ImageLimits;
use crate::worker::environment::CudaOptions;
use crate::worker::process::WorkerCommand;

impl Config {
    /// How models are treated, with workers started by `worker`.
    pub fn models_options(&self, worker: WorkerCommand) -> ModelsOptions {
        let Engine {
            threads,
            memory,
            slots,
            max_step_tokens,
            prefill_chunk,
            state_share,
            prefix_cache_share,
            snapshot_every,
            max_snapshots,
            step_deadline_s,
            load_patience_s,
            worker_patience_s,
            prove_every_s,
            drain_timeout_s,
            replay,
            first_pause_ms,
            longest_pause_ms,
            options,
        } = self.engine.clone();
        ModelsOptions {
            worker,
            threads,
            memory_bytes: memory,
            slots,
            queue_limit: self.limits.queue_depth,
            max_step_tokens,
            prefill_chunk,
            state_share,
            prefix_cache_share,
            snapshot_every,
            max_snapshots,
            step_deadline: Duration::from_secs(step_deadline_s),
            load_patience: Duration::from_secs(load_patience_s),
            worker_patience: Duration::from_secs(worker_patience_s),
            prove_every: Duration::from_secs(prove_every_s),
            drain_timeout: Duration::from_secs(drain_timeout_s),
            replay,
            first_pause: Duration::from_millis(first_pause_ms),
            longest_pause: Duration::from_millis(longest_pause_ms),
            architecture_options: if options.is_empty() { String::new() } else { json(&options).to_string() },
            cuda: CudaOptions { libs: self.cuda.libs.clone(), cache: self.cuda.cache.clone() },
        }
    }

    /// Largest request body, in bytes.
    pub fn max_body_bytes(&self) -> usize {
        mebibytes(self.limits.body_mib)
    }

    /// The name of this node: as configured, or the machine's.
    pub fn node_name(&self) -> String {
        if !self.name.is_empty() {
            return self.name.clone();
        }
        let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        match machine.trim() {
            "" => "neuron".to_owned(),
            name => name.to_owned(),
        }
    }
}

fn json(options: &toml::Table) -> serde_json::Value {
    serde_json::to_value(options).expect("TOML can be written as JSON")
}

fn mebibytes(mebibytes: u64) -> usize {
    usize::try_from(mebibytes.saturating_mul(1 << 20)).unwrap_or(usize::MAX)
}

impl Plugins {
    /// Everywhere plugins are looked for, the most important first.
    pub fn search_path(&self) -> Vec<PathBuf> {
        let mut all = self.directories.clone();
        if self.search_defaults {
            let beside =
                std::env::current_exe().ok().and_then(|program| Some(program.parent()?.join("plugins")));
            all.extend(beside);
            all.push(SYSTEM_PLUGINS.into());
        }
        let mut seen = std::collections::BTreeSet::new();
        all.retain(|directory| seen.insert(directory.clone()));
        all
    }

    /// How the catalogue looks for plugins.
    ///
    /// # Errors
    /// [`ConfigError`] when the allow-list cannot be read.
    pub fn catalogue_options(&self) -> Result<CatalogueOptions, ConfigError> {
        let allowed = self.allow_list.as_deref().map(|path| self.read_allow_list(path)).transpose()?;
        let ownership = if self.allow_unowned { Ownership::Anybody } else { Ownership::RootOrSelf };
        Ok(CatalogueOptions {
            probe_timeout: Duration::from_secs(self.probe_timeout_s),
            policy: Policy { ownership, allowed },
            ..CatalogueOptions::new(self.search_path())
        })
    }

    fn read_allow_list(&self, path: &Path) -> Result<AllowList, ConfigError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.to_owned(), source })
        };
        let text = read(path)?;
        let list = if self.trusted_keys.is_empty() {
            AllowList::parse(&text)
        } else {
            let mut signature = path.as_os_str().to_owned();
            signature.push(".minisig");
            AllowList::signed(&text, &read(Path::new(&signature))?, &self.trusted_keys)
        };
        list.map_err(|message| ConfigError::Parse { path: path.to_owned(), message })
    }
}

impl Images {
    /// From where pictures are fetched.
    pub fn fetch_rules(&self) -> FetchRules {
        FetchRules {
            allowed_hosts: self.allowed_hosts.clone(),
            allow_private_addresses: self.allow_private_addresses,
            timeout: Duration::from_secs(self.timeout_s),
            max_bytes: mebibytes(self.max_mib),
        }
    }

    /// What is decoded.
    pub fn limits(&self) -> ImageLimits {
        ImageLimits {
            max_bytes: mebibytes(self.max_mib),
            max_pixels: self.max_megapixels.saturating_mul(1_000_000),
            max_count: self.max_count,
        }
    }
}

impl Model {
    /// What requests call it.
    pub fn name(&self) -> &str {
        if self.id.is_empty() { &self.source } else { &self.id }
    }

    /// The command that loads it.
    pub fn request(&self) -> LoadRequest {
        LoadRequest {
            model: self.source.as_str().into(),
            name: Some(self.name().into()),
            devices: self.devices.iter().map(|device| device.as_str().into()).collect(),
            dtype: self.dtype.clone(),
            quant: self.quantize.clone(),
            context_tokens: self.context_tokens,
            slots: self.slots,
            prefix_cache_bytes: self.prefix_cache_bytes,
            options: match json(&self.options) {
                serde_json::Value::Object(options) if !options.is_empty() => Some(options),
                _ => None,
            },
            pinned: self.pinned,
            aliases: self.aliases.clone(),
            ..LoadRequest::default()
        }
    }
}
