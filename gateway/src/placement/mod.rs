//! Where a request goes, and what must happen on a node before it can go there.
//!
//! [`route`] asks the router about the replicas there are. Where none can serve, [`residency`] makes
//! one: it chooses a node, asks the evictor what must go ([`room`]), and carries that out as a
//! transaction with the node, which has the last word. Everybody who waits for one model shares one
//! load. What was decided, and on which figures, is kept for a while ([`decisions`]).

pub mod background;
mod change;
pub mod decisions;
mod failure;
pub mod flight;
pub mod prefix;
pub mod residency;
pub mod room;
pub mod route;
pub mod thrash;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use plugin_loader::{Evictor, Router};

use crate::config::Config;
use crate::coordinator::{Alone, Coordinator};
use crate::fleet::Fleet;
use crate::fleet::directory::Directory;
use crate::fleet::identity::now_ms;
use crate::fleet::node_client::NodeClient;
use crate::metrics::Metrics;
use decisions::Decisions;
use prefix::Prefixes;
use residency::Flights;
use thrash::Thrash;

/// How placement behaves; from the configuration.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Whether nodes that could load the model are candidates while another has it.
    pub consider_loading: bool,
    /// Time a model stays after it was loaded, whoever wants its place.
    pub min_residency: Duration,
    /// Time after which a model that waits for a busy one gets its turn.
    pub turn_after: Duration,
    /// Idle time after which a model is unloaded, unless it says otherwise; zero is never.
    pub idle_timeout: Duration,
    /// Loads and unloads of a node after which an idle model there is loaded afresh; 0 is never.
    pub defrag_after_cycles: u32,
    /// Longest wait for a model to become ready.
    pub load_wait: Duration,
}

impl Policy {
    /// The policy a configuration asks for.
    pub fn of(config: &Config) -> Self {
        Self {
            consider_loading: config.routing.considers_loading(),
            min_residency: Duration::from_secs(config.eviction.min_residency_s),
            turn_after: Duration::from_secs(config.eviction.turn_after_s),
            idle_timeout: Duration::from_secs(config.eviction.idle_timeout_s),
            defrag_after_cycles: config.eviction.defrag_after_cycles,
            load_wait: Duration::from_secs(config.gateway.load_wait_s),
        }
    }
}

/// The one owner of decisions about where things are.
pub struct Placement {
    fleet: Arc<Fleet>,
    router: Router,
    evictor: Evictor,
    nodes: Directory,
    coordinator: Arc<dyn Coordinator>,
    policy: Policy,
    metrics: Arc<Metrics>,
    decisions: Decisions,
    prefixes: Prefixes,
    flights: Flights,
    thrash: Thrash,
    /// Further replicas the router would have: model, node, and for how many requests since the last look.
    wishes: Mutex<BTreeMap<(String, String), u32>>,
    ordinal: AtomicU64,
    /// Who this gateway is, to nodes.
    owner: String,
}

impl Placement {
    /// Placement over `fleet`, whose nodes `nodes` speaks to; by itself, without other gateways.
    pub fn new(
        fleet: Arc<Fleet>,
        nodes: Directory,
        router: Router,
        evictor: Evictor,
        policy: Policy,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            fleet,
            router,
            evictor,
            nodes,
            coordinator: Arc::new(Alone::default()),
            policy,
            metrics,
            decisions: Decisions::default(),
            prefixes: Prefixes::default(),
            flights: Flights::default(),
            thrash: Thrash::default(),
            wishes: Mutex::default(),
            ordinal: AtomicU64::new(0),
            owner: crate::fleet::identity::new_id("cortex-"),
        }
    }

    /// The fleet it decides about.
    pub fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    /// The router in use.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// The evictor in use.
    pub fn evictor(&self) -> &Evictor {
        &self.evictor
    }

    /// What was decided lately.
    pub fn decisions(&self) -> &Decisions {
        &self.decisions
    }

    /// Which node has seen which beginnings of prompts.
    pub fn prefixes(&self) -> &Prefixes {
        &self.prefixes
    }

    /// The loads under way.
    pub fn flights(&self) -> &Flights {
        &self.flights
    }

    /// The same, agreeing with other gateways through `coordinator`, which calls this one `owner`.
    #[must_use]
    pub fn together(self, coordinator: Arc<dyn Coordinator>, owner: &str) -> Self {
        Self { coordinator, owner: owner.to_owned(), ..self }
    }

    /// Who agrees with other gateways.
    pub fn coordinator(&self) -> &Arc<dyn Coordinator> {
        &self.coordinator
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The router would have a further replica of a model on a node.
    fn wish(&self, model: &str, node: &str) {
        let mut wishes = self.wishes.lock().unwrap_or_else(PoisonError::into_inner);
        *wishes.entry((model.to_owned(), node.to_owned())).or_default() += 1;
    }

    /// How nodes are asked.
    pub fn nodes(&self) -> &Directory {
        &self.nodes
    }

    /// The client of a node.
    fn client(&self, node: &str) -> Option<NodeClient> {
        self.nodes.get(node)
    }

    /// The policy as it is now: models stay longer while too many loads are reloads.
    fn policy_now(&self) -> Policy {
        let min_residency = self.thrash.stay(self.policy.min_residency, now_ms());
        Policy { min_residency, ..self.policy.clone() }
    }
}
