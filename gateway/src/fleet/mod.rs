//! What the gateway believes about its nodes: one immutable view, replaced whole.
//!
//! The node is the source of truth; this is advice that is at most a poll old. Counters that live
//! longer than a view ([`gauge`]) are shared by successive views. A decision that changes a node's
//! state is never made from here alone: [`placement`](crate::placement) asks the node again.

pub mod directory;
pub mod gauge;
pub mod identity;
pub mod node_client;
pub mod poll;
pub mod transport;
pub mod view;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// A node and what was last heard of it.
pub(crate) struct Member {
    neuron: Neuron,
    observation: Observation,
}

/// The nodes, what was heard of them, and the present view.
pub struct Fleet {
    allowed_misses: u32,
    catalogue: ArcSwap<Catalogue>,
    members: Mutex<BTreeMap<String, Member>>,
    gauges: Gauges,
    view: ArcSwap<FleetView>,
    changed: tokio::sync::watch::Sender<u64>,
}

impl Fleet {
    /// A fleet nobody has heard of yet. `allowed_misses`: polls a node may miss before it gets no new work.
    pub fn new(nodes: Vec<Neuron>, catalogue: Catalogue, allowed_misses: u32) -> Self {
        let members = nodes
            .into_iter()
            .map(|neuron| (neuron.name.clone(), Member { neuron, observation: Observation::default() }));
        let fleet = Self {
            allowed_misses,
            catalogue: ArcSwap::from_pointee(catalogue),
            members: Mutex::new(members.collect()),
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

    /// The nodes there are, by name.
    pub fn nodes(&self) -> Vec<Neuron> {
        self.members().values().map(|member| member.neuron.clone()).collect()
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Option<Neuron> {
        self.members().get(name).map(|member| member.neuron.clone())
    }

    /// A node has joined, or says something new of itself. What was heard of it stays.
    pub fn join(&self, neuron: Neuron) {
        match self.members().entry(neuron.name.clone()) {
            std::collections::btree_map::Entry::Occupied(mut known) => known.get_mut().neuron = neuron,
            std::collections::btree_map::Entry::Vacant(free) => {
                free.insert(Member { neuron, observation: Observation::default() });
            }
        }
        self.rebuild();
    }

    /// A node has left for good. Its models stay known where the catalogue names them.
    pub fn leave(&self, name: &str) {
        self.members().remove(name);
        self.rebuild();
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<String, Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Takes in an answer of a node.
    ///
    /// An answer older than the last of the same life of the node is dropped: polls may overtake each other.
    pub fn heard(&self, node: &str, status: NodeModels, discovery: Option<Discovery>) {
        self.update(node, |observation| {
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

    /// Takes in that a node did not answer. What was known of it stays.
    pub fn missed(&self, node: &str, fault: String) {
        self.update(node, |observation| {
            observation.misses = observation.misses.saturating_add(1);
            observation.fault = Some(fault);
        });
    }

    /// How often a node has not answered in a row.
    pub fn misses(&self, node: &str) -> u32 {
        self.members().get(node).map_or(0, |member| member.observation.misses)
    }

    fn update(&self, node: &str, change: impl FnOnce(&mut Observation)) {
        let mut members = self.members();
        // It may have left while it was asked.
        let Some(member) = members.get_mut(node) else { return };
        change(&mut member.observation);
        drop(members);
        self.rebuild();
    }

    /// Builds the view afresh from everything known and puts it in place.
    pub fn rebuild(&self) {
        let catalogue = self.catalogue.load_full();
        // Built under the lock, so that a newer view is never replaced by an older one.
        let members = self.members();
        let draft = Draft {
            members: &members,
            catalogue: &catalogue,
            gauges: &self.gauges,
            allowed_misses: self.allowed_misses,
        };
        self.view.store(Arc::new(draft.build()));
        drop(members);
        self.changed.send_modify(|generation| *generation += 1);
    }
}
