//! Whether a node has room for a model, and what would have to go. Pure: it looks at a view and plans.

use std::time::Duration;

use plugin_loader::{Candidate, EvictRequest, Evictor, Purpose, Residency, Resident};
use wire_api::node::DeviceId;
use wire_api::node::discovery::Device;
use wire_api::node::lease::Claim;
use wire_api::node::models::{ModelState, ModelStatus};

use super::Policy;
use crate::fleet::identity::{now_ms, random_bits};
use crate::fleet::view::{FleetView, ModelView, NodeView, Replica, idle_ms};

/// Seconds within which a need counts, for the regret of an eviction.
const HORIZON_S: f64 = 600.0;

/// What every model gets, whatever the settings: time for those who waited for it to be sent there.
const SETTLING: Duration = Duration::from_secs(1);

/// A node, and a model that wants in.
pub struct Room<'a> {
    view: &'a FleetView,
    model: &'a ModelView,
    node: &'a NodeView,
    policy: &'a Policy,
    need_bytes: u64,
    device_count: usize,
}

/// What would have to happen.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// It can be done now.
    Now(Box<Steps>),
    /// It can be done when what is busy or has just come may go.
    Later,
    /// It cannot be done on this node: so many bytes are missing whatever goes.
    Never {
        /// Bytes missing.
        missing_bytes: u64,
    },
}

/// A plan that can be carried out.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Steps {
    /// The devices to load on; empty when the node shall choose.
    pub devices: Vec<DeviceId>,
    /// Memory per device.
    pub claims: Vec<Claim>,
    /// Models that go, in order.
    pub victims: Vec<Victim>,
    /// Expected seconds of the load.
    pub load_s: f64,
    /// Expected seconds lost later because the victims went.
    pub regret_s: f64,
    /// Bytes needed in all.
    pub need_bytes: u64,
    /// Bytes free on the chosen devices.
    pub free_bytes: u64,
    /// The number the evictor wants back next time.
    pub memo: Option<f64>,
}

/// A model that goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Victim {
    /// What the gateway calls it.
    pub model: String,
    /// What the node calls it.
    pub served_as: String,
    /// Memory that becomes free.
    pub bytes: u64,
    /// What the evictor said of it.
    pub reason: String,
}

impl Steps {
    /// What the router is told about loading there.
    pub fn candidate(&self, base: Candidate) -> Candidate {
        Candidate {
            load_s: self.load_s as f32,
            eviction_regret_s: self.regret_s as f32,
            evictions: self.victims.len() as u32,
            need_bytes: self.need_bytes,
            free_bytes: self.free_bytes,
            ..base
        }
    }
}

/// A loaded model as the evictor sees it, and who it is.
struct Loaded<'a> {
    resident: Resident,
    model: &'a ModelView,
    replica: &'a Replica,
    status: &'a ModelStatus,
}

impl<'a> Room<'a> {
    /// Room for `model` on the node of `replica`.
    pub fn new(view: &'a FleetView, model: &'a ModelView, replica: &'a Replica, policy: &'a Policy) -> Self {
        let device_count = model.spec.as_ref().map_or(1, |spec| spec.min_devices.max(1)) as usize;
        Self { view, model, node: &replica.node, policy, need_bytes: model.need_bytes(), device_count }
    }

    /// What would have to happen. `take_turn`: the wait has been long enough, so that a busy model may be
    /// asked to finish and go.
    pub fn plan(&self, evictor: &Evictor, take_turn: bool) -> Plan {
        let mut options = self.device_sets();
        if options.is_empty() {
            // A node that names no devices decides for itself.
            options.push(Vec::new());
        }
        let mut best = Plan::Never { missing_bytes: u64::MAX };
        for devices in options {
            best = better(best, self.plan_on(&devices, evictor, take_turn));
        }
        best
    }

