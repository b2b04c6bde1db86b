//! The log of this process: on standard error, for people.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging what `filter` lets through.
pub fn start(filter: &str) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // Another subscriber is there already: a test's business, not an error.
    let _ = log.try_init();
}

/// What a command that talks to a person logs: what its own words do not say anyway.
const QUIETLY: &str = "warn,neuron::catalogue=error,neuron::lifecycle=off";

/// Starts the log of a command that talks to a person; the environment may ask for more.
pub fn start_quietly() {
    start(&quiet_filter());
}

/// The filter of [`start_quietly`], for workers.
pub fn quiet_filter() -> String {
    std::env::var(crate::worker::log::FILTER).unwrap_or_else(|_| QUIETLY.into())
}
