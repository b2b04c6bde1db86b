//! One consistent picture of the fleet, never changed once it is built.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use plugin_loader::{Candidate, Residency};
use wire_api::node::discovery::{Device, DeviceKind, Discovery};
use wire_api::node::models::{ModelState, ModelStatus, NodeModels};

use super::gauge::{Gauges, ModelGauge, NodeGauge, ReplicaGauge};
use super::identity::{now_ms, stable_hash, unix_ms};
use super::{Member, Observation};
use crate::config::neuron::Endpoint;
use crate::config::{Catalogue, ModelSpec, Neuron, NodeKind};

/// Whether a node can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It answered the last poll.
    Up,
    /// It missed some, fewer than count.
    Suspect,
    /// It missed too many.
    Down,
    /// It has never answered.
    Unknown,
}

impl Health {
    /// The word for people and machines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Unknown => "unknown",
        }
    }
}

/// A node as it was last heard of.
pub struct NodeView {
    /// Its name in the configuration.
    pub name: String,
    /// Stable hash of the name.
    pub hash: u64,
    /// Where it is reached.
    pub endpoint: Endpoint,
    /// What it is.
    pub kind: NodeKind,
    /// The operator's weight.
    pub weight: f32,
    /// Whether it can be used.
    pub health: Health,
    /// Why the last poll failed.
    pub fault: Option<String>,
    /// When it was last heard of, on the gateway's clock.
    pub heard_ms: u64,
    /// What it said.
    pub status: NodeModels,
    /// What it is made of.
    pub discovery: Option<Discovery>,
    /// Counters of this gateway.
    pub gauge: Arc<NodeGauge>,
}

impl NodeView {
    /// What the node's clock says now: machines' clocks differ, and a node's times mean something on its own only.
    pub fn unix_now_ms(&self) -> u64 {
        match self.status.unix_ms {
            0 => unix_ms(),
            then => then.saturating_add(now_ms().saturating_sub(self.heard_ms)),
        }
    }

    /// Whether new requests may go there.
    pub fn usable(&self) -> bool {
        matches!(self.health, Health::Up | Health::Suspect) && !self.draining()
    }

    /// Whether it takes no new work, by its own or the operator's word.
    pub fn draining(&self) -> bool {
        self.status.draining || self.gauge.draining()
    }

    /// Its devices, with the freshest figures there are.
    pub fn devices(&self) -> &[Device] {
        match &self.discovery {
            Some(discovery) if self.status.devices.is_empty() => &discovery.devices,
            _ => &self.status.devices,
        }
    }

    /// Devices a model can be put on. A node's processor is not one of them while it has a sound GPU: a model
    /// that was meant for a GPU would answer many times slower there, and nobody would be told.
    pub fn sound_devices(&self) -> impl Iterator<Item = &Device> {
        let sound = |device: &&Device| device.fault.is_none();
        let has_gpu = self.devices().iter().filter(sound).any(|device| device.kind == DeviceKind::Cuda);
        self.devices().iter().filter(sound).filter(move |device| !has_gpu || device.kind == DeviceKind::Cuda)
    }
}

/// A model on a node, or that could be there.
pub struct Replica {
    /// The node.
    pub node: Arc<NodeView>,
    /// How the model stands there.
    pub residency: Residency,
    /// What the node says of it.
    pub status: Option<ModelStatus>,
    /// What the node calls it.
    pub served_as: String,
    /// Names the node answers to for it.
    pub gauge: Arc<ReplicaGauge>,
    base: Candidate,
}

impl Replica {
    /// Whether a request for `name` can be passed on without renaming the model.
    pub fn answers_to(&self, name: &str) -> bool {
        self.served_as == name
            || self.status.as_ref().is_some_and(|status| status.aliases.iter().any(|alias| alias == name))
    }

    /// Whether a request may be sent there now.
    pub fn serves(&self) -> bool {
        self.residency == Residency::RESIDENT && self.node.usable() && !self.gauge.closed()
    }

    /// What a router is told about it. Loading costs are the caller's to fill in.
    pub fn candidate(&self, now_ms: u64) -> Candidate {
        let (first_token_s, inter_token_s) = self.gauge.latency_s();
        Candidate {
            inflight: self.gauge.inflight(),
            pending_prefill_tokens: self.base.pending_prefill_tokens.max(self.gauge.pending_prefill()),
            first_token_s,
            inter_token_s,
            metrics_age_ms: now_ms.saturating_sub(self.node.heard_ms).min(u64::from(u32::MAX)) as u32,
            ..self.base
        }
    }
}

