//! What the gateway believes about its nodes: one immutable view, replaced whole.
//!
//! The node is the source of truth; this is advice that is at most a poll old. Counters that live
//! longer than a view ([`gauge`]) are shared by successive views. A decision that changes a node's
//! state is never made from here alone: [`placement`](crate::placement) asks the node again.

pub mod gauge;
pub mod identity;
pub mod node_client;
pub mod poll;
pub mod view;

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use wire_api::node::discovery::Discovery;
use wire_api::node::models::NodeModels;

use crate::config::{Catalogue, Neuron};
use gauge::Gauges;
use view::{Draft, FleetView};

/// What was last heard of one node.
#[derive(Debug, Clone, Default)]
pub struct Observation {
    /// The last answer; kept while polls are missed.
    pub status: Option<NodeModels>,
    /// What the node is made of.
    pub discovery: Option<Discovery>,
    /// When the last answer came, on the gateway's clock.
    pub heard_ms: u64,
    /// Polls missed in a row.
    pub misses: u32,
    /// Why the last poll failed.
    pub fault: Option<String>,
}

/// The nodes, what was heard of them, and the present view.
pub struct Fleet {
    nodes: Vec<Neuron>,
    allowed_misses: u32,
    catalogue: ArcSwap<Catalogue>,
    observations: Mutex<Vec<Observation>>,
    gauges: Gauges,
    view: ArcSwap<FleetView>,
    changed: tokio::sync::watch::Sender<u64>,
}

impl Fleet {
    /// A fleet nobody has heard of yet. `allowed_misses`: polls a node may miss before it gets no new work.
    pub fn new(mut nodes: Vec<Neuron>, catalogue: Catalogue, allowed_misses: u32) -> Self {
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let observations = Mutex::new(vec![Observation::default(); nodes.len()]);
        let fleet = Self {
            nodes,
            allowed_misses,
            catalogue: ArcSwap::from_pointee(catalogue),
            observations,
            gauges: Gauges::default(),
            view: ArcSwap::from_pointee(FleetView::default()),
            changed: tokio::sync::watch::Sender::new(0),
        };
        fleet.rebuild();
        fleet
    }

    /// The present view.
    pub fn view(&self) -> Arc<FleetView> {
        self.view.load_full()
    }

    /// The nodes as configured, by name.
    pub fn nodes(&self) -> &[Neuron] {
        &self.nodes
    }

    /// The catalogue in force.
    pub fn catalogue(&self) -> Arc<Catalogue> {
        self.catalogue.load_full()
    }

    /// Replaces the catalogue whole.
    pub fn replace_catalogue(&self, catalogue: Catalogue) {
        self.catalogue.store(Arc::new(catalogue));
        self.rebuild();
    }

    /// Counters that outlive views.
    pub fn gauges(&self) -> &Gauges {
        &self.gauges
    }

    /// Wakes whenever the view was replaced.
    pub fn watch(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Takes in an answer of the node at `index`.
    ///
    /// An answer older than the last of the same life of the node is dropped: polls may overtake each other.
    pub fn heard(&self, index: usize, status: NodeModels, discovery: Option<Discovery>) {
        self.update(index, |observation| {
            let late = observation.status.as_ref().is_some_and(|known| {
                known.boot_id == status.boot_id && status.sequence != 0 && known.sequence > status.sequence
            });
            if !late {
                observation.status = Some(status);
            }
            observation.discovery = discovery.or(observation.discovery.take());
            observation.heard_ms = identity::now_ms();
            observation.misses = 0;
            observation.fault = None;
        });
    }

    /// Takes in that the node at `index` did not answer. What was known of it stays.
    pub fn missed(&self, index: usize, fault: String) {
        self.update(index, |observation| {
            observation.misses = observation.misses.saturating_add(1);
            observation.fault = Some(fault);
        });
    }

    /// How often the node at `index` has not answered in a row.
    pub fn misses(&self, index: usize) -> u32 {
        let observations = self.observations.lock().unwrap_or_else(PoisonError::into_inner);
        observations[index].misses
    }

    fn update(&self, index: usize, change: impl FnOnce(&mut Observation)) {
        change(&mut self.observations.lock().unwrap_or_else(PoisonError::into_inner)[index]);
        self.rebuild();
    }

    /// Builds the view afresh from everything known and puts it in place.
    pub fn rebuild(&self) {
        let catalogue = self.catalogue.load_full();
        // Built under the lock, so that a newer view is never replaced by an older one.
        let observations = self.observations.lock().unwrap_or_else(PoisonError::into_inner);
        let draft = Draft {
            nodes: &self.nodes,
            observations: &observations,
            catalogue: &catalogue,
            gauges: &self.gauges,
            allowed_misses: self.allowed_misses,
        };
        self.view.store(Arc::new(draft.build()));
        drop(observations);
        self.changed.send_modify(|generation| *generation += 1);
    }
}