    /// Each single device, or the one set of those with most memory.
    fn device_sets(&self) -> Vec<Vec<&'a Device>> {
        let mut devices: Vec<&Device> = self.node.sound_devices().collect();
        if self.device_count == 1 {
            return devices.into_iter().map(|device| vec![device]).collect();
        }
        devices.sort_by_key(|device| std::cmp::Reverse(device.memory_total_bytes));
        devices.truncate(self.device_count);
        if devices.len() == self.device_count { vec![devices] } else { Vec::new() }
    }

    fn plan_on(&self, devices: &[&Device], evictor: &Evictor, take_turn: bool) -> Plan {
        let share = self.need_bytes / devices.len().max(1) as u64;
        let free = |device: &Device| device.memory_free_bytes.saturating_sub(device.memory_leased_bytes);
        let shortfall: u64 = devices.iter().map(|device| share.saturating_sub(free(device))).sum();
        let mut steps = Steps {
            devices: if self.device_count > 1 || devices.len() < self.node.devices().len() {
                devices.iter().map(|device| device.id.clone()).collect()
            } else {
                Vec::new()
            },
            claims: devices.iter().map(|d| Claim { device: d.id.clone(), bytes: share }).collect(),
            load_s: self.model.gauge.load_s(&self.node.name, self.need_bytes),
            need_bytes: self.need_bytes,
            free_bytes: devices.iter().map(|device| free(device)).sum(),
            ..Steps::default()
        };
        if shortfall == 0 {
            return Plan::Now(Box::new(steps));
        }
        let loaded = self.loaded_on(devices, take_turn);
        let residents: Vec<Resident> = loaded.iter().map(|loaded| loaded.resident).collect();
        let request = EvictRequest {
            purpose: Purpose::NEED,
            class: self.model.class(),
            need_bytes: shortfall,
            now_ms: now_ms(),
            priority: self.model.priority(),
            seed: random_bits(),
            memo: self.node.gauge.memo(),
        };
        let decision = match evictor.choose(&request, &residents, true) {
            Ok(decision) => decision,
            Err(error) => {
                tracing::error!(evictor = evictor.name(), %error, "the evictor failed; nothing is evicted");
                return Plan::Later;
            }
        };
        if decision.victims.is_empty() {
            return self.later_or_never(&loaded, shortfall);
        }
        for index in decision.victims {
            let loaded = &loaded[index];
            steps.regret_s += regret_s(&loaded.resident);
            steps.victims.push(Victim {
                model: loaded.model.id.clone(),
                served_as: loaded.status.id.0.clone(),
                bytes: loaded.resident.bytes,
                reason: line_of(&decision.explanation, index),
            });
        }
        steps.memo = Some(decision.memo);
        Plan::Now(Box::new(steps))
    }

    /// Whether waiting helps: what is busy or young today may go tomorrow; what is pinned or of higher class not.
    fn later_or_never(&self, loaded: &[Loaded<'_>], shortfall: u64) -> Plan {
        let movable: u64 = loaded
            .iter()
            .filter(|loaded| self.may_ever_go(loaded.model, loaded.replica, loaded.status))
            .map(|loaded| loaded.resident.bytes)
            .sum();
        // A load that has just begun there takes memory that no figure shows yet.
        let loading = self.node.status.models.iter().any(|status| status.state == ModelState::Loading);
        if movable >= shortfall || loading {
            Plan::Later
        } else {
            Plan::Never { missing_bytes: shortfall - movable }
        }
    }

    fn may_ever_go(&self, model: &ModelView, replica: &Replica, status: &ModelStatus) -> bool {
        !is_pinned(model, replica, status) && model.class() <= self.model.class() && model.id != self.model.id
    }

    /// What is loaded on any of these devices.
    fn loaded_on(&self, devices: &[&Device], take_turn: bool) -> Vec<Loaded<'a>> {
        let on_them = |status: &ModelStatus| {
            let theirs = status.details.as_ref().map_or(&[][..], |details| &details.devices);
            theirs.is_empty() || theirs.iter().any(|id| devices.iter().any(|device| device.id == *id))
        };
        let residents = residents(self.view, self.node, self.policy);
        residents
            .into_iter()
            .filter(|(.., status)| on_them(status))
            .map(|(mut resident, model, replica, status)| {
                if take_turn {
                    resident.inflight = 0;
                }
                let old_enough = resident.eligible != 0;
                let idle = resident.inflight == 0;
                let may_go = self.may_ever_go(model, replica, status);
                resident.eligible = u32::from(may_go && old_enough && idle);
                Loaded { resident, model, replica, status }
            })
            .collect()
    }
}

/// Whether a model stays where it is, by the catalogue's, an operator's or the node's own word.
pub fn is_pinned(model: &ModelView, replica: &Replica, status: &ModelStatus) -> bool {
    let written = model.spec.as_ref().is_some_and(|spec| spec.pinned_to(&replica.node.name));
    written || status.pinned || replica.gauge.pinned()
}