/// A model and everywhere it is or could be.
pub struct ModelView {
    /// What the gateway calls it.
    pub id: String,
    /// Stable hash of the id.
    pub hash: u64,
    /// Its entry in the catalogue.
    pub spec: Option<ModelSpec>,
    /// Other names it answers to.
    pub aliases: Vec<String>,
    /// Counters over the fleet.
    pub gauge: Arc<ModelGauge>,
    /// Where it is or could be, by node name.
    pub replicas: Vec<Replica>,
}

impl ModelView {
    /// The replica on a node.
    pub fn on(&self, node: &str) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.node.name == node)
    }

    /// Residency class; larger is higher.
    pub fn class(&self) -> u32 {
        self.spec.as_ref().map_or(0, |spec| spec.class)
    }

    /// Importance within the class.
    pub fn priority(&self) -> i32 {
        self.spec.as_ref().map_or(0, |spec| spec.priority)
    }

    /// Memory it needs on one node; 0 when nobody knows yet.
    pub fn need_bytes(&self) -> u64 {
        let written = self.spec.as_ref().and_then(|spec| spec.memory).unwrap_or(0);
        let reported = self.replicas.iter().filter_map(|r| r.status.as_ref()).map(|s| s.memory.bytes()).max();
        // What was measured may be a little less than the next load needs.
        let learned = self.gauge.bytes().max(reported.unwrap_or(0));
        written.max(learned.saturating_add(learned / 20))
    }
}

/// The picture.
#[derive(Default)]
pub struct FleetView {
    /// The nodes, by name.
    pub nodes: Vec<Arc<NodeView>>,
    /// The models, by id.
    pub models: Vec<Arc<ModelView>>,
    by_name: HashMap<String, Arc<ModelView>>,
}

impl FleetView {
    /// The model a name stands for: an id first, else an alias.
    pub fn model(&self, name: &str) -> Option<&Arc<ModelView>> {
        self.by_name.get(name)
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Option<&Arc<NodeView>> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// Whether every node has been heard of at least once: before that, an unknown model is not known to be unknown.
    pub fn complete(&self) -> bool {
        self.nodes.iter().all(|node| node.health != Health::Unknown)
    }
}

/// What a view is built from.
pub(super) struct Draft<'a> {
    pub members: &'a BTreeMap<String, Member>,
    pub catalogue: &'a Catalogue,
    pub gauges: &'a Gauges,
    pub allowed_misses: u32,
}

