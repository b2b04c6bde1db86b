//! Files that may change while the gateway serves: the catalogue and the keys.
//!
//! A file is read when its time of change is new, checked whole, and then put in place of the old
//! one at once. A file that is wrong changes nothing and is complained about, once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;

use super::Gateway;
use crate::config::{Catalogue, ConfigError};
use crate::fleet::identity::unix_ms;
use crate::keys::{Keys, file};
use crate::usage::{Ledger, Spending};

const DAY_MS: u64 = 86_400_000;
/// Rounds after which budgets are compared with the ledger, where old costs leave their window.
const BUDGETS_EVERY: u32 = 60;

/// The files to look at.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// `models.toml`.
    pub catalogue: Option<PathBuf>,
    /// `keys.toml`.
    pub keys: Option<PathBuf>,
}

/// The keys of a file, with what the ledger knows they have spent; open without a file.
///
/// # Errors
/// What is wrong with the file, or the ledger.
pub fn keys(path: Option<&Path>, ledger: Option<&Ledger>) -> Result<Keys, ConfigError> {
    let Some(path) = path else { return Ok(Keys::open()) };
    let entries = file::load(path)?;
    Ok(Keys::of(entries, |entry| Spending::of(spent(ledger, &entry.name, entry.budget_days))))
}

fn spent(ledger: Option<&Ledger>, name: &str, days: u32) -> f64 {
    let since = unix_ms().saturating_sub(u64::from(days) * DAY_MS);
    ledger.map_or(0.0, |ledger| {
        ledger.spent(name, since).unwrap_or_else(|error| {
            tracing::error!(key = name, %error, "its budget cannot be read; it is taken for whole");
            0.0
        })
    })
}

/// Looks at the files until dropped.
pub fn start(gateway: Arc<Gateway>, files: Files, interval: Duration) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut catalogue = Watched::new(files.catalogue.clone());
        let mut keys_file = Watched::new(files.keys.clone());
        let mut round = 0u32;
        loop {
            tokio::time::sleep(interval).await;
            if let Some(path) = catalogue.changed() {
                say(path, reload_catalogue(&gateway, path));
            }
            if let Some(path) = keys_file.changed() {
                say(path, reload_keys(&gateway, path));
            }
            round = round.wrapping_add(1);
            if round.is_multiple_of(BUDGETS_EVERY) {
                refresh_budgets(&gateway);
            }
        }
    });
    tasks
}

fn say(path: &Path, outcome: Result<(), ConfigError>) {
    match outcome {
        Ok(()) => tracing::info!(file = %path.display(), "read again"),
        Err(error) => tracing::error!(%error, "the file is wrong; what was read before stays in force"),
    }
}

fn reload_catalogue(gateway: &Gateway, path: &Path) -> Result<(), ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let catalogue = Catalogue::parse(&text, path)?;
    catalogue.check_nodes(gateway.fleet.nodes().iter().map(|node| node.name.as_str()))?;
    gateway.fleet.replace_catalogue(catalogue);
    Ok(())
}

fn reload_keys(gateway: &Gateway, path: &Path) -> Result<(), ConfigError> {
    gateway.keys.store(Arc::new(keys(Some(path), gateway.ledger.as_deref())?));
    Ok(())
}

fn refresh_budgets(gateway: &Gateway) {
    let Some(ledger) = gateway.ledger.as_deref() else { return };
    for key in gateway.keys.load().list() {
        if let Some(days) = key.budget_days() {
            key.spent(spent(Some(ledger), &key.name, days));
        }
    }
}

/// A file and when it was last changed.
struct Watched {
    path: Option<PathBuf>,
    seen: Option<SystemTime>,
}

impl Watched {
    fn new(path: Option<PathBuf>) -> Self {
        let seen = path.as_deref().and_then(changed_at);
        Self { path, seen }
    }

    /// The path, when the file has changed since it was last asked.
    fn changed(&mut self) -> Option<&Path> {
        let path = self.path.as_deref()?;
        let now = changed_at(path);
        if now.is_none() || now == self.seen {
            return None;
        }
        self.seen = now;
        Some(path)
    }
}

fn changed_at(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).ok()?.modified().ok()
}
