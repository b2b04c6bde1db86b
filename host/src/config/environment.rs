//! `NEURON_<SECTION>_<KEY>`: environment variables over the file.

use std::path::Path;

use toml::{Table, Value};

use super::error::{ConfigError, nearest};
use super::origin::{Origin, Origins};
use super::{Config, schema};

const PREFIX: &str = "NEURON_";

/// Variables the command line reads itself, and those of the build.
const OTHER: [&str; 5] = ["NEURON_CONFIG", "NEURON_ENDPOINT", "NEURON_API_KEY", "NEURON_BUILD", "NEURON_GIT"];

/// Short names of the settings that are set most.
const SHORT: [(&str, &str, &str); 2] =
    [("NEURON_PLUGINS", "plugins", "directories"), ("NEURON_LOG", "log", "filter")];

/// What an orchestrator sets for a service that is called neuron; none of it is meant for this program.
fn is_of_an_orchestrator(rest: &str) -> bool {
    rest == "PORT" || rest.starts_with("PORT_") || rest.starts_with("SERVICE_")
}

/// Writes every override into `table`.
///
/// # Errors
/// [`ConfigError`] for a variable with our prefix that stands for nothing, or whose value does not fit.
pub(super) fn apply(
    table: &mut Table,
    origins: &mut Origins,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<(), ConfigError> {
    for (name, text) in environment {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        if OTHER.contains(&name.as_str()) || is_of_an_orchestrator(rest) {
            continue;
        }
        let (section, key) = setting(&name, rest)?;
        let value = match (section, key) {
            ("plugins", "directories") if name == "NEURON_PLUGINS" => in_front(table, section, key, &text),
            ("cuda", "libs") => in_front(table, section, key, &text),
            _ => fit(&name, section, key, &text)?,
        };
        insert(table, section, key, value);
        origins.set(section, key, Origin::Environment(name));
    }
    Ok(())
}

/// The section (empty for the top of the file) and key a variable stands for.
fn setting(name: &str, rest: &str) -> Result<(&'static str, &'static str), ConfigError> {
    if let Some((_, section, key)) = SHORT.iter().find(|(short, ..)| *short == name) {
        return Ok((section, key));
    }
    let all: Vec<(String, &'static str, &'static str)> = every_setting()
        .map(|(section, key)| {
            let spelt = if section.is_empty() { key.to_owned() } else { format!("{section}_{key}") };
            (spelt.to_uppercase(), section, key)
        })
        .collect();
    if let Some((_, section, key)) = all.iter().find(|(spelt, ..)| spelt == rest) {
        return Ok((section, key));
    }
    let near = nearest(rest, all.iter().map(|(spelt, ..)| spelt.as_str()));
    Err(ConfigError::UnknownKey {
        place: "environment".into(),
        key: name.to_owned(),
        advice: near.map_or_else(String::new, |near| format!("; did you mean '{PREFIX}{near}'?")),
    })
}

fn every_setting() -> impl Iterator<Item = (&'static str, &'static str)> {
    let top = schema::keys("").unwrap_or_default().iter().filter(|key| schema::keys(key).is_none());
    let inner = schema::sections()
        .filter(|section| *section != "models")
        .flat_map(|section| schema::keys(section).unwrap_or_default().iter().map(move |key| (section, *key)));
    top.map(|key| ("", *key)).chain(inner)
}

/// `NEURON_PLUGINS` and `NEURON_CUDA_LIBS` add directories in front, separated by colons as in `PATH`.
fn in_front(table: &Table, section: &str, key: &str, text: &str) -> Value {
    let here = std::env::current_dir().unwrap_or_default();
    let named = text.split(':').filter(|part| !part.is_empty()).map(|part| here.join(part));
    let mut all: Vec<Value> = named.map(|path| Value::String(path.to_string_lossy().into_owned())).collect();
    if let Some(Value::Array(file)) = table.get(section).and_then(|section| section.get(key)) {
        all.extend(file.iter().cloned());
    }
    Value::Array(all)
}

/// The value as TOML writes it if that fits the setting, else as text, else as a list of one text or of several
/// separated by commas.
fn fit(name: &str, section: &str, key: &str, text: &str) -> Result<Value, ConfigError> {
    let written =
        toml::from_str::<Table>(&format!("value = {text}")).ok().and_then(|mut table| table.remove("value"));
    let list =
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(|part| Value::String(part.into()));
    let tries = [written, Some(Value::String(text.to_owned())), Some(Value::Array(list.collect()))];
    let mut complaint = None;
    for value in tries.into_iter().flatten() {
        let mut alone = Table::new();
        insert(&mut alone, section, key, value.clone());
        match alone.try_into::<Config>() {
            Ok(_) => return Ok(value),
            Err(error) => complaint = complaint.or(Some(error)),
        }
    }
    Err(complaint.map_or_else(
        || ConfigError::value(name, "cannot be read"),
        |error| ConfigError::parse(Path::new(name), &error),
    ))
}

fn insert(table: &mut Table, section: &str, key: &str, value: Value) {
    if section.is_empty() {
        table.insert(key.to_owned(), value);
    } else if let Value::Table(inner) = table.entry(section).or_insert_with(|| Value::Table(Table::new())) {
        inner.insert(key.to_owned(), value);
    }
}
