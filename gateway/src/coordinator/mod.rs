//! What several gateways agree on: who is there, whose turn it is on a node, who loads what.
//!
//! Correctness never rests here. A node grants fenced leases of its memory and refuses what was planned on
//! an older state, so two gateways that know nothing of each other do no harm ([`Alone`]). A coordinator
//! adds what nodes cannot: nodes that make themselves known, turns in order of arrival instead of by
//! chance, one load of a model over the whole fleet, limits that hold over all gateways.
//!
//! A coordinator that is out of reach takes none of that from requests whose model is resident: only what
//! changes a node waits for it, and is refused with a code of its own until it is back.

pub mod alone;
pub mod etcd;
pub mod membership;

use std::any::Any;
use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use wire_api::{ApiError, ErrorKind};

pub use alone::Alone;
pub use etcd::Etcd;

/// The code of a change that is refused because the coordinator is out of reach.
pub const COORDINATOR_LOST: &str = "coordinator_lost";

/// Why the coordinator could not be asked.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the coordinator is out of reach ({0}); what is loaded serves on, nothing is loaded or unloaded")]
pub struct Lost(pub String);

impl From<Lost> for ApiError {
    fn from(lost: Lost) -> Self {
        Self::new(ErrorKind::Unavailable, lost.to_string()).with_code(COORDINATOR_LOST).with_retry_after(5)
    }
}

/// Something held until this is dropped.
pub struct Held(#[expect(dead_code, reason = "held for its drop")] Box<dyn Any + Send>);

impl Held {
    /// Holds whatever lets go when it is dropped.
    pub fn new(guard: impl Any + Send) -> Self {
        Self(Box::new(guard))
    }
}

/// The answer to a wish to load a model.
pub enum Claim {
    /// Nobody else loads it; nobody else will while this is held.
    Mine(Held),
    /// Another gateway does.
    Theirs {
        /// Its name.
        owner: String,
    },
}

/// How the coordinator stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Standing {
    /// `alone`, `etcd`.
    pub kind: String,
    /// It answers; true where there is none to answer.
    pub reachable: bool,
    /// Why it does not, if it does not.
    pub fault: Option<String>,
    /// Gateways that are there, this one included.
    pub gateways: Vec<String>,
}

/// A neuron that made itself known.
pub type Registered = wire_api::node::registration::Registration;

/// What a key's callers have used through one gateway, since that gateway began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Spent {
    /// Requests.
    pub requests: u64,
    /// Tokens.
    pub tokens: u64,
}

/// What was spent, by name of the key.
pub type Spendings = BTreeMap<String, Spent>;

/// What was spent through other gateways, by gateway.
pub type SpentByGateway = BTreeMap<String, Spendings>;

/// See the module.
pub trait Coordinator: Send + Sync {
    /// Waits for its turn to change what is loaded on a node.
    fn lock_node<'a>(&'a self, node: &'a str) -> BoxFuture<'a, Result<Held, Lost>>;

    /// Claims the load of a model over the whole fleet.
    fn claim_model<'a>(&'a self, model: &'a str) -> BoxFuture<'a, Result<Claim, Lost>>;

    /// How it stands.
    fn standing(&self) -> Standing;

    /// The neurons that made themselves known; wakes when one comes or goes. Kept while the coordinator is lost.
    fn neurons(&self) -> watch::Receiver<Vec<Registered>>;

    /// Tells the other gateways what was spent through this one.
    fn tell_spent(&self, spent: Spendings);

    /// What was spent through each of the others, as each last told.
    fn spent_elsewhere(&self) -> SpentByGateway;
}
