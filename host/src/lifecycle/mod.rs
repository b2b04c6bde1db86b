//! The models of this node: desired, on their way, serving, coming back.
//!
//! [`Models`] is the one place that knows what is loaded. Each model has a keeper, a task that owns its worker
//! and is the only one to change where it stands:
//!
//! ```text
//! Absent → Loading → Ready → Draining → Absent
//!             ↓        ↓
//!          Failed   Recovering → Loading
//! ```
//!
//! A load asked for while it is under way is joined, never begun twice. What changes what is resident counts
//! up the residency revision, and a command that was planned on an older one is refused. Nothing here waits
//! for a worker while it holds a lock, so the node answers questions however busy its models are.

mod bring_up;
mod entry;
mod error;
mod keeper;
mod leases;
mod line;
mod memory;
mod options;
mod placement;
mod progress;
mod resolve;
mod serve;
mod shared;
mod ticket;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::Stream;
use tokio::sync::{oneshot, watch};
use wire_api::node::events::LoadEvent;
use wire_api::node::lease::{Guard, Lease, LeaseRequest};
use wire_api::node::load::{LoadRequest, UnloadRequest, UnloadResponse};
use wire_api::node::models::{Failure, ModelState, ModelStatus};
use wire_api::node::status::ModelReadiness;
use wire_api::node::{DeviceId, JobId, LeaseId, ModelId};

use self::entry::{Entry, now_ms};
use self::keeper::{Command, Keeper, Unload};
use self::leases::{Leases, Situation};
use self::memory::Accounts;
use self::progress::Progress;
use self::shared::Shared;
use self::ticket::Ticket;
use crate::catalogue::Catalogue;
use crate::metrics::Metrics;
use crate::worker::message::Submission;

pub use entry::{ModelInfo, Standing};
pub use error::{LifecycleError, code};
pub use memory::bytes;
pub use options::ModelsOptions;
pub use resolve::{LocalPaths, ModelFiles, ResolveProgress, Resolver};
pub use ticket::SequenceStream;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Models(Arc<Shared>);

impl std::fmt::Debug for Models {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One load, joined by everyone who asked for it while it ran.
#[derive(Debug)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What requests call the model.
    pub model: ModelId,
    /// This command began it.
    pub started: bool,
    standing: watch::Receiver<Standing>,
}

impl Job {
    /// Waits until the model serves or the load has failed.
    pub async fn wait(mut self) -> Result<Arc<ModelInfo>, LifecycleError> {
        settled(&self.model, &mut self.standing, false).await
    }
}

/// Waits until the model serves, or will not; with `patient` also through recoveries.
async fn settled(
    model: &ModelId,
    standing: &mut watch::Receiver<Standing>,
    patient: bool,
) -> Result<Arc<ModelInfo>, LifecycleError> {
    loop {
        match &*standing.borrow_and_update() {
            Standing::Ready(info) => return Ok(Arc::clone(info)),
            Standing::Failed(failure) => return Err(unavailable(model, failure)),
            Standing::Recovering(failure) if !patient => return Err(unavailable(model, failure)),
            Standing::Absent | Standing::Draining => return Err(LifecycleError::NotFound(model.0.clone())),
            Standing::Loading | Standing::Recovering(_) => {}
        }
        if standing.changed().await.is_err() {
            return Err(LifecycleError::NotFound(model.0.clone()));
        }
    }
}

fn unavailable(model: &ModelId, failure: &Failure) -> LifecycleError {
    LifecycleError::Unavailable { model: model.clone(), failure: failure.clone() }
}

/// A model that was ready when it was asked for.
#[derive(Debug, Clone)]
pub struct LoadedModel {
    entry: Arc<Entry>,
    info: Arc<ModelInfo>,
}

impl LoadedModel {
    /// What it is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Generates. Always gives a stream: what is wrong is its first event. Dropping the stream cancels.
    pub fn submit(&self, submission: Submission) -> SequenceStream {
        let id = self.entry.next_ticket.fetch_add(1, Ordering::Relaxed);
        let (ticket, events) = Ticket::new(submission, &self.entry.inflight);
        let stream = SequenceStream::new(id, events, self.entry.commands.clone());
        // Refused only when the keeper is gone; the ticket is dropped with its sender, which the stream sees.
        let _ = self.entry.commands.send(Command::Submit(id, Box::new(ticket)));
        stream
    }

