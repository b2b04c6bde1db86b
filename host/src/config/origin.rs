//! Where each value came from.

use std::collections::BTreeMap;

use serde::Serialize;
use toml::{Table, Value};

use super::{Config, schema};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// The configuration file.
    File,
    /// This environment variable.
    Environment(String),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File => f.write_str("file"),
            Self::Environment(name) => write!(f, "environment, {name}"),
        }
    }
}

/// One setting as it is in force.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting {
    /// Its section; empty at the top of the file.
    pub section: String,
    /// Its key.
    pub key: String,
    /// Its value; `None` when it is not set and has no default.
    pub value: Option<Value>,
    /// Where that came from.
    pub origin: Origin,
}

/// What does not come from the defaults, by section and key.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Origins(BTreeMap<(String, String), Origin>);

impl Origins {
    /// Everything a file says.
    pub fn of_file(table: &Table) -> Self {
        let mut origins = Self::default();
        for (name, value) in table {
            match value {
                Value::Table(section) => section.keys().for_each(|key| origins.set(name, key, Origin::File)),
                _ => origins.set("", name, Origin::File),
            }
        }
        origins
    }

    pub fn set(&mut self, section: &str, key: &str, origin: Origin) {
        self.0.insert((section.to_owned(), key.to_owned()), origin);
    }

    fn get(&self, section: &str, key: &str) -> Origin {
        self.0.get(&(section.to_owned(), key.to_owned())).cloned().unwrap_or(Origin::Default)
    }
}

/// Every setting, in the order of the file; the models last, whole.
pub(super) fn settings(config: &Config, origins: &Origins) -> Vec<Setting> {
    let table = Table::try_from(config).expect("a configuration that was read can be written");
    let setting = |section: &str, key: &str, value: Option<&Value>| Setting {
        section: section.to_owned(),
        key: key.to_owned(),
        value: value.cloned(),
        origin: origins.get(section, key),
    };
    let top = schema::keys("").unwrap_or_default().iter().filter(|key| schema::keys(key).is_none());
    let mut all: Vec<Setting> = top.map(|key| setting("", key, table.get(*key))).collect();
    for section in schema::sections().filter(|section| *section != "models") {
        let inner = table.get(section);
        let keys = schema::keys(section).unwrap_or_default();
        all.extend(keys.iter().map(|key| setting(section, key, inner.and_then(|inner| inner.get(*key)))));
    }
    all.push(setting("", "models", table.get("models")));
    all
}
