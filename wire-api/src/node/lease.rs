//! Leases: memory of a node promised to one planner, under a fence.
//!
//! A planner that was paused holds an old fence; the node has seen a newer one and refuses it.
//! Correctness lives here, in the node, so that any number of gateways needs no other agreement.

use serde::{Deserialize, Serialize};

use super::{DeviceId, LeaseId, ModelId};

/// What a command was planned on. Absent fields are not checked: a person may command, too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guard {
    /// The lease the command acts under.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseId>,
    /// Its fence; refused if the node has granted a newer one for the same devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fence: Option<u64>,
    /// The residency the command was planned on; refused if the node's is newer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub residency_revision: Option<u64>,
}

impl Guard {
    /// Whether nothing is checked.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Asks for memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    /// Who asks, for people.
    pub owner: String,
    /// What it is for.
    pub model: ModelId,
    /// Memory per device.
    pub claims: Vec<Claim>,
    /// For how long; renewed by asking again with `lease`.
    pub ttl_ms: u64,
    /// The lease to renew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseId>,
    /// The residency the plan was made on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residency_revision: Option<u64>,
    /// Models that will be evicted to make the room; their memory counts as free for this lease.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub victims: Vec<ModelId>,
}

/// Memory on one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The device.
    pub device: DeviceId,
    /// How much of it.
    pub bytes: u64,
}

/// A lease granted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lease {
    /// Its id.
    pub id: LeaseId,
    /// Grows with every grant of this node and never repeats in one life of the process.
    pub fence: u64,
    /// What it is for.
    pub model: ModelId,
    /// Memory per device.
    pub claims: Vec<Claim>,
    /// Until it lapses.
    pub expires_in_ms: u64,
    /// The node's residency revision when it was granted.
    pub residency_revision: u64,
}