    /// Requests in flight.
    pub fn inflight(&self) -> u32 {
        self.entry.inflight.load(Ordering::Relaxed)
    }
}

impl Models {
    /// A node without models. Must be called within a tokio runtime's reach when models are loaded later.
    pub fn new(
        options: ModelsOptions,
        catalogue: Catalogue,
        resolver: Arc<dyn Resolver>,
        metrics: Metrics,
    ) -> Self {
        Self(Arc::new(Shared {
            options,
            catalogue,
            resolver,
            metrics,
            accounts: Accounts::default(),
            leases: Leases::default(),
            entries: Mutex::default(),
            declared: Mutex::default(),
            revision: watch::Sender::new(1),
            jobs: AtomicU64::new(0),
            loads: AtomicU64::new(0),
        }))
    }

    /// The plugins models are served with.
    pub fn catalogue(&self) -> &Catalogue {
        &self.0.catalogue
    }

    /// What is counted and timed.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Counts every change of what is resident.
    pub fn residency_revision(&self) -> u64 {
        *self.0.revision.borrow()
    }

    /// Tells of every change of what is resident.
    pub fn watch_residency(&self) -> watch::Receiver<u64> {
        self.0.revision.subscribe()
    }

    /// Makes a model known by name without loading it; a later load by that name uses these settings.
    pub fn declare(&self, request: LoadRequest) {
        let id = id_of(&request);
        self.declared().insert(id, request);
    }

    fn declared(&self) -> MutexGuard<'_, HashMap<ModelId, LoadRequest>> {
        self.0.declared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All models: loaded, loading, failed, and those that are only declared.
    pub fn list(&self) -> Vec<ModelStatus> {
        let mut all: BTreeMap<ModelId, ModelStatus> = self
            .declared()
            .iter()
            .map(|(id, request)| {
                let status = ModelStatus {
                    id: id.clone(),
                    aliases: request.aliases.clone(),
                    pinned: request.pinned,
                    ..ModelStatus::default()
                };
                (id.clone(), status)
            })
            .collect();
        let entries: Vec<_> = self.0.entries().values().cloned().collect();
        all.extend(entries.into_iter().map(|entry| (entry.id.clone(), entry.status())));
        all.into_values().collect()
    }

    /// One model, by id or alias.
    pub fn status(&self, name: &str) -> Option<ModelStatus> {
        self.list()
            .into_iter()
            .find(|status| status.id.as_str() == name || status.aliases.iter().any(|alias| alias == name))
    }

    /// Whether each desired model has lately produced a token.
    pub fn readiness(&self) -> Vec<ModelReadiness> {
        let entries: Vec<_> = self.0.entries().values().cloned().collect();
        let fresh = self.0.options.prove_every * 2 + self.0.options.step_deadline;
        entries
            .into_iter()
            .map(|entry| {
                let status = entry.status();
                let proved = entry.proved_ago();
                let serves = status.state == ModelState::Ready;
                // A model at work may be at a long prompt; its watchdogs say when that takes too long.
                let proved_lately = status.activity.running > 0 || proved.is_some_and(|ago| ago <= fresh);
                let reason = match (&status.failure, serves, proved_lately) {
                    (Some(failure), ..) => Some(failure.message.clone()),
                    (None, true, false) => Some("it has not produced a token lately".to_owned()),
                    (None, true, true) => None,
                    (None, false, _) => Some(format!("it is {:?}", status.state).to_lowercase()),
                };
                ModelReadiness {
                    model: status.id,
                    ready: serves && proved_lately,
                    state: status.state,
                    proved_ago_ms: proved.map(|ago| ago.as_millis() as u64),
                    reason,
                }
            })
            .collect()
    }

    /// Begins to load a model, or joins the load under way. If its first load fails it is given up.
    pub fn load(&self, request: LoadRequest) -> Result<Job, LifecycleError> {
        self.begin(request, false)
    }

    /// As [`Models::load`], for models the node is configured to have: they are tried again for ever.
    pub fn desire(&self, request: LoadRequest) -> Result<Job, LifecycleError> {
        self.begin(request, true)
    }

