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
    /// A key stands for nothing.
    #[error("{place}: there is no setting '{key}'{advice}")]
    UnknownKey {
        /// The file, or the environment.
        place: String,
        /// The key with its section, or the variable.
        key: String,
        /// What may have been meant; empty when nothing is near.
        advice: String,
    },
    /// A value makes no sense.
    #[error("{key} {message}")]
    Value {
        /// The setting or variable.
        key: String,
        /// What is wrong with it, as the rest of a sentence.
        message: String,
    },
}

impl ConfigError {
    /// A value that makes no sense; `message` is the rest of a sentence that begins with the key.
    pub(crate) fn value(key: &str, message: impl Into<String>) -> Self {
        Self::Value { key: key.to_owned(), message: message.into() }
    }

    /// What the reader of the format complained about, with line and column.
    pub(super) fn parse(path: &Path, error: &toml::de::Error) -> Self {
        Self::Parse { path: path.to_owned(), message: error.to_string().trim_end().to_owned() }
    }
}

/// The known name nearest to `name`, if it is near enough to be meant.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 2.max(candidate.len() / 3))
        .min()
        .map(|(_, candidate)| candidate)
}
