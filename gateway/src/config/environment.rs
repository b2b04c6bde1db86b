//! `CORTEX_<SECTION>_<KEY>`: environment variables over the file.

use toml::{Table, Value};

use super::error::{ConfigError, nearest};

const PREFIX: &str = "CORTEX_";

/// Variables the command line reads itself.
const OTHER: [&str; 6] = [
    "CORTEX_CONFIG",
    "CORTEX_ENDPOINT",
    "CORTEX_LOG",
    "CORTEX_LOG_FORMAT",
    "CORTEX_API_KEY",
    "CORTEX_ADMIN_KEY",
];

/// Sections a variable may name.
const SECTIONS: [&str; 10] = [
    "gateway",
    "polling",
    "routing",
    "eviction",
    "plugins",
    "keys",
    "usage",
    "coordinator",
    "proxy",
    "telemetry",
];

/// Writes every override into `table`; says whether there was any.
///
/// # Errors
/// [`ConfigError::Value`] for a variable with our prefix that stands for nothing.
pub(super) fn apply(
    table: &mut Table,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<bool, ConfigError> {
    let mut any = false;
    for (name, value) in environment {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        if OTHER.contains(&name.as_str()) {
            continue;
        }
        any = true;
        if rest == "NEURONS" {
            table.insert("neurons".into(), neurons(&value)?);
            continue;
        }
        let lower = rest.to_lowercase();
        let (section, key) = lower.split_once('_').unwrap_or((&lower, ""));
        if !SECTIONS.contains(&section) || key.is_empty() {
            let advice = nearest(section, SECTIONS).map_or_else(String::new, |near| {
                format!("; did you mean '{PREFIX}{}_…'?", near.to_uppercase())
            });
            return Err(ConfigError::value(&name, format!("this variable stands for no setting{advice}")));
        }
        let entry = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(entry) = entry else {
            return Err(ConfigError::value(section, "must be a section"));
        };
        entry.insert(key.to_owned(), scalar(&value));
    }
    Ok(any)
}

/// A number, boolean, list or table as TOML writes it; anything else is text.
fn scalar(text: &str) -> Value {
    toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

fn neurons(text: &str) -> Result<Value, ConfigError> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let nodes: Result<Vec<Value>, ConfigError> = entries
        .map(|entry| {
            let (name, endpoint) = entry.split_once('=').ok_or_else(|| {
                ConfigError::value("CORTEX_NEURONS", "must be name=endpoint, separated by commas")
            })?;
            let mut node = Table::new();
            node.insert("name".into(), Value::String(name.to_owned()));
            node.insert("endpoint".into(), Value::String(endpoint.to_owned()));
            Ok(Value::Table(node))
        })
        .collect();
    nodes.map(Value::Array)
}