    fn begin(&self, request: LoadRequest, persistent: bool) -> Result<Job, LifecycleError> {
        self.check(&request.guard)?;
        let request = self.fill_in(request);
        if request.model.as_str().is_empty() {
            return Err(LifecycleError::Invalid("model is empty; name a path or a hub id".into()));
        }
        let id = id_of(&request);
        let mut entries = self.0.entries();
        if let Some(entry) = entries.values().find(|entry| entry.answers_to(id.as_str())) {
            return self.join(entry, &request, persistent);
        }
        if let Some(taken) =
            request.aliases.iter().find(|alias| entries.values().any(|other| other.answers_to(alias)))
        {
            return Err(LifecycleError::Invalid(format!("another model answers to {taken:?} already")));
        }
        let job = self.0.next_job();
        let (commands, inbox) = tokio::sync::mpsc::unbounded_channel();
        let progress = Progress::new(id.clone(), job.clone());
        let lent = self.0.leases.hand_over(&request.guard);
        let entry = Arc::new(Entry::new(id.clone(), request, persistent, commands, progress));
        entry.lend(lent);
        let standing = entry.standing.subscribe();
        entries.insert(id.clone(), Arc::clone(&entry));
        self.0.changed();
        drop(entries);
        tokio::spawn(Keeper::new(entry, Arc::clone(&self.0), inbox).run());
        Ok(Job { id: job, model: id, started: true, standing })
    }

    /// A declared model is loaded as declared; what the command says comes first.
    fn fill_in(&self, request: LoadRequest) -> LoadRequest {
        let declared = self.declared();
        let name = request.name.as_ref().unwrap_or(&request.model);
        let found = declared.values().find(|declared| {
            id_of(declared) == *name || declared.aliases.iter().any(|alias| alias == name.as_str())
        });
        let Some(found) = found else { return request };
        LoadRequest {
            model: found.model.clone(),
            name: Some(id_of(found)),
            wait: request.wait,
            devices: if request.devices.is_empty() { found.devices.clone() } else { request.devices },
            dtype: request.dtype.or_else(|| found.dtype.clone()),
            quant: request.quant.or_else(|| found.quant.clone()),
            context_tokens: request.context_tokens.or(found.context_tokens),
            slots: request.slots.or(found.slots),
            prefix_cache_bytes: request.prefix_cache_bytes.or(found.prefix_cache_bytes),
            options: request.options.or_else(|| found.options.clone()),
            pinned: request.pinned || found.pinned,
            aliases: if request.aliases.is_empty() { found.aliases.clone() } else { request.aliases },
            guard: request.guard,
        }
    }

    fn join(
        &self,
        entry: &Arc<Entry>,
        request: &LoadRequest,
        persistent: bool,
    ) -> Result<Job, LifecycleError> {
        let was = &entry.request;
        let differs = |asked: bool, setting| {
            let model = entry.id.clone();
            if asked { Err(LifecycleError::Conflict { model, setting }) } else { Ok(()) }
        };
        differs(!request.devices.is_empty() && request.devices != was.devices, "device")?;
        differs(request.dtype.is_some() && request.dtype != was.dtype, "dtype")?;
        differs(request.quant.is_some() && request.quant != was.quant, "quantization")?;
        differs(request.context_tokens.is_some() && request.context_tokens != was.context_tokens, "context")?;
        differs(request.slots.is_some() && request.slots != was.slots, "number of slots")?;
        differs(
            request.prefix_cache_bytes.is_some() && request.prefix_cache_bytes != was.prefix_cache_bytes,
            "prefix cache",
        )?;
        differs(request.options.is_some() && request.options != was.options, "set of options")?;
        if persistent {
            entry.persistent.store(true, Ordering::Relaxed);
        }
        let mut started = false;
        let state = entry.standing.borrow().state();
        if matches!(state, ModelState::Failed | ModelState::Recovering) {
            started = state == ModelState::Failed;
            let job = if started { self.0.next_job() } else { entry.progress.job() };
            // Said here and not by the keeper, so that a wait that begins now does not see the old failure.
            entry.standing.send_replace(Standing::Loading);
            if started {
                entry.progress.new_job(job.clone());
            }
            let _ = entry.commands.send(Command::Retry(job));
        }
        Ok(Job {
            id: entry.progress.job(),
            model: entry.id.clone(),
            started,
            standing: entry.standing.subscribe(),
        })
    }

    fn check(&self, guard: &Guard) -> Result<(), LifecycleError> {
        self.0.leases.check(guard)?;
        let actual = self.residency_revision();
        match guard.residency_revision {
            Some(planned) if planned < actual => Err(LifecycleError::StaleRevision { planned, actual }),
            _ => Ok(()),
        }
    }

