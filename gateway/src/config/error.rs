//! Why a configuration is refused.

use std::path::{Path, PathBuf};

/// A setting that cannot be used. The text names the file or variable, the key, and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file does not say what it should.
    #[error("{}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        message: String,
    },
    /// A value makes no sense.
    #[error("{key}: {message}")]
    Value {
        /// The setting.
        key: String,
        /// What is wrong with it.
        message: String,
    },
}

impl ConfigError {
    /// A value that makes no sense.
    pub fn value(key: &str, message: impl Into<String>) -> Self {
        Self::Value { key: key.to_owned(), message: message.into() }
    }

    /// What the reader of the format complained about, with the nearest key where one is unknown.
    pub(crate) fn parse(path: &Path, error: toml::de::Error) -> Self {
        let mut message = error.to_string().trim_end().to_owned();
        if let Some(nearest) = nearest_key(error.message()) {
            message.push_str(&format!("; did you mean '{nearest}'?"));
        }
        Self::Parse { path: path.to_owned(), message }
    }
}

/// The known key nearest to the unknown one, from "unknown field `x`, expected one of `a`, `b`".
fn nearest_key(complaint: &str) -> Option<String> {
    let quoted: Vec<&str> = complaint.split('`').skip(1).step_by(2).collect();
    let (unknown, known) = quoted.split_first()?;
    complaint.starts_with("unknown field").then_some(())?;
    nearest(unknown, known.iter().copied())
}

/// The known name nearest to `name`, if it is near enough to be meant.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 2.max(candidate.len() / 3))
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}
