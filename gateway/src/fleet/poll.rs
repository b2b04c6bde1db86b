//! Asking every node how it is, each at its own pace, so that a slow one holds up nobody.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet};
use wire_api::node::BootId;

use super::Fleet;
use super::directory::Directory;
use super::node_client::NodeClient;
use crate::config::{Neuron, NodeKind};

/// Polls after which a node is asked again what it is made of.
const DISCOVERY_EVERY: u32 = 30;

/// The key a node wants, from the variable or the file its entry names. One that cannot be had is said so once
/// where the configuration is read; here the node is asked without.
pub fn key(node: &Neuron) -> Option<String> {
    node.api_key().ok().flatten()
}

/// Polls every node of the directory until dropped: one task per node, begun and ended as nodes come and go.
pub fn start(fleet: Arc<Fleet>, directory: Directory, interval: Duration) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut changes = directory.watch();
        let mut polled: HashMap<String, AbortHandle> = HashMap::new();
        let mut pollers = JoinSet::new();
        loop {
            changes.mark_unchanged();
            let names = directory.names();
            polled.retain(|name, task| {
                let stays = names.contains(name);
                if !stays {
                    task.abort();
                }
                stays
            });
            for name in names {
                polled.entry(name.clone()).or_insert_with(|| {
                    let (fleet, directory) = (Arc::clone(&fleet), directory.clone());
                    pollers
                        .spawn(Poll { fleet, directory, name, known: None, since_discovery: 0 }.run(interval))
                });
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    });
    tasks
}

/// Asks one node once, outside its rhythm. True when it answered.
pub async fn refresh(fleet: &Fleet, client: &NodeClient) -> bool {
    match client.models().await {
        Ok(status) => {
            fleet.heard(client.name(), status, None);
            true
        }
        Err(_) => false,
    }
}

struct Poll {
    fleet: Arc<Fleet>,
    directory: Directory,
    name: String,
    known: Option<BootId>,
    since_discovery: u32,
}

impl Poll {
    async fn run(mut self, interval: Duration) {
        while let Some(client) = self.directory.get(&self.name) {
            self.once(&client).await;
            tokio::time::sleep(interval).await;
        }
    }

    async fn once(&mut self, client: &NodeClient) {
        let node = self.name.as_str();
        match client.models().await {
            Ok(status) => {
                let reborn = self.known.as_ref() != Some(&status.boot_id);
                self.since_discovery += 1;
                let due = reborn || self.since_discovery >= DISCOVERY_EVERY;
                let ask = client.kind() == NodeKind::Neuron && due;
                let discovery = if ask { client.discovery().await.ok() } else { None };
                if ask && discovery.is_some() {
                    self.since_discovery = 0;
                    self.known = Some(status.boot_id.clone());
                }
                if self.fleet.misses(node) > 0 {
                    tracing::info!(node, "the node answers again");
                }
                self.fleet.heard(node, status, discovery);
            }
            Err(error) => {
                if self.fleet.misses(node) == 0 {
                    tracing::warn!(node, %error, "missed a poll");
                }
                self.fleet.missed(node, error.to_string());
            }
        }
    }
}
