//! A node in memory: keeps the node API's contract as neuron does, on a clock of its own, and writes down
//! every promise it sees broken.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use wire_api::node::discovery::Device;
use wire_api::node::lease::{Guard, Lease, LeaseRequest};
use wire_api::node::load::{LoadRequest, LoadResponse, UnloadRequest, UnloadResponse};
use wire_api::node::models::{
    Activity, Failure, ModelDetails, ModelMemory, ModelState, ModelStatus, NodeModels,
};
use wire_api::node::{DeviceId, LeaseId, ModelId};
use wire_api::{ApiError, ErrorKind};

/// Wall clock when the simulation begins, in milliseconds since 1970.
const EPOCH_MS: i64 = 1_800_000_000_000;

/// What a model needs.
#[derive(Clone, Copy)]
pub struct Needs {
    pub bytes: u64,
    pub load: Duration,
}

struct Resident {
    state: ModelState,
    bytes: u64,
    /// When it became ready, on the true clock and as the node's own clock said then.
    ready: Instant,
    ready_stamp_ms: u64,
    inflight: u32,
    last_used_ms: u64,
    requests: u64,
    /// Tells one load of a model from the next.
    serial: u64,
}

struct Held {
    lease: Lease,
    expires: Instant,
    /// Bytes promised and not handed over to a load yet.
    promise: u64,
}

/// What the simulation may switch off, to see that its absence is noticed.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Fence, lease and revision of a command are checked.
    pub guards: bool,
    /// A model in use is not unloaded by a command that says so.
    pub idle_check: bool,
}

/// A load to be finished: model, what it needs, and its serial.
pub type Work = (String, Needs, u64);

pub struct Node {
    pub name: &'static str,
    pub rules: Rules,
    capacity: u64,
    pub can_load: BTreeMap<&'static str, Needs>,
    residents: BTreeMap<String, Resident>,
    lease: Option<Held>,
    fence: u64,
    revision: u64,
    sequence: u64,
    serial: u64,
    pub boot: u64,
    began: Instant,
    /// How wrong its wall clock is.
    pub clock_offset_ms: i64,
    pub alive: bool,
    /// It takes questions and never answers.
    pub mute: bool,
    pub loads_fail: bool,
    /// Model that must not be evicted here.
    pub pinned: Option<&'static str>,
    /// Time a model is promised before it may be evicted.
    pub min_residency: Duration,
    pub violations: Vec<String>,
    pub loads: u64,
    pub evictions: u64,
}

impl Node {
    pub fn new(name: &'static str, capacity: u64, can_load: BTreeMap<&'static str, Needs>) -> Self {
        Self {
            name,
            rules: Rules { guards: true, idle_check: true },
            capacity,
            can_load,
            residents: BTreeMap::new(),
            lease: None,
            fence: 0,
            revision: 1,
            sequence: 0,
            serial: 0,
            boot: 1,
            began: Instant::now(),
            clock_offset_ms: 0,
            alive: true,
            mute: false,
            loads_fail: false,
            pinned: None,
            min_residency: Duration::ZERO,
            violations: Vec::new(),
            loads: 0,
            evictions: 0,
        }
    }

    fn clock_ms(&self) -> u64 {
        (EPOCH_MS + self.began.elapsed().as_millis() as i64 + self.clock_offset_ms) as u64
    }

    /// It dies and forgets everything but its name.
    pub fn die(&mut self) {
        self.alive = false;
        self.residents.clear();
        self.lease = None;
        self.boot += 1;
        self.revision = 1;
        self.fence = 0;
        self.sequence = 0;
    }

    fn used(&self) -> u64 {
        self.residents.values().filter(|r| r.state != ModelState::Failed).map(|r| r.bytes).sum()
    }

    fn lapse(&mut self) {
        if self.lease.as_ref().is_some_and(|held| held.expires <= Instant::now()) {
            self.lease = None;
        }
    }

    fn promised(&self) -> u64 {
        self.lease.as_ref().map_or(0, |held| held.promise)
    }

    /// Memory is never given twice.
    fn audit(&mut self) {
        if self.used() > self.capacity {
            let line = format!("{} of {} bytes are in use", self.used(), self.capacity);
            self.violations.push(line);
        }
    }

    pub fn inflight(&self) -> u32 {
        self.residents.values().map(|r| r.inflight).sum()
    }

    /// A request arrives. The serial of the model that serves it, if it is served.
    pub fn begin(&mut self, model: &str) -> Option<u64> {
        let now = self.clock_ms();
        let resident = self.residents.get_mut(model).filter(|r| r.state == ModelState::Ready)?;
        resident.inflight += 1;
        resident.requests += 1;
        resident.last_used_ms = now;
        Some(resident.serial)
    }

