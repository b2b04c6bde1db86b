//! Which keys there are, asked of the types themselves.
//!
//! The names are those the derived readers know, so that a new field is a new key and nothing else need be
//! told.

use std::path::Path;

use serde::de::value::Error as Stop;
use serde::de::{Deserialize, Deserializer, Error as _, Visitor};
use toml::{Table, Value};

use super::error::{ConfigError, nearest};
use super::{Config, Cuda, Engine, Hub, Images, Limits, Log, Model, Plugins, Register};

/// Sections whose content is not ours to check.
const FREE: [&str; 1] = ["engine.options"];

/// The keys of a section; of the whole file for the empty name. `None` when there is no such section.
pub(super) fn keys(section: &str) -> Option<&'static [&'static str]> {
    Some(match section {
        "" => fields::<Config>(),
        "plugins" => fields::<Plugins>(),
        "engine" => fields::<Engine>(),
        "limits" => fields::<Limits>(),
        "images" => fields::<Images>(),
        "cuda" => fields::<Cuda>(),
        "hub" => fields::<Hub>(),
        "register" => fields::<Register>(),
        "log" => fields::<Log>(),
        "models" => fields::<Model>(),
        _ => return None,
    })
}

/// Every section, in the order of the file.
pub(super) fn sections() -> impl Iterator<Item = &'static str> {
    fields::<Config>().iter().copied().filter(|name| keys(name).is_some())
}

/// Refuses the first key that stands for nothing.
pub(super) fn check(table: &Table, source: &Path) -> Result<(), ConfigError> {
    check_section(table, "", "", source)?;
    for (name, value) in table {
        match value {
            Value::Table(section) => check_section(section, name, name, source)?,
            Value::Array(entries) => {
                for (place, entry) in entries.iter().enumerate() {
                    if let Value::Table(entry) = entry {
                        check_section(entry, name, &format!("{name}[{place}]"), source)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_section(table: &Table, section: &str, shown: &str, source: &Path) -> Result<(), ConfigError> {
    let Some(known) = keys(section).filter(|_| !FREE.contains(&section)) else { return Ok(()) };
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(unknown) => Err(ConfigError::UnknownKey {
            place: source.display().to_string(),
            key: if shown.is_empty() { unknown.clone() } else { format!("{shown}.{unknown}") },
            advice: advice(unknown, section, known),
        }),
    }
}

fn advice(unknown: &str, section: &str, known: &[&'static str]) -> String {
    let elsewhere =
        sections().find(|other| *other != section && keys(other).is_some_and(|keys| keys.contains(&unknown)));
    if let Some(near) = nearest(unknown, known.iter().copied()) {
        format!("; did you mean '{near}'?")
    } else if let Some(other) = elsewhere {
        format!("; it belongs into [{other}]")
    } else if section.is_empty() && fields::<Config>().contains(&unknown) {
        String::new()
    } else if !section.is_empty() && fields::<Config>().contains(&unknown) {
        "; it belongs to the top of the file, before the first [section]".to_owned()
    } else {
        format!("; there are {}", known.join(", "))
    }
}

/// The field names of a struct with a derived reader.
fn fields<T: for<'de> Deserialize<'de>>() -> &'static [&'static str] {
    let mut found: &'static [&'static str] = &[];
    // It always stops with an error: there is nothing to read.
    let _ = T::deserialize(Names(&mut found));
    found
}

struct Names<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Names<'_> {
    type Error = Stop;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Stop> {
        Err(Stop::custom("only structs have field names"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Stop> {
        *self.0 = fields;
        Err(Stop::custom("the names are all that was wanted"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
