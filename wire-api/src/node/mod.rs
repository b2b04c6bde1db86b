//! The node API: what cortex, the command line and operators say to a neuron.
//!
//! Every type reads and writes, because a neuron answers with it and cortex asks with it. Commands
//! refuse unknown fields (a slip of the pen must not load the wrong thing); answers tolerate them
//! (an older cortex must be able to read a newer neuron).
//!
//! The node is the source of truth for what is loaded. It counts every change of its residency in
//! a revision and grants fenced leases of its memory; a command that carries an older fence or
//! revision is answered with 409 and the code `stale_fence` or `stale_revision`.

pub mod continuation;
pub mod discovery;
pub mod events;
pub mod lease;
pub mod load;
pub mod models;
pub mod registration;
pub mod routes;
pub mod status;
pub mod text;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{ApiError, ErrorKind};

macro_rules! identifier {
    ($(#[$doc:meta] $name:ident),+ $(,)?) => {$(
        #[$doc]
        #[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            /// The text of the id.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    )+};
}

identifier! {
    /// A model as requests name it: a local path, or `org/name[@revision][:file.gguf]`.
    ModelId,
    /// One load under way or past; joiners of a load get the same one.
    JobId,
    /// A device of a node: `cpu-0`, `cuda-1`.
    DeviceId,
    /// A lease of a node's memory.
    LeaseId,
    /// One life of a neuron process; a new one voids everything believed about the old.
    BootId,
}

/// The code of a command that carried an older fence than the node has seen.
pub const CODE_STALE_FENCE: &str = "stale_fence";
/// The code of a command planned on an older residency than the node's.
pub const CODE_STALE_REVISION: &str = "stale_revision";

/// Reads a command.
///
/// # Errors
///
/// 400, saying which field is wrong.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        let code = if error.is_data() { "invalid_value" } else { "invalid_json" };
        ApiError::new(ErrorKind::InvalidRequest, error.to_string()).with_code(code)
    })
}