    /// It is over. False when the model went meanwhile.
    pub fn end(&mut self, model: &str, serial: u64) -> bool {
        match self.residents.get_mut(model).filter(|r| r.serial == serial) {
            Some(resident) => {
                resident.inflight -= 1;
                true
            }
            None => false,
        }
    }

    pub fn models(&mut self) -> NodeModels {
        self.lapse();
        self.sequence += 1;
        let device = Device {
            id: DeviceId::from("cpu-0"),
            memory_total_bytes: self.capacity,
            memory_free_bytes: self.capacity.saturating_sub(self.used()),
            memory_leased_bytes: self.promised(),
            ..Device::default()
        };
        let absent = self.can_load.iter().filter(|(id, _)| !self.residents.contains_key(**id));
        let mut models: Vec<ModelStatus> = absent
            .map(|(id, needs)| ModelStatus {
                id: ModelId::from(*id),
                memory: ModelMemory { planned_bytes: needs.bytes, ..ModelMemory::default() },
                ..ModelStatus::default()
            })
            .collect();
        models.extend(self.residents.iter().map(|(id, resident)| self.status(id, resident)));
        NodeModels {
            boot_id: format!("boot-{}", self.boot).as_str().into(),
            residency_revision: self.revision,
            sequence: self.sequence,
            devices: vec![device],
            models,
            draining: false,
            unix_ms: self.clock_ms(),
        }
    }

    fn status(&self, id: &str, resident: &Resident) -> ModelStatus {
        let failed = resident.state == ModelState::Failed;
        ModelStatus {
            id: ModelId::from(id),
            state: resident.state,
            failure: failed.then(|| Failure {
                code: "scripted".into(),
                message: "the load was to fail".into(),
                retryable: true,
                ..Failure::default()
            }),
            memory: ModelMemory {
                planned_bytes: resident.bytes,
                measured_bytes: resident.bytes,
                ..ModelMemory::default()
            },
            activity: Activity {
                inflight: resident.inflight,
                running: resident.inflight,
                last_used_ms: resident.last_used_ms,
                requests_total: resident.requests,
                ..Activity::default()
            },
            details: Some(ModelDetails {
                devices: vec![DeviceId::from("cpu-0")],
                slots: 4,
                context_tokens: 4096,
                ready_since_ms: (resident.state == ModelState::Ready).then_some(resident.ready_stamp_ms),
                ..ModelDetails::default()
            }),
            ..ModelStatus::default()
        }
    }

    fn check(&mut self, guard: &Guard) -> Result<(), ApiError> {
        self.lapse();
        let conflict = |code: &str, why: &str| Err(ApiError::new(ErrorKind::Conflict, why).with_code(code));
        if !self.rules.guards {
            return Ok(());
        }
        let held = self.lease.as_ref().map(|held| &held.lease.id);
        if guard.lease.as_ref().is_some_and(|id| held != Some(id))
            || guard.fence.is_some_and(|fence| fence != self.fence)
        {
            return conflict("stale_fence", "another lease was granted since");
        }
        if guard.residency_revision.is_some_and(|planned| planned < self.revision) {
            return conflict("stale_revision", "what is loaded has changed since");
        }
        Ok(())
    }

    pub fn grant(&mut self, request: &LeaseRequest) -> Result<Lease, ApiError> {
        self.lapse();
        let expires = Instant::now() + Duration::from_millis(request.ttl_ms);
        if let Some(id) = &request.lease {
            return match self.lease.as_mut().filter(|held| held.lease.id == *id) {
                Some(held) => {
                    held.expires = expires;
                    Ok(held.lease.clone())
                }
                None => Err(ApiError::new(ErrorKind::Conflict, "it lapsed").with_code("stale_fence")),
            };
        }
        if self.lease.is_some() && self.rules.guards {
            return Err(ApiError::new(ErrorKind::Conflict, "another has it").with_code("leased"));
        }
        self.check(&Guard { residency_revision: request.residency_revision, ..Guard::default() })?;
        let from_victims: u64 =
            request.victims.iter().filter_map(|v| self.residents.get(v.as_str())).map(|r| r.bytes).sum();
        let need: u64 = request.claims.iter().map(|claim| claim.bytes).sum();
        if need > self.capacity.saturating_sub(self.used()) + from_victims {
            return Err(ApiError::new(ErrorKind::OutOfMemory, "no room to lease"));
        }
        self.fence += 1;
        let lease = Lease {
            id: LeaseId::from(format!("lease-{}-{}", self.boot, self.fence)),
            fence: self.fence,
            model: request.model.clone(),
            claims: request.claims.clone(),
            expires_in_ms: request.ttl_ms,
            residency_revision: self.revision,
        };
        self.lease = Some(Held { lease: lease.clone(), expires, promise: need });
        Ok(lease)
    }

