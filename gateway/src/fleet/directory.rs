//! How each node is asked: a client per node, by name. Nodes may join and leave while the gateway serves.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;

use super::node_client::NodeClient;
use super::transport::Transport;
use crate::config::Neuron;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Directory(Arc<Inner>);

struct Inner {
    transport: Arc<dyn Transport>,
    timeout: Duration,
    clients: RwLock<BTreeMap<String, NodeClient>>,
    changed: watch::Sender<()>,
}

impl Directory {
    /// Clients for these nodes; each answer must come within `timeout`.
    pub fn new(transport: Arc<dyn Transport>, timeout: Duration, nodes: &[Neuron]) -> Self {
        let directory = Self(Arc::new(Inner {
            transport,
            timeout,
            clients: RwLock::default(),
            changed: watch::Sender::new(()),
        }));
        for node in nodes {
            directory.put(node);
        }
        directory
    }

    /// The client of a node.
    pub fn get(&self, name: &str) -> Option<NodeClient> {
        self.0.clients.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Every node that can be asked.
    pub fn names(&self) -> Vec<String> {
        self.0.clients.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// A node has joined, or moved.
    pub fn put(&self, node: &Neuron) {
        let client = NodeClient::new(Arc::clone(&self.0.transport), node, self.0.timeout);
        self.0.clients.write().unwrap_or_else(PoisonError::into_inner).insert(node.name.clone(), client);
        self.0.changed.send_replace(());
    }

    /// A node has left.
    pub fn remove(&self, name: &str) {
        self.0.clients.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.0.changed.send_replace(());
    }

    /// Wakes whenever a node has joined, moved or left.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }
}
