//! Noticing changes of the plugin directories.
//!
//! The kernel's notices make it quick, a slow poll makes it sure: notices do not come from every file system,
//! and a directory that does not exist yet cannot be watched.

use std::path::Path;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::Catalogue;

/// Notices come in bursts; a scan waits until they have calmed down for so long.
const CALM: Duration = Duration::from_millis(200);

/// A file that may still be written to is looked at again after so long.
const AGAIN: Duration = Duration::from_millis(1000);

/// Without any notice the directories are looked at this often.
const POLL: Duration = Duration::from_secs(15);

pub(super) async fn run(catalogue: Catalogue) {
    let (notices, mut inbox) = unbounded_channel();
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reads are no change, and the probe reads every file.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            // The task has ended; so will this watcher.
            let _ = notices.send(());
        }
    });
    let mut watcher = watcher
        .inspect_err(|error| tracing::warn!(%error, "no notices of changed plugins; they are polled for"))
        .ok();
    let mut watched = Vec::new();
    loop {
        if let Some(watcher) = &mut watcher {
            watch_new(watcher, &catalogue, &mut watched);
        }
        let young = catalogue.refresh().await;
        wait(&mut inbox, if young { AGAIN } else { POLL }).await;
    }
}

/// Watches directories that were not there before.
fn watch_new(watcher: &mut RecommendedWatcher, catalogue: &Catalogue, watched: &mut Vec<usize>) {
    for (index, directory) in catalogue.0.options.directories.iter().enumerate() {
        if !watched.contains(&index) && Path::new(directory).is_dir() {
            match watcher.watch(directory, RecursiveMode::Recursive) {
                Ok(()) => watched.push(index),
                Err(error) => tracing::debug!(%error, directory = %directory.display(), "cannot be watched"),
            }
        }
    }
}

/// Waits for a notice and the calm after it, or for `limit`.
async fn wait(inbox: &mut UnboundedReceiver<()>, limit: Duration) {
    match tokio::time::timeout(limit, inbox.recv()).await {
        Err(_) => return,
        Ok(None) => return tokio::time::sleep(limit).await,
        Ok(Some(())) => {}
    }
    // The calm is bounded too: a directory that changes all the time must not hide what is in it.
    let calm = async {
        while tokio::time::timeout(CALM, inbox.recv()).await.is_ok_and(|notice| notice.is_some()) {}
    };
    let _ = tokio::time::timeout(AGAIN, calm).await;
}
