//! Making a model resident: one load per model, shared by everybody who waits, carried out as a
//! transaction with the node.
//!
//! Under the node's lock: look again → ask for a lease → stop routing to the victims and see that
//! nothing is in flight → unload each, only if idle → load under the lease's fence → follow until the
//! node says ready (it has produced a token by then) → release. Whatever fails before the load leaves
//! the victims that are still there in service; a failed eviction never leads to a load. The node may
//! refuse any step because its residency changed; then the plan is made anew.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use plugin_loader::{Candidate, Residency};
use tokio::sync::watch;
use wire_api::error::LoadingState;
use wire_api::node::ModelId;
use wire_api::node::events::LoadPhase;
use wire_api::node::lease::{Guard, Lease, LeaseRequest};
use wire_api::node::load::{LoadRequest, UnloadRequest};
use wire_api::node::models::{ModelState, ModelStatus};
use wire_api::{ApiError, ErrorKind};

use super::Placement;
use super::decisions::{ChangeRecord, Facts, request};
use super::room::{Plan, Room, Steps, Victim};
use super::route::may_become_resident;
use crate::fleet::gauge::ReplicaGauge;
use crate::fleet::identity::{now_ms, random_bits, stable_hash, unix_ms};
use crate::fleet::node_client::{NodeClient, NodeError};
use crate::fleet::poll::refresh;
use crate::fleet::view::{FleetView, ModelView, Replica};

/// How often a load is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);
/// How long a victim may take to go.
const UNLOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long freed memory may take to show.
const FREE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a lease lasts unless renewed; longer than any step under it but the load itself.
const LEASE_TTL: Duration = Duration::from_secs(120);
/// How often a plan is made anew because the node changed meanwhile.
const REPLANS: u32 = 8;
/// How long a node may be silent during a load before it counts as lost.
const SILENCE: Duration = Duration::from_secs(30);

/// How a load stands.
#[derive(Debug, Clone)]
pub enum Flight {
    /// Waiting for a place.
    Waiting {
        /// What for.
        reason: String,
    },
    /// Making room.
    Evicting {
        /// Where.
        node: String,
        /// Who goes.
        victims: Vec<String>,
    },
    /// Under way.
    Loading {
        /// Where.
        node: String,
        /// How far.
        state: LoadingState,
    },
    /// It serves.
    Ready,
    /// It does not.
    Failed(Box<ApiError>),
}

impl Flight {
    /// One line for a waiting client.
    pub fn line(&self) -> String {
        match self {
            Self::Waiting { reason } => format!("waiting: {reason}"),
            Self::Evicting { node, victims } => {
                format!("making room on {node}: unloading {}", victims.join(", "))
            }
            Self::Loading { node, state } => {
                let percent = state.progress.map_or_else(String::new, |p| format!(" {:.0}%", p * 100.0));
                let eta = state.eta_s.map_or_else(String::new, |eta| format!(" eta {eta:.0}s"));
                format!("loading on {node}: {}{percent}{eta}", state.state)
            }
            Self::Ready => "ready".into(),
            Self::Failed(error) => format!("failed: {error}"),
        }
    }

    /// The same for a client that is turned away meanwhile.
    pub fn loading(&self) -> LoadingState {
        match self {
            Self::Loading { state, .. } => state.clone(),
            Self::Evicting { .. } => LoadingState { state: "evicting".into(), progress: None, eta_s: None },
            _ => LoadingState { state: "queued".into(), progress: None, eta_s: None },
        }
    }
}

/// The loads under way, one per model.
#[derive(Default)]
pub struct Flights(Mutex<HashMap<String, watch::Receiver<Flight>>>);

impl Flights {
    /// The loads under way, by model.
    pub fn list(&self) -> Vec<(String, Flight)> {
        let flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<_> =
            flights.iter().map(|(model, flight)| (model.clone(), flight.borrow().clone())).collect();
        list.sort_by(|a, b| a.0.cmp(&b.0));
        list
    }
}

