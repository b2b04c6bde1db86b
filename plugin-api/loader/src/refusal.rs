//! Why a file is not used: one sentence that names the file and the cause.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A plugin that was turned away. Displays as `FILE: cause`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub struct Refusal {
    /// The file; `embedded` for a plugin linked into the host.
    pub path: PathBuf,
    /// Why.
    pub cause: Cause,
}

impl Refusal {
    pub(crate) fn new(path: &Path, cause: Cause) -> Self {
        Self { path: path.to_owned(), cause }
    }
}

/// Why a plugin was turned away. Each variant holds what its sentence needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "cause", content = "detail", rename_all = "snake_case")]
pub enum Cause {
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// The file is no ELF shared object for this machine.
    #[error("it is not a shared library for this machine: {0}")]
    NotALibrary(String),
    /// The file has no descriptor section, or one that is not understood.
    #[error("it is not a plugin: {0}")]
    NotAPlugin(String),
    /// Ownership, permissions, or the allow-list speak against it.
    #[error("it is not trusted: {0}")]
    Untrusted(String),
    /// Another major version of the ABI.
    #[error("it was built for plugin ABI {found}, this host speaks {expected}; rebuild the plugin")]
    AbiVersion {
        /// What this host speaks.
        expected: String,
        /// What the plugin was built for.
        found: String,
    },
    /// Compiled with `panic = "abort"`.
    #[error(
        "it was compiled with panic=\"{0}\"; a panic in it would end the host, build it with panic=\"unwind\""
    )]
    PanicStrategy(String),
    /// `dlopen` failed.
    #[error("it cannot be opened: {0}")]
    Open(String),
    /// The verified layouts differ.
    #[error("its types are laid out differently from this host's: {0}; rebuild the plugin")]
    Layout(String),
    /// What the file claims and what it says once opened differ.
    #[error("its descriptor says {field} {claimed:?}, the opened library says {found:?}")]
    Mismatch {
        /// Which field.
        field: String,
        /// What the descriptor claims.
        claimed: String,
        /// What the opened library says.
        found: String,
    },
    /// `init` failed, or the plugin describes itself with nonsense.
    #[error("it could not be initialised: {0}")]
    Init(String),
    /// The file was replaced between two looks at it.
    #[error("it was replaced while it was being opened; try again")]
    Replaced,
    /// It could not be put into a plugin directory.
    #[error("it cannot be installed as {0}")]
    Install(String),
    /// The child that opened it ended without an answer.
    #[error("opening it ended a trial process: {0}")]
    ProbeDied(String),
    /// The child that opened it did not answer in time.
    #[error("opening it did not finish within {0} ms in a trial process")]
    ProbeHung(u64),
    /// The trial process itself could not be run.
    #[error("the trial process could not be run: {0}")]
    ProbeFailed(String),
}