/// What is ready on a node, as an evictor sees it. `eligible` says here only that it is long enough resident.
pub fn residents<'a>(
    view: &'a FleetView,
    node: &'a NodeView,
    policy: &Policy,
) -> Vec<(Resident, &'a ModelView, &'a Replica, &'a ModelStatus)> {
    let (now, unix_now) = (now_ms(), node.unix_now_ms());
    let mut found = Vec::new();
    for model in &view.models {
        let Some(replica) = model.on(&node.name) else { continue };
        let (Some(status), Residency::RESIDENT) = (&replica.status, replica.residency) else { continue };
        let ready_since = status.details.as_ref().and_then(|details| details.ready_since_ms);
        let by_node_ms = ready_since.map_or(u64::MAX, |since| unix_now.saturating_sub(since));
        let age_ms = replica.gauge.resident_ms(by_node_ms, now);
        let own_limit = model.spec.as_ref().and_then(|spec| spec.idle_timeout_s);
        let limit_ms = own_limit.map_or(policy.idle_timeout.as_millis() as u64, |seconds| seconds * 1000);
        let bytes = status.memory.bytes();
        found.push((
            Resident {
                model: model.hash,
                bytes,
                loaded_ms: now.saturating_sub(age_ms.min(86_400_000)),
                last_used_ms: now.saturating_sub(idle_ms(status, &replica.gauge, unix_now).min(86_400_000)),
                uses: status.activity.requests_total,
                inflight: status.activity.inflight.max(replica.gauge.inflight()),
                class: model.class(),
                priority: model.priority(),
                eligible: u32::from(age_ms >= policy.min_residency.max(SETTLING).as_millis() as u64),
                rate_per_s: model.gauge.rate_per_s(),
                reload_s: model.gauge.load_s(&node.name, bytes) as f32,
                warm_s: warm_s(status),
                reserved32: 0,
                idle_limit_ms: limit_ms,
                reserved: [0; 4],
            },
            &**model,
            replica,
            status,
        ));
    }
    found
}

/// Seconds of prefill that the cached prefixes of a model are worth.
fn warm_s(status: &ModelStatus) -> f32 {
    let speed = status.throughput.prefill_tokens_per_second;
    let Some(details) = &status.details else { return 0.0 };
    if speed <= 0.0 {
        return 0.0;
    }
    let held =
        f64::from(status.activity.cache_use) * details.context_tokens as f64 * f64::from(details.slots);
    (held / f64::from(speed)) as f32
}

/// Expected seconds lost because a model went.
fn regret_s(resident: &Resident) -> f64 {
    let again = 1.0 - (-f64::from(resident.rate_per_s) * HORIZON_S).exp();
    again * f64::from(resident.reload_s + resident.warm_s)
}

/// The plan that costs less; what can be done now before what can wait before what cannot be.
fn better(left: Plan, right: Plan) -> Plan {
    let cost = |plan: &Plan| match plan {
        Plan::Now(steps) => {
            let left_over = steps.free_bytes.saturating_sub(steps.need_bytes);
            (0, steps.regret_s + steps.victims.len() as f64 * 1e-3, left_over)
        }
        Plan::Later => (1, 0.0, 0),
        Plan::Never { missing_bytes } => (2, 0.0, *missing_bytes),
    };
    let (a, b) = (cost(&left), cost(&right));
    let order = a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2));
    if order.is_le() { left } else { right }
}

