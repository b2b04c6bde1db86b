//! `[usage]`, `[proxy]`, `[telemetry]`: what happens around a request.

use std::path::PathBuf;

use serde::Deserialize;

use super::{ConfigError, read};
use crate::usage::Source;

/// `[usage]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UsageSettings {
    /// The SQLite database, relative to this file. By default `usage.sqlite` in the service's state directory;
    /// without one nothing is written.
    pub database: Option<PathBuf>,
    /// A PostgreSQL database instead: `postgresql://user@host/name`. A password belongs into `postgres_file`.
    pub postgres: Option<String>,
    /// A file that holds such an address, relative to this file.
    pub postgres_file: Option<PathBuf>,
}

/// `[proxy]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Proxy {
    /// Time without an answer after which a request is sent to a second node as well, in milliseconds. 0 is never.
    pub hedge_after_ms: u64,
    /// Share of requests that may be sent twice, 0 to 1.
    pub hedge_budget: f64,
}

impl Default for Proxy {
    fn default() -> Self {
        Self { hedge_after_ms: 0, hedge_budget: 0.05 }
    }
}

/// `[telemetry]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// Where traces are sent, by OTLP over HTTP: `http://host:4318`. Without one nothing is.
    pub otlp_endpoint: Option<String>,
    /// Share of requests traced when the caller does not say, 0 to 1.
    pub sample: f64,
    /// What this gateway is called there.
    pub service: String,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { otlp_endpoint: None, sample: 1.0, service: "cortex".into() }
    }
}

impl UsageSettings {
    /// Where the books are kept, if they are.
    ///
    /// # Errors
    /// [`ConfigError`] for a file that cannot be read.
    pub fn source(&self) -> Result<Option<Source>, ConfigError> {
        let postgres = self.postgres_address()?.map(Source::Postgres);
        Ok(postgres.or_else(|| self.database.clone().map(Source::File)))
    }

    /// The address of the PostgreSQL database, if one keeps the books.
    ///
    /// # Errors
    /// [`ConfigError`] for a file that cannot be read.
    pub fn postgres_address(&self) -> Result<Option<String>, ConfigError> {
        match &self.postgres_file {
            Some(path) => Ok(Some(read(path)?.trim().to_owned())),
            None => Ok(self.postgres.clone()),
        }
    }
}
