//! What can go wrong between a request and its tokens.

use std::path::PathBuf;

/// Why a prompt could not be made, or a model's text files could not be used.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The request is wrong; the sentence says what to change.
    #[error("{0}")]
    InvalidInput(String),
    /// The model's files ask for something this program does not do.
    #[error("{0}")]
    Unsupported(String),
    /// A file of the model cannot be read or is malformed.
    #[error("{path}: {reason}")]
    BadFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl PromptError {
    /// A malformed or unreadable file.
    pub fn file(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Self::BadFile { path: path.into(), reason: reason.to_string() }
    }
}