/// What an explanation says of one item.
pub fn line_of(explanation: &str, index: usize) -> String {
    let prefix = format!("{index}\t");
    explanation.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Catalogue, Neuron};
    use crate::fleet::Fleet;
    use crate::fleet::identity::unix_ms;
    use crate::strategies::Strategies;
    use wire_api::node::ModelId;
    use wire_api::node::models::{Activity, ModelDetails, ModelMemory, NodeModels};

    const GIB: u64 = 1 << 30;

    fn policy() -> Policy {
        let mut policy = Policy::of(&crate::config::Config::default());
        policy.min_residency = Duration::from_secs(60);
        policy
    }

    fn device(id: &str, free: u64) -> Device {
        Device {
            id: DeviceId::from(id),
            memory_total_bytes: 24 * GIB,
            memory_free_bytes: free,
            ..Device::default()
        }
    }

    fn ready(id: &str, device: &str, bytes: u64, inflight: u32) -> ModelStatus {
        ModelStatus {
            id: ModelId::from(id),
            state: ModelState::Ready,
            memory: ModelMemory { measured_bytes: bytes, ..ModelMemory::default() },
            activity: Activity { inflight, ..Activity::default() },
            details: Some(ModelDetails {
                devices: vec![DeviceId::from(device)],
                ready_since_ms: Some(unix_ms() - 3_600_000),
                ..ModelDetails::default()
            }),
            ..ModelStatus::default()
        }
    }

    /// The plan for `wanted` (10 GiB, class 1) on one node in this state.
    fn plan(devices: Vec<Device>, models: Vec<ModelStatus>, catalogue: &str, take_turn: bool) -> Plan {
        let node: Neuron = toml::from_str("name = \"n\"\nendpoint = \"http://n:1\"").expect("a node");
        let wanted = "[[models]]\nid = \"wanted\"\nmemory = \"10 GiB\"\nclass = 1\n";
        let catalogue =
            Catalogue::parse(&format!("{wanted}{catalogue}"), std::path::Path::new("t")).expect("valid");
        let fleet = Fleet::new(vec![node], catalogue, 3);
        fleet.heard("n", NodeModels { devices, models, ..NodeModels::default() }, None);
        let view = fleet.view();
        let model = view.model("wanted").expect("known");
        let strategies = Strategies::open(&[]).expect("embedded");
        let evictor = strategies.evictor("lru", &toml::Table::new()).expect("lru");
        Room::new(&view, model, &model.replicas[0], &policy()).plan(&evictor, take_turn)
    }

    fn victims(plan: &Plan) -> Vec<&str> {
        match plan {
            Plan::Now(steps) => steps.victims.iter().map(|victim| victim.model.as_str()).collect(),
            other => panic!("not now: {other:?}"),
        }
    }

    #[test]
    fn free_memory_needs_no_eviction_and_the_tightest_device_is_taken() {
        let plan =
            plan(vec![device("a", 20 * GIB), device("b", 11 * GIB), device("c", GIB)], vec![], "", false);
        assert_eq!(victims(&plan), [] as [&str; 0]);
        let Plan::Now(steps) = plan else { unreachable!() };
        assert_eq!(steps.devices, [DeviceId::from("b")]);
        assert_eq!(steps.claims[0].bytes, 10 * GIB);
    }

    #[test]
    fn an_idle_model_makes_room_a_busy_or_pinned_or_higher_one_does_not() {
        let full = || vec![device("a", GIB)];
        let old = |inflight| ready("old", "a", 12 * GIB, inflight);
        assert_eq!(victims(&plan(full(), vec![old(0)], "", false)), ["old"]);
        assert_eq!(plan(full(), vec![old(1)], "", false), Plan::Later);
        assert_eq!(victims(&plan(full(), vec![old(1)], "", true)), ["old"], "its turn");
        let missing = Plan::Never { missing_bytes: 9 * GIB };
        assert_eq!(plan(full(), vec![ModelStatus { pinned: true, ..old(0) }], "", true), missing);
        assert_eq!(
            plan(full(), vec![old(0)], "[[models]]\nid = \"old\"\npinned_on = [\"n\"]", true),
            missing
        );
        assert_eq!(plan(full(), vec![old(0)], "[[models]]\nid = \"old\"\nclass = 2", true), missing);
        assert_eq!(
            victims(&plan(full(), vec![old(0)], "[[models]]\nid = \"old\"\nclass = 1", false)),
            ["old"]
        );
    }

    #[test]
    fn a_model_that_has_just_come_stays_for_a_while_whoever_waits() {
        let mut young = ready("young", "a", 12 * GIB, 0);
        young.details.as_mut().expect("set").ready_since_ms = Some(unix_ms() - 1000);
        for take_turn in [false, true] {
            assert_eq!(plan(vec![device("a", GIB)], vec![young.clone()], "", take_turn), Plan::Later);
        }
    }

    #[test]
    fn only_models_on_the_right_device_count() {
        let plan = plan(
            vec![device("a", GIB), device("b", 2 * GIB)],
            vec![ready("on-a", "a", 5 * GIB, 0), ready("on-b", "b", 9 * GIB, 0)],
            "",
            false,
        );
        assert_eq!(victims(&plan), ["on-b"]);
    }

    #[test]
    fn what_can_never_fit_says_what_is_missing() {
        let plan = plan(vec![device("a", 2 * GIB)], vec![], "", true);
        assert_eq!(plan, Plan::Never { missing_bytes: 8 * GIB });
    }
}
