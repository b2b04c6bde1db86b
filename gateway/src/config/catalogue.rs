//! `models.toml`: the models the gateway may load by itself, and what it must know about them.
//!
//! Models a node reports need no entry. An entry makes a model loadable on demand, gives it other
//! names, pins it, or sets its class.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use super::error::{ConfigError, nearest};

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Catalogue {
    /// The models.
    pub models: Vec<ModelSpec>,
}

/// One `[[models]]` entry.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSpec {
    /// What requests call it.
    pub id: String,
    /// What a node is asked to load: a path there, or `org/name[@revision][:file.gguf]`. The id by default.
    pub source: Option<String>,
    /// Other names it answers to.
    pub aliases: Vec<String>,
    /// Format to hold the weights in, if not the one on disk.
    pub quant: Option<String>,
    /// Type to compute in.
    pub dtype: Option<String>,
    /// Longest prompt and answer together, in tokens.
    pub context_tokens: Option<u64>,
    /// Sequences at once on one node.
    pub slots: Option<u32>,
    /// Memory it needs on a node; learned from the first load where absent.
    #[serde(deserialize_with = "wire_api::size::deserialize")]
    pub memory: Option<u64>,
    /// Devices it is split over.
    pub min_devices: u32,
    /// Nodes that may load it; all by default.
    pub nodes: Vec<String>,
    /// Never evicted, wherever it is.
    pub pinned: bool,
    /// Loaded on these nodes and never evicted there.
    pub pinned_on: Vec<String>,
    /// Residency class: a model is never evicted for one of a lower class.
    pub class: u32,
    /// Importance within its class.
    pub priority: i32,
    /// Idle time after which it is unloaded, in seconds; 0 is never.
    pub idle_timeout_s: Option<u64>,
    /// Longest answer, in tokens.
    pub max_tokens: Option<u32>,
    /// Requests at once over the whole fleet; more are turned away.
    pub max_requests: Option<u32>,
    /// What tokens cost, for budgets.
    pub cost: Cost,
}

/// What tokens cost, per million.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cost {
    /// Prompt tokens that were computed.
    pub input_per_million: f64,
    /// Prompt tokens from the cache.
    pub cached_per_million: f64,
    /// Generated tokens.
    pub output_per_million: f64,
}

impl Cost {
    /// What a request cost.
    pub fn of(&self, prompt: u64, cached: u64, completion: u64) -> f64 {
        let fresh = prompt.saturating_sub(cached);
        let sum = fresh as f64 * self.input_per_million
            + cached as f64 * self.cached_per_million
            + completion as f64 * self.output_per_million;
        sum / 1e6
    }
}

impl ModelSpec {
    /// What a node is asked to load.
    pub fn source(&self) -> &str {
        self.source.as_deref().unwrap_or(&self.id)
    }

    /// Whether this node may load it.
    pub fn may_load_on(&self, node: &str) -> bool {
        self.nodes.is_empty() || self.nodes.iter().chain(&self.pinned_on).any(|name| name == node)
    }

    /// Whether it is never evicted from this node.
    pub fn pinned_to(&self, node: &str) -> bool {
        self.pinned || self.pinned_on.iter().any(|name| name == node)
    }
}

impl Catalogue {
    /// Reads and checks the catalogue.
    ///
    /// # Errors
    /// [`ConfigError`] naming key or entry.
    pub fn parse(text: &str, source: &Path) -> Result<Self, ConfigError> {
        let catalogue: Self = toml::from_str(text).map_err(|error| ConfigError::parse(source, error))?;
        catalogue
            .check()
            .map_err(|error| ConfigError::Parse { path: source.to_owned(), message: error.to_string() })?;
        Ok(catalogue)
    }

    /// Each name stands for one model.
    fn check(&self) -> Result<(), ConfigError> {
        let mut owners: HashMap<&str, &str> = HashMap::new();
        for model in &self.models {
            if model.id.is_empty() {
                return Err(ConfigError::value("models.id", "every model needs an id"));
            }
            for name in std::iter::once(&model.id).chain(&model.aliases) {
                if let Some(other) = owners.insert(name, &model.id) {
                    return Err(ConfigError::value(
                        "models",
                        format!("the name '{name}' stands for both '{other}' and '{}'", model.id),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Every node named must exist.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming the model, the node and the nearest one.
    pub fn check_nodes<'a>(&self, known: impl Iterator<Item = &'a str> + Clone) -> Result<(), ConfigError> {
        for model in &self.models {
            for node in model.nodes.iter().chain(&model.pinned_on) {
                if known.clone().all(|name| name != node) {
                    let advice = nearest(node, known.clone())
                        .map_or_else(String::new, |near| format!("; did you mean '{near}'?"));
                    return Err(ConfigError::value(
                        "models",
                        format!(
                            "model '{}' names the node '{node}', which [[neurons]] does not have{advice}",
                            model.id
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// The entry that a name stands for.
    pub fn find(&self, name: &str) -> Option<&ModelSpec> {
        self.models
            .iter()
            .find(|model| model.id == name)
            .or_else(|| self.models.iter().find(|model| model.aliases.iter().any(|alias| alias == name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Catalogue, String> {
        Catalogue::parse(text, Path::new("models.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn an_entry_with_everything() {
        let catalogue = parse(
            r#"
            [[models]]
            id = "coder"
            source = "org/coder@main:q4.gguf"
            aliases = ["claude-coder"]
            quant = "q4_k"
            memory = "24 GiB"
            min_devices = 2
            pinned_on = ["beast"]
            nodes = ["benjy"]
            class = 2
            priority = 5
            idle_timeout_s = 600
            cost = { input_per_million = 0.5, output_per_million = 2.0 }
            "#,
        )
        .expect("all keys");
        let model = catalogue.find("claude-coder").expect("by alias");
        assert_eq!((model.id.as_str(), model.memory), ("coder", Some(24 << 30)));
        assert!(model.may_load_on("beast") && model.may_load_on("benjy") && !model.may_load_on("other"));
        assert!(model.pinned_to("beast") && !model.pinned_to("benjy"));
        assert_eq!(parse("[[models]]\nid = \"a\"").expect("minimal").models[0].source(), "a");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("[[models]]\nid = \"a\"\npined = true", "did you mean 'pinned'?"),
            ("[[models]]\nsource = \"a\"", "needs an id"),
            ("[[models]]\nid = \"a\"\n[[models]]\nid = \"b\"\naliases = [\"a\"]", "both 'a' and 'b'"),
            ("[[models]]\nid = \"a\"\nmemory = \"big\"", "24 GiB"),
            ("[[model]]\nid = \"a\"", "did you mean 'models'?"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
        let catalogue = parse("[[models]]\nid = \"a\"\nnodes = [\"bast\"]").expect("well formed");
        let error = catalogue.check_nodes(["beast"].into_iter()).expect_err("no such node").to_string();
        assert!(error.contains("did you mean 'beast'?"), "{error}");
    }
}
