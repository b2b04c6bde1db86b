//! Reading a strategy's options: a JSON object that the strategy validates itself.
//!
//! A strategy asks for each option by name with its default and range, then calls
//! [`Options::finish`], which refuses whatever nobody asked for and names the nearest known key. A
//! misspelt option must never be ignored: the operator would believe in a setting that is not there.

use std::fmt::Display;
use std::ops::RangeInclusive;

use plugin_sdk::{Error, Result};
use serde_json::{Map, Value};

/// The options of one strategy while they are being read.
pub struct Options {
    strategy: &'static str,
    map: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Options {
    /// Parses the options of `strategy`. Empty text and `null` mean no options.
    ///
    /// # Errors
    /// `InvalidInput` when the text is not a JSON object.
    pub fn parse(strategy: &'static str, text: &str) -> Result<Self> {
        let map = match text.trim() {
            "" | "null" => Map::new(),
            text => match serde_json::from_str(text) {
                Ok(Value::Object(map)) => map,
                Ok(_) => return Err(refuse(strategy, "the options must be a table")),
                Err(error) => return Err(refuse(strategy, format!("the options are not JSON: {error}"))),
            },
        };
        Ok(Self { strategy, map, known: Vec::new() })
    }

    /// A number, `default` when absent.
    ///
    /// # Errors
    /// `InvalidInput` when it is not a number or out of `range`.
    pub fn number(&mut self, name: &'static str, default: f64, range: RangeInclusive<f64>) -> Result<f64> {
        self.known.push(name);
        let Some(value) = self.map.remove(name) else { return Ok(default) };
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(number),
            _ => Err(refuse(
                self.strategy,
                format!(
                    "option '{name}' must be a number from {} to {}, not {value}",
                    range.start(),
                    range.end()
                ),
            )),
        }
    }

    /// A whole number, `default` when absent.
    ///
    /// # Errors
    /// `InvalidInput` when it is not a whole number or out of `range`.
    pub fn count(&mut self, name: &'static str, default: u64, range: RangeInclusive<u64>) -> Result<u64> {
        self.known.push(name);
        let Some(value) = self.map.remove(name) else { return Ok(default) };
        match value.as_u64() {
            Some(number) if range.contains(&number) => Ok(number),
            _ => Err(refuse(
                self.strategy,
                format!(
                    "option '{name}' must be a whole number from {} to {}, not {value}",
                    range.start(),
                    range.end()
                ),
            )),
        }
    }

    /// Refuses every option nobody asked for.
    ///
    /// # Errors
    /// `InvalidInput` naming the first unknown option and the nearest known one.
    pub fn finish(self) -> Result<()> {
        let Some(unknown) = self.map.keys().next() else { return Ok(()) };
        let nearest = self
            .known
            .iter()
            .map(|known| (strsim::damerau_levenshtein(unknown, known), *known))
            .min()
            .filter(|(distance, known)| *distance <= 2.max(known.len() / 3));
        let advice = match (nearest, self.known.is_empty()) {
            (Some((_, known)), _) => format!("did you mean '{known}'?"),
            (None, true) => "it takes none".to_owned(),
            (None, false) => format!("it knows {}", self.known.join(", ")),
        };
        Err(refuse(self.strategy, format!("unknown option '{unknown}'; {advice}")))
    }
}

/// Refuses all options, for a strategy that has none.
///
/// # Errors
/// `InvalidInput` when there are any.
pub fn none(strategy: &'static str, text: &str) -> Result<()> {
    Options::parse(strategy, text)?.finish()
}

fn refuse(strategy: &str, why: impl Display) -> Error {
    Error::InvalidInput(format!("strategy '{strategy}': {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(f64, u64)> {
        let mut options = Options::parse("demo", text)?;
        let both = (options.number("horizon_s", 60.0, 1.0..=1e6)?, options.count("blocks", 4, 1..=64)?);
        options.finish()?;
        Ok(both)
    }

    #[test]
    fn absent_options_have_defaults() {
        for text in ["", "null", "{}", "  "] {
            assert_eq!(read(text), Ok((60.0, 4)), "{text:?}");
        }
        assert_eq!(read(r#"{"blocks":9,"horizon_s":2.5}"#), Ok((2.5, 9)));
    }

    #[test]
    fn wrong_options_are_named() {
        let cases = [
            (r#"{"horizon":1}"#, "unknown option 'horizon'; did you mean 'horizon_s'?"),
            (r#"{"colour":1}"#, "it knows horizon_s, blocks"),
            (r#"{"horizon_s":0}"#, "must be a number from 1"),
            (r#"{"blocks":1.5}"#, "must be a whole number"),
            (r#"{"blocks":"4"}"#, "not \"4\""),
            ("[1]", "must be a table"),
            ("{", "not JSON"),
        ];
        for (text, expected) in cases {
            let error = read(text).expect_err(text);
            assert!(error.message().contains(expected), "{text}: {error}");
            assert!(error.message().starts_with("strategy 'demo'"), "{error}");
        }
        assert!(none("demo", r#"{"a":1}"#).expect_err("no options").message().contains("it takes none"));
    }
}
