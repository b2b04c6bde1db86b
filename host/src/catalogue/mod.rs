//! The plugins this node can use.
//!
//! Plugin directories are scanned at the start and whenever they change. Each new version of a file is opened
//! once in a short-lived child that prints what it offers; a file that crashes, hangs or does not fit is listed
//! as refused with one sentence that says why. A file is known by its identity, so one that is still being
//! copied is refused for now and looked at again when it has grown.
//!
//! The catalogue never maps a plugin into this process.

mod choose;
mod explain;
mod ranks;
mod watch;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use plugin_loader::{
    Descriptor, FileIdentity, Found, Manifest, Policy, Refusal, Report, probe_in_child, scan,
};
use tokio::sync::watch as channel;

#[cfg(test)]
pub(crate) use choose::tests;
pub use choose::{ArchitectureKey, Chosen, NotServed};
pub use explain::{DeviceReport, explain};

/// Where plugins are looked for, and how.
#[derive(Debug, Clone)]
pub struct CatalogueOptions {
    /// Directories, the most important first.
    pub directories: Vec<PathBuf>,
    /// The neuron binary, whose hidden command `plugin-probe` opens a file.
    pub probe_program: PathBuf,
    /// How long that may take.
    pub probe_timeout: Duration,
    /// Which files may be opened at all.
    pub policy: Policy,
}

impl CatalogueOptions {
    /// These directories, probed by this very binary.
    pub fn new(directories: Vec<PathBuf>) -> Self {
        Self {
            directories,
            probe_program: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("neuron")),
            probe_timeout: Duration::from_secs(20),
            policy: Policy::default(),
        }
    }
}

/// One plugin file.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The file.
    pub path: PathBuf,
    /// What it claims to be; `None` when it is no plugin.
    pub descriptor: Option<Descriptor>,
    /// What was found in it when it was built, if that is known; why a manifest is not believed, if one is not.
    pub manifest: Result<Option<Manifest>, String>,
    /// What it offers, or why it is not used.
    pub outcome: Result<Report, Refusal>,
}

/// All plugin files at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Counts scans that changed something; 0 before the first scan.
    pub revision: u64,
    /// Files, in the directories' order and then by path.
    pub entries: Vec<Entry>,
    /// Where they were looked for.
    pub directories: Vec<PathBuf>,
}

/// One version of a plugin file, and of the manifest beside it.
type Version = (PathBuf, FileIdentity, Option<FileIdentity>);

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Catalogue(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: CatalogueOptions,
    /// What is known of each version of each file, refused ones included.
    known: Mutex<HashMap<Version, Entry>>,
    current: channel::Sender<Arc<Snapshot>>,
    /// Held during a scan, so that two of them do not probe the same file.
    scanning: tokio::sync::Mutex<()>,
}

impl Catalogue {
    /// A catalogue that knows nothing yet.
    pub fn new(options: CatalogueOptions) -> Self {
        let empty = Snapshot { directories: options.directories.clone(), ..Snapshot::default() };
        Self(Arc::new(Inner {
            options,
            known: Mutex::default(),
            current: channel::Sender::new(Arc::new(empty)),
            scanning: tokio::sync::Mutex::default(),
        }))
    }

    /// What is there now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.0.current.borrow())
    }

    /// Tells of every change.
    pub fn subscribe(&self) -> channel::Receiver<Arc<Snapshot>> {
        self.0.current.subscribe()
    }

    /// Looks at the directories and probes what is new. Whether any file is so young that it may still be
    /// written to.
    pub async fn refresh(&self) -> bool {
        let _one_at_a_time = self.0.scanning.lock().await;
        let inner = Arc::clone(&self.0);
        let scanned = tokio::task::spawn_blocking(move || inner.scan()).await;
        let Ok((entries, young)) = scanned else {
            tracing::error!("scanning the plugin directories panicked; the catalogue stays as it is");
            return false;
        };
        self.0.current.send_if_modified(|current| {
            let first = current.revision == 0;
            if !first && current.entries == entries {
                return false;
            }
            *current = Arc::new(Snapshot {
                revision: current.revision + 1,
                entries,
                directories: self.0.options.directories.clone(),
            });
            true
        });
        young
    }

    /// The catalogue after its first scan.
    pub async fn scanned(&self) -> Arc<Snapshot> {
        let mut changes = self.subscribe();
        // The sender lives as long as `self`.
        let found = changes.wait_for(|snapshot| snapshot.revision > 0).await;
        found.map_or_else(|_| self.snapshot(), |snapshot| Arc::clone(&snapshot))
    }

    /// Scans now and whenever a directory changes, until the task is aborted.
    pub fn watch(&self) -> tokio::task::JoinHandle<()> {
        tokio::spawn(watch::run(self.clone()))
    }
}

impl Inner {
    fn scan(&self) -> (Vec<Entry>, bool) {
        let found = scan(&self.options.directories);
        let young = found.iter().filter_map(|found| found.identity).any(|identity| is_young(&identity));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut still_there = HashMap::new();
        let mut entries = Vec::with_capacity(found.len());
        for found in found {
            let manifest = std::fs::metadata(found.path.with_extension("json"));
            let manifest = manifest.ok().map(|metadata| FileIdentity::of(&metadata));
            let key = found.identity.map(|identity| (found.path.clone(), identity, manifest));
            let entry = key.as_ref().and_then(|key| known.get(key).cloned());
            let entry = entry.unwrap_or_else(|| self.examine(found));
            if let Some(key) = key {
                still_there.insert(key, entry.clone());
            }
            entries.push(entry);
        }
        *known = still_there;
        (entries, young)
    }

    fn examine(&self, found: Found) -> Entry {
        let Found { path, descriptor, .. } = found;
        let (descriptor, outcome) = match descriptor {
            Err(refusal) => (None, Err(refusal)),
            Ok(descriptor) => {
                let outcome = self.options.policy.allows(&path).and_then(|()| {
                    probe_in_child(&self.options.probe_program, &path, self.options.probe_timeout)
                });
                (Some(descriptor), outcome)
            }
        };
        match &outcome {
            Ok(report) => tracing::info!(
                plugin = report.build.name,
                build = report.build.build,
                path = %path.display(),
                "plugin found"
            ),
            Err(refusal) => tracing::warn!(%refusal, "plugin refused"),
        }
        let manifest = Manifest::beside(&path);
        if let Err(why) = &manifest {
            tracing::warn!(path = %path.display(), "{why}; the plugin is used without it");
        }
        Entry { path, descriptor, manifest, outcome }
    }
}

/// A file written to within the last two seconds may be written to again.
fn is_young(identity: &FileIdentity) -> bool {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.is_ok_and(|now| now.as_nanos() as i128 - identity.modified_ns < 2_000_000_000)
}
