//! Counters that outlive a view: what this gateway itself has under way and has measured.
//!
//! Polled figures are up to a second old. What the gateway sent since then it knows better, and
//! keeps here: requests under way, latencies, arrival rates, learned sizes and load times.

mod model;
mod node;
mod replica;
mod ticket;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

pub use model::ModelGauge;
pub use node::{BreakerState, NodeGauge};
pub use replica::ReplicaGauge;
pub use ticket::Ticket;

/// All gauges, by node and model.
#[derive(Default)]
pub struct Gauges {
    nodes: Mutex<HashMap<String, Arc<NodeGauge>>>,
    models: Mutex<HashMap<String, Arc<ModelGauge>>>,
    replicas: Mutex<HashMap<(String, String), Arc<ReplicaGauge>>>,
}

impl Gauges {
    /// The gauge of a node.
    pub fn node(&self, name: &str) -> Arc<NodeGauge> {
        of(&self.nodes, name)
    }

    /// The gauge of a model over the whole fleet.
    pub fn model(&self, id: &str) -> Arc<ModelGauge> {
        of(&self.models, id)
    }

    /// The gauge of a model on a node.
    pub fn replica(&self, node: &str, model: &str) -> Arc<ReplicaGauge> {
        let mut replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(replicas.entry((node.to_owned(), model.to_owned())).or_default())
    }

    /// Requests under way over the whole fleet.
    pub fn inflight(&self) -> u64 {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.values().map(|gauge| u64::from(gauge.inflight())).sum()
    }
}

fn of<T: Default>(map: &Mutex<HashMap<String, Arc<T>>>, name: &str) -> Arc<T> {
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(gauge) = map.get(name) {
        return Arc::clone(gauge);
    }
    Arc::clone(map.entry(name.to_owned()).or_default())
}

/// A value averaged over time: recent samples count more.
#[derive(Debug, Clone, Copy, Default)]
struct Average {
    value: f64,
    samples: u64,
}

impl Average {
    fn add(&mut self, sample: f64, weight: f64) {
        self.value = if self.samples == 0 { sample } else { self.value + weight * (sample - self.value) };
        self.samples += 1;
    }
}
