//! Asking every node how it is, each at its own pace, so that a slow one holds up nobody.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use wire_api::node::BootId;

use super::Fleet;
use super::node_client::NodeClient;
use crate::config::neuron::Endpoint;
use crate::config::{Neuron, NodeKind, Polling};
use crate::proxy::client::Client;

/// Polls after which a node is asked again what it is made of.
const DISCOVERY_EVERY: u32 = 30;

/// A client for every node of the fleet, in the fleet's order.
pub fn clients(fleet: &Fleet, client: &Client, polling: &Polling) -> Vec<NodeClient> {
    let timeout = Duration::from_millis(polling.timeout_ms);
    fleet
        .nodes()
        .iter()
        .map(|node| {
            NodeClient::new(client.clone(), &node.name, &Endpoint::new(&node.endpoint), key(node), timeout)
        })
        .collect()
}

/// The key a node wants, from the environment variable its entry names.
pub fn key(node: &Neuron) -> Option<String> {
    node.api_key_env.as_ref().and_then(|name| std::env::var(name).ok())
}

/// Polls until dropped: one task per node.
pub fn start(fleet: Arc<Fleet>, clients: Vec<NodeClient>, interval: Duration) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for (index, client) in clients.into_iter().enumerate() {
        let fleet = Arc::clone(&fleet);
        tasks.spawn(async move {
            let mut poll = Poll { fleet, client, index, known: None, since_discovery: 0 };
            loop {
                poll.once().await;
                tokio::time::sleep(interval).await;
            }
        });
    }
    tasks
}

/// Asks one node once, outside its rhythm. True when it answered.
pub async fn refresh(fleet: &Fleet, client: &NodeClient, index: usize) -> bool {
    match client.models(fleet.nodes()[index].kind).await {
        Ok(status) => {
            fleet.heard(index, status, None);
            true
        }
        Err(_) => false,
    }
}

struct Poll {
    fleet: Arc<Fleet>,
    client: NodeClient,
    index: usize,
    known: Option<BootId>,
    since_discovery: u32,
}

impl Poll {
    async fn once(&mut self) {
        let node = &self.fleet.nodes()[self.index];
        let kind = node.kind;
        match self.client.models(kind).await {
            Ok(status) => {
                let reborn = self.known.as_ref() != Some(&status.boot_id);
                self.since_discovery += 1;
                let ask = kind == NodeKind::Neuron && (reborn || self.since_discovery >= DISCOVERY_EVERY);
                let discovery = if ask { self.client.discovery().await.ok() } else { None };
                if ask && discovery.is_some() {
                    self.since_discovery = 0;
                    self.known = Some(status.boot_id.clone());
                }
                if self.fleet.misses(self.index) > 0 {
                    tracing::info!(node = %node.name, "the node answers again");
                }
                self.fleet.heard(self.index, status, discovery);
            }
            Err(error) => {
                if self.fleet.misses(self.index) == 0 {
                    tracing::warn!(node = %node.name, %error, "missed a poll");
                }
                self.fleet.missed(self.index, error.to_string());
            }
        }
    }
}