    pub fn release(&mut self, id: &str) {
        if self.lease.as_ref().is_some_and(|held| held.lease.id.as_str() == id) {
            self.lease = None;
        }
    }

    /// Takes a load on; what is to be finished after which time.
    pub fn load(&mut self, request: &LoadRequest) -> Result<(LoadResponse, Option<Work>), ApiError> {
        self.check(&request.guard)?;
        let id = request.name.as_ref().unwrap_or(&request.model).0.clone();
        let Some(needs) = self.can_load.get(request.model.as_str()).copied() else {
            return Err(ApiError::model_not_found(request.model.as_str()));
        };
        let answer = |revision, started| LoadResponse {
            model: ModelId::from(id.as_str()),
            state: ModelState::Loading,
            started,
            residency_revision: revision,
            ..LoadResponse::default()
        };
        if self.residents.get(&id).is_some_and(|r| r.state != ModelState::Failed) {
            if request.guard.fence.is_some() {
                self.violations.push(format!("{id} was loaded twice"));
            }
            return Ok((answer(self.revision, false), None));
        }
        let own =
            self.lease.as_ref().is_some_and(|held| Some(&held.lease.id) == request.guard.lease.as_ref());
        let set_aside = if own { 0 } else { self.promised() };
        if self.used() + set_aside + needs.bytes > self.capacity {
            if own {
                self.violations.push(format!("what was reserved for {id} is gone"));
            }
            return Err(ApiError::new(ErrorKind::OutOfMemory, "no room"));
        }
        if own && let Some(held) = &mut self.lease {
            held.promise = 0;
        }
        self.serial += 1;
        self.revision += 1;
        self.loads += 1;
        let resident = Resident {
            state: ModelState::Loading,
            bytes: needs.bytes,
            ready: Instant::now(),
            ready_stamp_ms: 0,
            inflight: 0,
            last_used_ms: 0,
            requests: 0,
            serial: self.serial,
        };
        self.residents.insert(id.clone(), resident);
        self.audit();
        Ok((answer(self.revision, true), Some((id.clone(), needs, self.serial))))
    }

    /// A load has come to its end.
    pub fn loaded(&mut self, model: &str, serial: u64) {
        let (stamp, fails) = (self.clock_ms(), self.loads_fail);
        let Some(resident) = self.residents.get_mut(model).filter(|r| r.serial == serial) else { return };
        resident.state = if fails { ModelState::Failed } else { ModelState::Ready };
        resident.ready = Instant::now();
        resident.ready_stamp_ms = stamp;
        self.revision += 1;
    }

    /// Begins an unload: the model takes nothing new. Its serial.
    pub fn begin_unload(&mut self, request: &UnloadRequest) -> Result<u64, ApiError> {
        self.check(&request.guard)?;
        let planner = request.guard.fence.is_some();
        let (pinned, min_residency, idle_check) = (self.pinned, self.min_residency, self.rules.idle_check);
        let Some(resident) = self.residents.get_mut(request.model.as_str()) else {
            return Err(ApiError::model_not_found(request.model.as_str()));
        };
        if request.only_if_idle && resident.inflight > 0 {
            if idle_check {
                return Err(ApiError::new(ErrorKind::Conflict, "it is in use").with_code("busy"));
            }
            self.violations.push(format!("{} was unloaded with work in flight", request.model));
        }
        if planner && pinned == Some(request.model.as_str()) {
            self.violations.push(format!("{} is pinned and was evicted", request.model));
        }
        let age = resident.ready.elapsed();
        if planner && resident.state == ModelState::Ready && age < min_residency {
            self.violations.push(format!("{} was evicted after {} ms", request.model, age.as_millis()));
        }
        resident.state = ModelState::Draining;
        self.revision += 1;
        Ok(resident.serial)
    }

    /// Whether the model to be unloaded has finished its work.
    pub fn drained(&self, model: &str, serial: u64) -> bool {
        self.residents.get(model).is_none_or(|r| r.serial != serial || r.inflight == 0)
    }

    /// It goes.
    pub fn end_unload(&mut self, request: &UnloadRequest, serial: u64) -> UnloadResponse {
        let id = request.model.as_str();
        let freed = match self.residents.get(id) {
            Some(resident) if resident.serial == serial => {
                let bytes = resident.bytes;
                self.residents.remove(id);
                self.evictions += 1;
                bytes
            }
            _ => 0,
        };
        self.revision += 1;
        UnloadResponse {
            model: request.model.clone(),
            freed_bytes: freed,
            residency_revision: self.revision,
            ..UnloadResponse::default()
        }
    }

    /// Somebody else changes what is loaded: a person at the node.
    pub fn meddle(&mut self) {
        self.revision += 1;
    }
}