impl Draft<'_> {
    /// Builds the picture.
    pub fn build(&self) -> FleetView {
        let nodes: Vec<Arc<NodeView>> = self
            .members
            .values()
            .map(|member| Arc::new(self.node(&member.neuron, &member.observation)))
            .collect();
        let mut ids: Vec<String> = self.catalogue.models.iter().map(|spec| spec.id.clone()).collect();
        for status in nodes.iter().flat_map(|node| &node.status.models) {
            let id = self.spec_of(status).map_or(status.id.as_str(), |spec| &spec.id);
            if !ids.iter().any(|known| known == id) {
                ids.push(id.to_owned());
            }
        }
        ids.sort();
        let models: Vec<Arc<ModelView>> =
            ids.into_iter().map(|id| Arc::new(self.model(id, &nodes))).collect();
        let mut by_name = HashMap::new();
        for model in &models {
            for alias in &model.aliases {
                by_name.insert(alias.clone(), Arc::clone(model));
            }
        }
        // An id stands for itself, whatever others call themselves.
        for model in &models {
            by_name.insert(model.id.clone(), Arc::clone(model));
        }
        FleetView { nodes, models, by_name }
    }

    fn node(&self, node: &Neuron, observation: &Observation) -> NodeView {
        let health = match (&observation.status, observation.misses) {
            (None, _) => Health::Unknown,
            (Some(_), 0) => Health::Up,
            (Some(_), misses) if misses < self.allowed_misses => Health::Suspect,
            (Some(_), _) => Health::Down,
        };
        NodeView {
            name: node.name.clone(),
            hash: stable_hash(node.name.as_bytes()),
            endpoint: Endpoint::new(&node.endpoint),
            kind: node.kind,
            weight: node.weight,
            health,
            fault: observation.fault.clone(),
            heard_ms: observation.heard_ms,
            status: observation.status.clone().unwrap_or_default(),
            discovery: observation.discovery.clone(),
            gauge: self.gauges.node(&node.name),
        }
    }

    /// The catalogue entry a model on a node belongs to.
    fn spec_of(&self, status: &ModelStatus) -> Option<&ModelSpec> {
        let id = status.id.as_str();
        self.catalogue.find(id).or_else(|| self.catalogue.models.iter().find(|spec| spec.source() == id))
    }

    fn model(&self, id: String, nodes: &[Arc<NodeView>]) -> ModelView {
        let spec = self.catalogue.models.iter().find(|spec| spec.id == id).cloned();
        let gauge = self.gauges.model(&id);
        let replicas: Vec<Replica> = nodes
            .iter()
            .filter_map(|node| {
                let status =
                    node.status.models.iter().find(|status| {
                        self.spec_of(status).map_or(status.id.as_str(), |spec| &spec.id) == id
                    });
                self.replica(&id, spec.as_ref(), node, status)
            })
            .collect();
        let mut aliases: Vec<String> = spec.iter().flat_map(|spec| spec.aliases.iter().cloned()).collect();
        for status in replicas.iter().filter_map(|replica| replica.status.as_ref()) {
            aliases.extend(status.aliases.iter().cloned());
            aliases.extend(Some(status.id.0.clone()));
            gauge.saw_bytes(status.memory.measured_bytes);
        }
        aliases.sort();
        aliases.dedup();
        aliases.retain(|alias| *alias != id);
        ModelView { hash: stable_hash(id.as_bytes()), id, spec, aliases, gauge, replicas }
    }

    fn replica(
        &self,
        id: &str,
        spec: Option<&ModelSpec>,
        node: &Arc<NodeView>,
        status: Option<&ModelStatus>,
    ) -> Option<Replica> {
        let residency = match status.map(|status| status.state) {
            Some(ModelState::Ready) => Residency::RESIDENT,
            Some(ModelState::Loading | ModelState::Recovering) => Residency::LOADING,
            Some(ModelState::Absent | ModelState::Draining | ModelState::Failed) => Residency::LOADABLE,
            // A node that never answered is offered nothing, but what the catalogue puts there is known.
            None => match spec {
                Some(spec) if node.kind == NodeKind::Neuron && spec.may_load_on(&node.name) => {
                    Residency::LOADABLE
                }
                _ => return None,
            },
        };
        let served_as = status.map_or_else(|| id.to_owned(), |status| status.id.0.clone());
        let gauge = self.gauges.replica(&node.name, id);
        let stamp = status.and_then(|status| status.details.as_ref()?.ready_since_ms).unwrap_or(0);
        // A node that has not answered yet has shown nothing.
        if node.health != Health::Unknown {
            gauge.saw((residency == Residency::RESIDENT).then_some(stamp), now_ms());
        }
        Some(Replica {
            node: Arc::clone(node),
            residency,
            served_as,
            gauge,
            base: base_candidate(node, residency, status),
            status: status.cloned(),
        })
    }
}

/// The part of a candidate that does not change between polls.
fn base_candidate(node: &NodeView, residency: Residency, status: Option<&ModelStatus>) -> Candidate {
    let none = ModelStatus::default();
    let status = status.unwrap_or(&none);
    let (activity, throughput) = (status.activity, status.throughput);
    let details = status.details.as_ref();
    Candidate {
        node: node.hash,
        residency,
        slots: details.map_or(0, |details| details.slots),
        inflight: 0,
        running: activity.running,
        queued: activity.queued,
        cached_tokens: 0,
        pending_prefill_tokens: activity.pending_prefill_tokens,
        active_tokens: active_tokens(status),
        prefill_tokens_per_s: throughput.prefill_tokens_per_second,
        decode_tokens_per_s: throughput.decode_tokens_per_second,
        kv_used: activity.cache_use,
        first_token_s: 0.0,
        inter_token_s: 0.0,
        weight: node.weight,
        metrics_age_ms: 0,
        load_s: 0.0,
        eviction_regret_s: 0.0,
        evictions: 0,
        priority_violation: 0,
        devices: node.sound_devices().count() as u32,
        free_bytes: node.sound_devices().map(|device| device.memory_free_bytes).sum(),
        total_bytes: node.sound_devices().map(|device| device.memory_total_bytes).sum(),
        need_bytes: 0,
        reserved: [0; 4],
    }
}

/// Tokens of context in memory: the share of the cache in use, times what it can hold.
fn active_tokens(status: &ModelStatus) -> u64 {
    let Some(details) = &status.details else { return 0 };
    let capacity = details.context_tokens.saturating_mul(u64::from(details.slots.max(1)));
    (f64::from(status.activity.cache_use.clamp(0.0, 1.0)) * capacity as f64) as u64
}