/// Why one attempt on one node ended.
enum Attempt {
    /// It serves.
    Ready,
    /// The node changed meanwhile; plan anew.
    Again(String),
    /// It will not be done here.
    Failed(ApiError),
}

impl Placement {
    /// Joins the load of a model, or begins it.
    pub fn make_resident(self: &Arc<Self>, model: &str) -> watch::Receiver<Flight> {
        let mut flights = self.flights.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(model) {
            return flight.clone();
        }
        let (sender, receiver) = watch::channel(Flight::Waiting { reason: "choosing a node".into() });
        flights.insert(model.to_owned(), receiver.clone());
        drop(flights);
        let (placement, model) = (Arc::clone(self), model.to_owned());
        tokio::spawn(async move {
            // Whatever happens to this task, the model can be asked for again.
            let landed = Landed { placement: &placement, model: &model };
            let outcome = placement.fly(&model, None, &sender).await;
            drop(landed);
            sender.send_replace(match outcome {
                Ok(()) => Flight::Ready,
                Err(error) => {
                    tracing::warn!(model, %error, "the model could not be made resident");
                    Flight::Failed(Box::new(error))
                }
            });
        });
        receiver
    }

    /// Loads a model on one node because somebody asked for just that.
    ///
    /// # Errors
    /// What kept it from being loaded.
    pub async fn load_on(self: &Arc<Self>, model: &str, node: &str) -> Result<(), ApiError> {
        let (sender, _receiver) = watch::channel(Flight::Waiting { reason: "asked for".into() });
        self.fly(model, Some(node), &sender).await
    }

    /// Until a replica serves, or nobody can make one.
    async fn fly(
        &self,
        model: &str,
        only: Option<&str>,
        flight: &watch::Sender<Flight>,
    ) -> Result<(), ApiError> {
        let started = Instant::now();
        let mut failed: HashMap<u64, ApiError> = HashMap::new();
        let mut changes = self.fleet.watch();
        let mut replans = 0;
        loop {
            changes.mark_unchanged();
            let view = self.fleet.view();
            let known = view.model(model).ok_or_else(|| ApiError::model_not_found(model))?;
            let wanted = |replica: &&Replica| only.is_none_or(|node| replica.node.name == node);
            if known.replicas.iter().filter(wanted).any(Replica::serves) {
                return Ok(());
            }
            let coming = known.replicas.iter().filter(wanted).find(|replica| {
                replica.residency == Residency::LOADING
                    && replica.node.usable()
                    && !failed.contains_key(&replica.node.hash)
            });
            if let Some(replica) = coming {
                match self.follow(known, replica, flight).await {
                    Attempt::Ready => return Ok(()),
                    Attempt::Again(_) => continue,
                    Attempt::Failed(error) => {
                        failed.insert(replica.node.hash, error);
                        continue;
                    }
                }
            }
            let take_turn = started.elapsed() >= self.policy.turn_after;
            match self.choose_node(&view, known, only, &failed, take_turn)? {
                None => {
                    let reason = "every node that could load it is busy with other models";
                    flight.send_replace(Flight::Waiting { reason: reason.into() });
                    let _ = tokio::time::timeout(Duration::from_millis(500), changes.changed()).await;
                }
                Some(replica) => match self.attempt(known, replica, take_turn, flight).await {
                    Attempt::Ready => return Ok(()),
                    Attempt::Again(reason) => {
                        replans += 1;
                        tracing::info!(model, node = %replica.node.name, reason, "planning anew");
                        flight.send_replace(Flight::Waiting { reason });
                        if replans >= REPLANS {
                            let error = ApiError::new(
                                ErrorKind::Conflict,
                                "the node changed faster than a plan could be made",
                            );
                            failed.insert(
                                replica.node.hash,
                                error.with_code("plan_conflict").with_retry_after(2),
                            );
                        }
                        let _ = tokio::time::timeout(FOLLOW_EVERY, changes.changed()).await;
                    }
                    Attempt::Failed(error) => {
                        failed.insert(replica.node.hash, error);
                    }
                },
            }
            if started.elapsed() > self.policy.load_wait {
                let message = format!(
                    "the model '{model}' found no place within {} s",
                    self.policy.load_wait.as_secs()
                );
                return Err(ApiError::new(ErrorKind::Loading, message)
                    .with_code("load_timeout")
                    .with_retry_after(10));
            }
        }
    }