    /// Promises memory to a planner, under a fence. See [`wire_api::node::lease`].
    pub fn lease(&self, request: &LeaseRequest) -> Result<Lease, LifecycleError> {
        let mut rooms = self.0.rooms(&crate::discovery::look());
        for victim in request.victims.iter().filter_map(|victim| self.find(victim.as_str())) {
            let figures = victim.figures();
            let devices = figures.details.as_ref().map_or(&[][..], |details| &details.devices);
            let share = figures.memory.bytes() / devices.len().max(1) as u64;
            // A model that has not come so far as to have a place holds main memory at most.
            let held = if devices.is_empty() { &[DeviceId(String::from("cpu-0"))][..] } else { devices };
            for device in held {
                rooms
                    .iter_mut()
                    .filter(|room| room.device == *device)
                    .for_each(|room| room.available += share);
            }
        }
        let situation = Situation { revision: self.residency_revision(), rooms };
        self.0.leases.grant(request, &situation, &self.0.accounts)
    }

    /// Gives a lease back. Whether it was held.
    pub fn release(&self, lease: &LeaseId) -> bool {
        self.0.leases.release(lease)
    }

    /// Main memory that models may use here, and how much of it nobody does: the machine's, or what the operator
    /// grants.
    pub fn main_memory(&self, memory: &crate::discovery::memory::Memory) -> (u64, u64) {
        let room = self.0.main_memory(memory);
        (room.total, self.0.accounts.free(&room))
    }

    /// Memory of a device promised to models and leases and not used yet: not free, whatever the device says.
    pub fn promised_bytes(&self, device: &str) -> u64 {
        self.0.leases.sweep();
        self.0.accounts.promised(device)
    }

    fn find(&self, name: &str) -> Option<Arc<Entry>> {
        self.0.entries().values().find(|entry| entry.answers_to(name)).cloned()
    }

    /// Unloads a model: lets its work finish, or cuts it off when its time is over, and waits until its memory
    /// is free if the command says so.
    pub async fn unload(&self, request: &UnloadRequest) -> Result<UnloadResponse, LifecycleError> {
        self.check(&request.guard)?;
        let name = request.model.as_str();
        let entry = self.find(name).ok_or_else(|| LifecycleError::NotFound(name.to_owned()))?;
        let patience = request.drain_timeout_ms.map_or(self.0.options.drain_timeout, Duration::from_millis);
        let (reply, answer) = oneshot::channel();
        let unload = Unload { only_if_idle: request.only_if_idle, patience, reply };
        // Refused only when the keeper is gone, and then the reply is dropped, too.
        let _ = entry.commands.send(Command::Unload(unload));
        let freed_bytes =
            if request.wait || request.only_if_idle { answer.await.unwrap_or(Ok(0))? } else { 0 };
        Ok(UnloadResponse {
            model: entry.id.clone(),
            state: entry.standing.borrow().state(),
            freed_bytes,
            residency_revision: self.residency_revision(),
        })
    }

    /// How the load of a model goes: what happened so far and what happens until it is over.
    pub fn events(&self, name: &str) -> Option<impl Stream<Item = LoadEvent> + Send + use<>> {
        self.find(name).map(|entry| entry.progress.listen())
    }

    /// A model that serves, by id or alias. Waits while it is loading or coming back; how long is for the
    /// caller to say, by dropping the future.
    pub async fn acquire(&self, name: &str) -> Result<LoadedModel, LifecycleError> {
        let entry = self.find(name).ok_or_else(|| LifecycleError::NotFound(name.to_owned()))?;
        let mut standing = entry.standing.subscribe();
        let info = settled(&entry.id, &mut standing, true).await?;
        entry.figures().last_used_ms = now_ms();
        Ok(LoadedModel { entry, info })
    }

    /// Unloads everything. Work in flight gets `patience` to finish.
    pub async fn shutdown(&self, patience: Duration) {
        let entries: Vec<_> = self.0.entries().values().cloned().collect();
        let answers: Vec<_> = entries
            .into_iter()
            .map(|entry| {
                let (reply, answer) = oneshot::channel();
                let _ = entry.commands.send(Command::Unload(Unload { only_if_idle: false, patience, reply }));
                answer
            })
            .collect();
        for answer in answers {
            // A keeper that is gone has unloaded.
            let _ = answer.await;
        }
    }
}

fn id_of(request: &LoadRequest) -> ModelId {
    request.name.clone().unwrap_or_else(|| request.model.clone())
}