/// Milliseconds since a model last served, by the gateway's own record and by the node's, on the node's clock.
pub fn idle_ms(status: &ModelStatus, gauge: &ReplicaGauge, unix_now_ms: u64) -> u64 {
    let by_gateway = match gauge.last_used_ms() {
        0 => u64::MAX,
        used => now_ms().saturating_sub(used),
    };
    let activity = status.activity;
    let ready_since = status.details.as_ref().and_then(|details| details.ready_since_ms).unwrap_or(0);
    let by_node = match activity.last_used_ms.max(ready_since) {
        0 => u64::MAX,
        used => unix_now_ms.saturating_sub(used),
    };
    match by_gateway.min(by_node) {
        // Nobody knows; it has been idle since before anybody looked.
        u64::MAX => 86_400_000,
        idle => idle,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Fleet;
    use wire_api::node::ModelId;

    fn neuron(name: &str) -> Neuron {
        toml::from_str(&format!("name = {name:?}\nendpoint = \"http://{name}:1\"")).expect("a node")
    }

    fn catalogue(text: &str) -> Catalogue {
        Catalogue::parse(text, std::path::Path::new("models.toml")).expect("a catalogue")
    }

    fn status(id: &str, state: ModelState) -> ModelStatus {
        ModelStatus { id: ModelId::from(id), state, ..ModelStatus::default() }
    }

    fn says(models: Vec<ModelStatus>) -> NodeModels {
        NodeModels { models, ..NodeModels::default() }
    }

    #[test]
    fn catalogue_and_nodes_are_merged() {
        let text = "[[models]]\nid = \"a\"\nsource = \"org/a\"\naliases = [\"x\"]\n[[models]]\nid = \"b\"\nnodes = [\"n2\"]";
        let fleet = Fleet::new(vec![neuron("n2"), neuron("n1")], catalogue(text), 3);
        fleet.heard(
            "n1",
            says(vec![status("org/a", ModelState::Ready), status("c", ModelState::Absent)]),
            None,
        );
        fleet.heard("n2", says(vec![]), None);
        let view = fleet.view();
        let ids: Vec<_> = view.models.iter().map(|model| model.id.as_str()).collect();
        assert_eq!(ids, ["a", "b", "c"]);
        let a = view.model("x").expect("by alias");
        assert_eq!(a.id, "a");
        assert_eq!(view.model("org/a").expect("by source").id, "a");
        assert_eq!(
            a.replicas.iter().map(|r| (r.node.name.as_str(), r.residency.0)).collect::<Vec<_>>(),
            [("n1", Residency::RESIDENT.0), ("n2", Residency::LOADABLE.0)]
        );
        assert!(a.on("n1").expect("there").answers_to("org/a"));
        assert!(!a.on("n1").expect("there").answers_to("a"));
        assert_eq!(view.model("b").expect("known").replicas.len(), 1);
    }

    #[test]
    fn one_missed_poll_changes_nothing_three_take_the_node_out_and_its_models_stay_known() {
        let fleet = Fleet::new(vec![neuron("n")], Catalogue::default(), 3);
        assert!(!fleet.view().complete());
        fleet.heard("n", says(vec![status("a", ModelState::Ready)]), None);
        let serves = || fleet.view().model("a").expect("known").replicas[0].serves();
        assert!(fleet.view().complete() && serves());
        for expected in [true, true, false, false] {
            fleet.missed("n", "timeout".into());
            assert_eq!(serves(), expected);
        }
        fleet.heard("n", says(vec![status("a", ModelState::Ready)]), None);
        assert!(serves());
    }

    #[test]
    fn answers_that_were_overtaken_are_dropped() {
        let fleet = Fleet::new(vec![neuron("n")], Catalogue::default(), 3);
        let at = |sequence, models| NodeModels { sequence, models, ..NodeModels::default() };
        fleet.heard("n", at(5, vec![status("new", ModelState::Ready)]), None);
        fleet.heard("n", at(4, vec![status("old", ModelState::Ready)]), None);
        assert!(fleet.view().model("new").is_some() && fleet.view().model("old").is_none());
        let reborn = NodeModels { boot_id: "b2".into(), ..at(1, vec![status("reborn", ModelState::Ready)]) };
        fleet.heard("n", reborn, None);
        assert!(fleet.view().model("reborn").is_some());
    }

    #[test]
    fn gauges_outlive_views() {
        let fleet = Fleet::new(vec![neuron("n")], Catalogue::default(), 3);
        fleet.heard("n", says(vec![status("a", ModelState::Ready)]), None);
        let before = Arc::clone(&fleet.view().model("a").expect("known").replicas[0].gauge);
        fleet.heard("n", says(vec![status("a", ModelState::Ready)]), None);
        assert!(Arc::ptr_eq(&before, &fleet.view().model("a").expect("known").replicas[0].gauge));
    }
}
