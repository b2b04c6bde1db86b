//! Sizes of memory as people write them: `24 GiB`, `512MiB`, or a number of bytes.
//!
//! Both daemons' configurations read them here, so that a size means the same in both files.

use serde::{Deserialize, Deserializer, de};

const UNITS: [(&str, u64); 9] = [
    ("tib", 1 << 40),
    ("gib", 1 << 30),
    ("mib", 1 << 20),
    ("kib", 1 << 10),
    ("tb", 1_000_000_000_000),
    ("gb", 1_000_000_000),
    ("mb", 1_000_000),
    ("kb", 1_000),
    ("b", 1),
];

/// Bytes, from a text with or without a unit; `None` when it is no size.
pub fn parse(text: &str) -> Option<u64> {
    let lower = text.trim().to_lowercase();
    let (number, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| lower.strip_suffix(unit).map(|number| (number, *factor)))
        .unwrap_or((&lower, 1));
    let number: f64 = number.trim().parse().ok()?;
    let bytes = number * factor as f64;
    (bytes.is_finite() && (0.0..9e18).contains(&bytes)).then_some(bytes as u64)
}

/// Reads bytes from a number or a text with a unit; for a field that is `None` when it is left out.
///
/// # Errors
///
/// What is neither, with an example of what is.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(u64),
        Text(String),
    }
    let written = Written::deserialize(deserializer)
        .map_err(|_| de::Error::custom("expected a size such as \"24 GiB\", or a number of bytes"))?;
    match written {
        Written::Number(bytes) => Ok(Some(bytes)),
        Written::Text(text) => parse(&text)
            .map(Some)
            .ok_or_else(|| de::Error::custom(format!("{text:?} is no size; write it like \"24 GiB\""))),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("24 GiB", Some(24 << 30)),
            ("512mib", Some(512 << 20)),
            ("1.5GB", Some(1_500_000_000)),
            ("100", Some(100)),
            ("-1", None),
            ("much", None),
            ("", None),
        ] {
            assert_eq!(super::parse(text), bytes, "{text}");
        }
    }
}