    /// The node to load on; None when waiting helps.
    fn choose_node<'v>(
        &self,
        view: &'v FleetView,
        model: &'v ModelView,
        only: Option<&str>,
        failed: &HashMap<u64, ApiError>,
        take_turn: bool,
    ) -> Result<Option<&'v Replica>, ApiError> {
        let now = now_ms();
        let mut open: Vec<(&Replica, Candidate)> = Vec::new();
        let mut waiting = false;
        let mut missing: Option<u64> = None;
        for replica in &model.replicas {
            let wanted = only.is_none_or(|node| replica.node.name == node);
            if !wanted || !may_become_resident(replica) || failed.contains_key(&replica.node.hash) {
                continue;
            }
            if replica.residency != Residency::LOADABLE {
                // It is about to go to make room for another model; what comes after that is not known yet.
                waiting = true;
                continue;
            }
            match Room::new(view, model, replica, &self.policy).plan(&self.evictor, take_turn) {
                Plan::Now(steps) => open.push((replica, steps.candidate(replica.candidate(now)))),
                Plan::Later => waiting = true,
                Plan::Never { missing_bytes } => {
                    missing = Some(missing.map_or(missing_bytes, |least| least.min(missing_bytes)));
                }
            }
        }
        if !open.is_empty() {
            let candidates: Vec<Candidate> = open.iter().map(|(_, candidate)| *candidate).collect();
            let facts = Facts { seed: random_bits(), ..Facts::default() };
            let chosen = self.ask_router(&request(&facts, model.hash, 512.0, now), &candidates);
            return Ok(Some(open[chosen].0));
        }
        if waiting {
            return Ok(None);
        }
        Err(no_place(model, failed, missing))
    }

    /// One try on one node.
    async fn attempt(
        &self,
        model: &ModelView,
        replica: &Replica,
        take_turn: bool,
        flight: &watch::Sender<Flight>,
    ) -> Attempt {
        let node = &replica.node;
        let Some((index, client)) = self.client(&node.name) else {
            return Attempt::Again("the node is not configured".into());
        };
        flight
            .send_replace(Flight::Waiting { reason: format!("another change on {} comes first", node.name) });
        let changing = node.gauge.changing.lock().await;
        // While waiting for the lock the node has changed; only the plan made now counts.
        if !refresh(&self.fleet, client, index).await {
            return Attempt::Again(format!("{} does not answer", node.name));
        }
        let view = self.fleet.view();
        let Some((model, replica)) = view.model(&model.id).and_then(|m| Some((m, m.on(&node.name)?))) else {
            return Attempt::Again("the model is gone from the catalogue".into());
        };
        if replica.residency != Residency::LOADABLE {
            return Attempt::Again("somebody else loads it".into());
        }
        let steps = match Room::new(&view, model, replica, &self.policy).plan(&self.evictor, take_turn) {
            Plan::Now(steps) => steps,
            Plan::Later => return Attempt::Again("its room was taken".into()),
            Plan::Never { missing_bytes } => return Attempt::Failed(does_not_fit(model, missing_bytes)),
        };
        let change = Change { placement: self, client, index, model, replica, steps: &steps, flight };
        let outcome = change.carry_out(take_turn).await;
        drop(changing);
        outcome
    }

    /// Watches a load until it is over.
    async fn follow(&self, model: &ModelView, replica: &Replica, flight: &watch::Sender<Flight>) -> Attempt {
        let Some((index, client)) = self.client(&replica.node.name) else {
            return Attempt::Again("the node is not configured".into());
        };
        let name = &replica.node.name;
        let mut heard = Instant::now();
        loop {
            if refresh(&self.fleet, client, index).await {
                heard = Instant::now();
            } else if heard.elapsed() > SILENCE {
                return Attempt::Failed(lost(name, "while it was loading"));
            }
            let view = self.fleet.view();
            let status = view.model(&model.id).and_then(|m| m.on(name)).and_then(|r| r.status.clone());
            match status.as_ref().map(|status| status.state) {
                Some(ModelState::Ready) => return Attempt::Ready,
                Some(ModelState::Loading | ModelState::Recovering) => {
                    let state = loading_state(status.as_ref());
                    flight.send_replace(Flight::Loading { node: name.clone(), state });
                }
                Some(ModelState::Failed) => return Attempt::Failed(load_failed(name, status.as_ref())),
                Some(ModelState::Draining) => return Attempt::Again("it is being unloaded".into()),
                Some(ModelState::Absent) | None => {
                    return Attempt::Failed(load_failed(name, status.as_ref()));
                }
            }
            tokio::time::sleep(FOLLOW_EVERY).await;
        }
    }

    /// Unloads a model from a node because somebody asked for it, or because it has been idle too long.
    ///
    /// # Errors
    /// What the node said.
    pub async fn unload(
        &self,
        model: &str,
        node: &str,
        action: &'static str,
        only_if_idle: bool,
    ) -> Result<(), ApiError> {
        let view = self.fleet.view();
        let known = view.model(model).ok_or_else(|| ApiError::model_not_found(model))?;
        let (Some(replica), Some((index, client))) = (known.on(node), self.client(node)) else {
            return Err(ApiError::new(ErrorKind::NotFound, format!("'{model}' is not on a node '{node}'")));
        };
        let _changing = replica.node.gauge.changing.lock().await;
        let started = Instant::now();
        let closed = Closed::close(&[Arc::clone(&replica.gauge)]);
        let request = UnloadRequest {
            model: ModelId::from(replica.served_as.as_str()),
            drain_timeout_ms: None,
            only_if_idle,
            wait: true,
            guard: Guard::default(),
        };
        let outcome = client.with_timeout(UNLOAD_TIMEOUT).unload(&request).await;
        refresh(&self.fleet, client, index).await;
        drop(closed);
        replica.node.gauge.count_cycle();
        let reason = outcome.as_ref().err().map_or_else(String::new, ToString::to_string);
        self.record(action, &replica.node.name, &known.id, None, &outcome, started, reason);
        if outcome.is_ok() {
            self.prefixes.forget(known.hash, replica.node.hash);
            self.metrics.evictions.with_label_values(&[node, &known.id, action]).inc();
        }
        outcome.map(|_| ()).map_err(|error| node_said(error, "unload_failed"))
    }

    #[expect(clippy::too_many_arguments, reason = "one flat record")]
    fn record<T>(
        &self,
        action: &'static str,
        node: &str,
        model: &str,
        on_behalf_of: Option<&str>,
        outcome: &Result<T, NodeError>,
        started: Instant,
        reason: String,
    ) {
        let outcome = match outcome {
            Ok(_) => "done".to_owned(),
            Err(error) => error.code().unwrap_or("unreachable").to_owned(),
        };
        tracing::info!(action, node, model, on_behalf_of, outcome, reason, "residency");
        self.decisions.changed(ChangeRecord {
            unix_ms: unix_ms(),
            node: node.to_owned(),
            model: model.to_owned(),
            action,
            on_behalf_of: on_behalf_of.map(str::to_owned),
            outcome,
            seconds: started.elapsed().as_secs_f64(),
            reason,
        });
    }
}

/// Takes a model off the list of loads under way, however its task ends.
struct Landed<'a> {
    placement: &'a Placement,
    model: &'a str,
}

impl Drop for Landed<'_> {
    fn drop(&mut self) {
        self.placement.flights.0.lock().unwrap_or_else(PoisonError::into_inner).remove(self.model);
    }
}

/// Replicas that get no new requests, until dropped.
struct Closed(Vec<Arc<ReplicaGauge>>);

impl Closed {
    fn close(gauges: &[Arc<ReplicaGauge>]) -> Self {
        for gauge in gauges {
            gauge.close();
        }
        Self(gauges.to_vec())
    }

    fn inflight(&self) -> u32 {
        self.0.iter().map(|gauge| gauge.inflight()).sum()
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        for gauge in &self.0 {
            gauge.open();
        }
    }
}

/// One transaction with one node, under the node's lock.
struct Change<'a> {
    placement: &'a Placement,
    client: &'a NodeClient,
    index: usize,
    model: &'a ModelView,
    replica: &'a Replica,
    steps: &'a Steps,
    flight: &'a watch::Sender<Flight>,
}

impl Change<'_> {
    async fn carry_out(&self, take_turn: bool) -> Attempt {
        let mut guard = Guard {
            residency_revision: Some(self.replica.node.status.residency_revision),
            ..Guard::default()
        };
        let lease = match self.lease().await {
            Ok(lease) => lease,
            Err(attempt) => return attempt,
        };
        if let Some(lease) = &lease {
            guard.lease = Some(lease.id.clone());
            guard.fence = Some(lease.fence);
        }
        let outcome = self.under_lease(&mut guard, take_turn).await;
        if let Some(lease) = lease {
            // A lease that cannot be released lapses by itself.
            let _ = self.client.release(&lease.id).await;
        }
        outcome
    }

    async fn under_lease(&self, guard: &mut Guard, take_turn: bool) -> Attempt {
        let closed = Closed::close(&self.victim_gauges());
        if let Err(attempt) = self.evict(guard, &closed, take_turn).await {
            return attempt;
        }
        let outcome = self.load(guard).await;
        refresh(&self.placement.fleet, self.client, self.index).await;
        drop(closed);
        outcome
    }

    /// Memory promised by the node. None where the node knows no leases.
    async fn lease(&self) -> Result<Option<Lease>, Attempt> {
        let request = LeaseRequest {
            owner: self.placement.owner.clone(),
            model: ModelId::from(self.model.id.as_str()),
            claims: self.steps.claims.clone(),
            ttl_ms: LEASE_TTL.as_millis() as u64,
            lease: None,
            residency_revision: Some(self.replica.node.status.residency_revision),
            victims: self.steps.victims.iter().map(|v| ModelId::from(v.served_as.as_str())).collect(),
        };
        match self.client.lease(&request).await {
            Ok(lease) => Ok(Some(lease)),
            Err(error) => match error.status() {
                Some(404 | 405 | 501) => Ok(None),
                Some(409) => Err(Attempt::Again(error.to_string())),
                Some(_) => Err(Attempt::Failed(node_said(error, "lease_refused"))),
                None => Err(Attempt::Again(error.to_string())),
            },
        }
    }

    fn victim_gauges(&self) -> Vec<Arc<ReplicaGauge>> {
        let gauges = self.placement.fleet.gauges();
        self.steps.victims.iter().map(|v| gauges.replica(&self.replica.node.name, &v.model)).collect()
    }

    async fn evict(&self, guard: &mut Guard, closed: &Closed, take_turn: bool) -> Result<(), Attempt> {
        if self.steps.victims.is_empty() {
            return Ok(());
        }
        let node = &self.replica.node;
        let names: Vec<String> = self.steps.victims.iter().map(|victim| victim.model.clone()).collect();
        self.flight.send_replace(Flight::Evicting { node: node.name.clone(), victims: names });
        if !take_turn && closed.inflight() > 0 {
            return Err(Attempt::Again("a model that was to go is in use".into()));
        }
        // A busy model whose time is up finishes what it has; nothing new is sent there meanwhile.
        self.until("finish", self.placement.policy.load_wait, async || closed.inflight() == 0).await?;
        if let Some(memo) = self.steps.memo {
            node.gauge.set_memo(memo);
        }
        for victim in &self.steps.victims {
            self.unload(victim, guard, take_turn).await?;
        }
        let free =
            async || refresh(&self.placement.fleet, self.client, self.index).await && self.room_is_free();
        self.until("free its memory", FREE_TIMEOUT, free).await
    }

    async fn unload(&self, victim: &Victim, guard: &mut Guard, take_turn: bool) -> Result<(), Attempt> {
        let node = &self.replica.node.name;
        let started = Instant::now();
        let request = UnloadRequest {
            model: ModelId::from(victim.served_as.as_str()),
            drain_timeout_ms: None,
            // When it is another model's turn, what came from elsewhere may finish, too.
            only_if_idle: !take_turn,
            wait: true,
            guard: guard.clone(),
        };
        let outcome = self.client.with_timeout(UNLOAD_TIMEOUT).unload(&request).await;
        self.placement.record(
            "evict",
            node,
            &victim.model,
            Some(&self.model.id),
            &outcome,
            started,
            victim.reason.clone(),
        );
        match outcome {
            Ok(answer) => {
                guard.residency_revision = Some(answer.residency_revision);
                self.placement.prefixes.forget(stable_hash(victim.model.as_bytes()), self.replica.node.hash);
                self.replica.node.gauge.count_cycle();
                let reason = if take_turn { "turn" } else { "need" };
                self.placement.metrics.evictions.with_label_values(&[node, &victim.model, reason]).inc();
                Ok(())
            }
            Err(error) if error.status() == Some(409) => Err(Attempt::Again(error.to_string())),
            Err(error) => Err(Attempt::Failed(node_said(error, "eviction_failed"))),
        }
    }

    /// Whether the devices show the bytes that were to become free.
    fn room_is_free(&self) -> bool {
        let view = self.placement.fleet.view();
        let Some(node) = view.node(&self.replica.node.name) else { return false };
        // A lease counts as used; it is our own.
        self.steps.claims.iter().all(|claim| {
            node.devices()
                .iter()
                .find(|d| d.id == claim.device)
                .is_none_or(|d| d.memory_free_bytes >= claim.bytes)
        })
    }

    /// Waits until `done`, looking every so often.
    async fn until<F: Future<Output = bool>>(
        &self,
        what: &str,
        limit: Duration,
        done: impl Fn() -> F,
    ) -> Result<(), Attempt> {
        let started = Instant::now();
        while !done().await {
            if started.elapsed() > limit {
                let message = format!(
                    "{} did not {what} within {} s after an eviction",
                    self.replica.node.name,
                    limit.as_secs()
                );
                let error = ApiError::new(ErrorKind::OutOfMemory, message).with_code("eviction_incomplete");
                return Err(Attempt::Failed(error.with_retry_after(5)));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn load(&self, guard: &Guard) -> Attempt {
        let started = Instant::now();
        let node = &self.replica.node.name;
        let request = self.load_request(guard);
        let answer = self.client.load(&request).await;
        let outcome = match &answer {
            Ok(_) => self.placement.follow(self.model, self.replica, self.flight).await,
            Err(error) if error.status() == Some(409) => return Attempt::Again(error.to_string()),
            Err(error) => Attempt::Failed(node_said(error.clone(), "load_refused")),
        };
        let (word, reason) = match &outcome {
            Attempt::Ready => ("ready", String::new()),
            Attempt::Again(reason) => ("superseded", reason.clone()),
            Attempt::Failed(error) => (error.code.as_str(), error.to_string()),
        };
        self.placement.record("load", node, &self.model.id, None, &answer, started, reason);
        self.placement.metrics.loads.with_label_values(&[&self.model.id, node, word]).inc();
        if matches!(outcome, Attempt::Ready) {
            let seconds = started.elapsed().as_secs_f64();
            self.model.gauge.loaded(node, seconds);
            self.replica.node.gauge.count_cycle();
            self.placement.metrics.load_duration.with_label_values(&[&self.model.id, node]).observe(seconds);
        }
        outcome
    }

    fn load_request(&self, guard: &Guard) -> LoadRequest {
        let spec = self.model.spec.clone().unwrap_or_default();
        let source = if spec.id.is_empty() { self.replica.served_as.as_str() } else { spec.source() };
        LoadRequest {
            model: ModelId::from(source),
            name: (source != self.model.id).then(|| ModelId::from(self.model.id.as_str())),
            wait: false,
            devices: self.steps.devices.clone(),
            dtype: spec.dtype.clone(),
            quant: spec.quant.clone(),
            context_tokens: spec.context_tokens,
            slots: spec.slots,
            pinned: spec.pinned_to(&self.replica.node.name),
            aliases: spec.aliases.clone(),
            guard: guard.clone(),
        }
    }
}

fn loading_state(status: Option<&ModelStatus>) -> LoadingState {
    let progress = status.and_then(|status| status.progress.as_ref());
    LoadingState {
        state: progress.map_or(LoadPhase::Queued, |progress| progress.phase).as_str().to_owned(),
        progress: progress.and_then(|progress| progress.fraction()),
        eta_s: progress.and_then(|progress| progress.eta_ms).map(|ms| ms as f32 / 1000.0),
    }
}

fn load_failed(node: &str, status: Option<&ModelStatus>) -> ApiError {
    let failure = status.and_then(|status| status.failure.as_ref());
    let message = failure.map_or("the load ended without a word", |failure| failure.message.as_str());
    let mut error = ApiError::new(ErrorKind::Unavailable, format!("{node} could not load it: {message}"))
        .with_code("load_failed");
    error.retryable = failure.is_none_or(|failure| failure.retryable);
    if error.retryable {
        error = error.with_retry_after(10);
    }
    error
}

fn lost(node: &str, when: &str) -> ApiError {
    ApiError::new(ErrorKind::Unavailable, format!("{node} fell silent {when}"))
        .with_code("node_lost")
        .with_retry_after(5)
}

fn does_not_fit(model: &ModelView, missing_bytes: u64) -> ApiError {
    let missing = missing_bytes as f64 / (1u64 << 30) as f64;
    let mut error = ApiError::new(
        ErrorKind::OutOfMemory,
        format!(
            "the model '{}' does not fit: {missing:.2} GiB are missing, whatever else is unloaded",
            model.id
        ),
    )
    .with_code("no_capacity");
    error.retryable = false;
    error
}

fn no_place(model: &ModelView, failed: &HashMap<u64, ApiError>, missing: Option<u64>) -> ApiError {
    if let Some(error) = failed.values().next() {
        return error.clone();
    }
    if let Some(missing_bytes) = missing {
        return does_not_fit(model, missing_bytes);
    }
    ApiError::new(ErrorKind::Unavailable, format!("no node that may load '{}' answers", model.id))
        .with_code("no_node")
        .with_retry_after(5)
}

/// What a node said, under a code that names the step.
fn node_said(error: NodeError, code: &str) -> ApiError {
    let text = error.to_string();
    match error {
        NodeError::Refused { error, .. } => {
            let mut said = *error;
            said.message = text;
            said.code = code.to_owned();
            if said.kind == ErrorKind::Internal || said.kind == ErrorKind::Unsupported {
                said.kind = ErrorKind::Unavailable;
            }
            said
        }
        _ => ApiError::new(ErrorKind::Unavailable, text).with_code(code).with_retry_after(5),
    }
}
