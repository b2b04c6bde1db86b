//! Changes of what a node has loaded: one transaction with one node, in its turn.
//!
//! Lease → see that the victims are idle → unload each → see that their bytes are free → load → release.
//! The node checks fence and residency revision at every step; whatever it refuses is planned anew, never
//! forced. The turn ends when the node has taken the load on: from then on the load itself holds the
//! memory it was promised, and other models may be planned beside it while it reads its weights.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use wire_api::node::ModelId;
use wire_api::node::lease::{Guard, Lease, LeaseRequest};
use wire_api::node::load::{LoadRequest, UnloadRequest};
use wire_api::{ApiError, ErrorKind};

use super::Placement;
use super::decisions::ChangeRecord;
use super::failure::node_said;
use super::flight::Flight;
use super::room::{Steps, Victim};
use crate::fleet::gauge::ReplicaGauge;
use crate::fleet::identity::{now_ms, stable_hash, unix_ms};
use crate::fleet::node_client::{NodeClient, NodeError};
use crate::fleet::poll::refresh;
use crate::fleet::view::{ModelView, Replica};

/// How long a victim may take to go.
const UNLOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long freed memory may take to show.
const FREE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a lease lasts unless renewed.
const LEASE_TTL: Duration = Duration::from_secs(120);
/// How often it is looked whether something has come about.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Why one attempt on one node ended.
pub(super) enum Attempt {
    /// It serves.
    Ready,
    /// The node changed meanwhile; plan anew.
    Again(String),
    /// Another planner has the node, or what was to go is in use; wait.
    Busy(String),
    /// It will not be done here.
    Failed(ApiError),
}

impl Placement {
    /// Unloads a model from a node because somebody asked for it, or because it has been idle too long.
    ///
    /// # Errors
    /// What the node said, or that the coordinator is lost.
    pub async fn unload(
        &self,
        model: &str,
        node: &str,
        action: &'static str,
        only_if_idle: bool,
    ) -> Result<(), ApiError> {
        let view = self.fleet.view();
        let known = view.model(model).ok_or_else(|| ApiError::model_not_found(model))?;
        let (Some(replica), Some(client)) = (known.on(node), self.client(node)) else {
            return Err(ApiError::new(ErrorKind::NotFound, format!("'{model}' is not on a node '{node}'")));
        };
        let turn = self.coordinator.lock_node(node).await?;
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
        refresh(&self.fleet, &client).await;
        drop(closed);
        drop(turn);
        replica.node.gauge.count_cycle();
        let reason = outcome.as_ref().err().map_or_else(String::new, ToString::to_string);
        self.record(action, &replica.node.name, &known.id, None, &outcome, started, reason);
        if outcome.is_ok() {
            self.prefixes.forget(known.hash, replica.node.hash);
            self.metrics.evictions.with_label_values(&[node, &known.id, action]).inc();
            if action == "idle" {
                self.thrash.evicted(known.hash, now_ms());
            }
        }
        outcome.map(|_| ()).map_err(|error| node_said(error, "unload_failed"))
    }

    #[expect(clippy::too_many_arguments, reason = "one flat record")]
    pub(super) fn record<T>(
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

    /// Counts a load that has come to its end.
    pub(super) fn load_ended(&self, model: &ModelView, node: &str, attempt: &Attempt, started: Instant) {
        let (word, reason) = match attempt {
            Attempt::Ready => ("ready", String::new()),
            Attempt::Again(reason) | Attempt::Busy(reason) => ("superseded", reason.clone()),
            Attempt::Failed(error) => (error.code.as_str(), error.to_string()),
        };
        self.record::<()>("load", node, &model.id, None, &Ok(()), started, reason);
        self.metrics.loads.with_label_values(&[&model.id, node, word]).inc();
        if !matches!(attempt, Attempt::Ready) {
            return;
        }
        let seconds = started.elapsed().as_secs_f64();
        model.gauge.loaded(node, seconds);
        self.fleet.gauges().node(node).count_cycle();
        self.metrics.load_duration.with_label_values(&[&model.id, node]).observe(seconds);
        if self.thrash.loaded(model.hash, now_ms()) {
            self.metrics.reloads.inc();
        }
        self.metrics.thrash_ratio.set(self.thrash.ratio(now_ms()));
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

/// One transaction with one node, in its turn.
pub(super) struct Change<'a> {
    pub placement: &'a Placement,
    pub client: &'a NodeClient,
    pub model: &'a ModelView,
    pub replica: &'a Replica,
    pub steps: &'a Steps,
    pub flight: &'a watch::Sender<Flight>,
}

impl Change<'_> {
    /// Does it until the node has taken the load on, which then began at the instant told.
    pub async fn carry_out(&self, take_turn: bool) -> Result<Instant, Attempt> {
        let mut guard = Guard {
            residency_revision: Some(self.replica.node.status.residency_revision),
            ..Guard::default()
        };
        let lease = self.lease(None).await?;
        if let Some(lease) = &lease {
            guard.lease = Some(lease.id.clone());
            guard.fence = Some(lease.fence);
        }
        let outcome = self.under_lease(&mut guard, lease.as_ref(), take_turn).await;
        if let Some(lease) = lease {
            // A lease that cannot be released lapses by itself.
            let _ = self.client.release(&lease.id).await;
        }
        outcome
    }

    async fn under_lease(
        &self,
        guard: &mut Guard,
        lease: Option<&Lease>,
        take_turn: bool,
    ) -> Result<Instant, Attempt> {
        let closed = Closed::close(&self.victim_gauges());
        self.evict(guard, lease, &closed, take_turn).await?;
        let begun = self.load(guard).await;
        refresh(&self.placement.fleet, self.client).await;
        drop(closed);
        begun
    }

    /// Memory promised by the node; renews `held`. None where the node knows no leases.
    async fn lease(&self, held: Option<&Lease>) -> Result<Option<Lease>, Attempt> {
        let request = LeaseRequest {
            owner: self.placement.owner.clone(),
            model: ModelId::from(self.model.id.as_str()),
            claims: self.steps.claims.clone(),
            ttl_ms: LEASE_TTL.as_millis() as u64,
            lease: held.map(|lease| lease.id.clone()),
            residency_revision: Some(self.replica.node.status.residency_revision),
            victims: self.steps.victims.iter().map(|v| ModelId::from(v.served_as.as_str())).collect(),
        };
        match self.client.lease(&request).await {
            Ok(lease) => Ok(Some(lease)),
            Err(error) => match error.status() {
                Some(404 | 405 | 501) => Ok(None),
                Some(409) if error.code() == Some("leased") => Err(Attempt::Busy(error.to_string())),
                Some(409) | None => Err(Attempt::Again(error.to_string())),
                Some(_) => Err(Attempt::Failed(node_said(error, "lease_refused"))),
            },
        }
    }

    fn victim_gauges(&self) -> Vec<Arc<ReplicaGauge>> {
        let gauges = self.placement.fleet.gauges();
        self.steps.victims.iter().map(|v| gauges.replica(&self.replica.node.name, &v.model)).collect()
    }

    async fn evict(
        &self,
        guard: &mut Guard,
        lease: Option<&Lease>,
        closed: &Closed,
        take_turn: bool,
    ) -> Result<(), Attempt> {
        if self.steps.victims.is_empty() {
            return Ok(());
        }
        let node = &self.replica.node;
        let names: Vec<String> = self.steps.victims.iter().map(|victim| victim.model.clone()).collect();
        self.flight.send_replace(Flight::Evicting { node: node.name.clone(), victims: names });
        if !take_turn && closed.inflight() > 0 {
            return Err(Attempt::Busy("a model that was to go is in use".into()));
        }
        self.finished(closed, lease).await?;
        if let Some(memo) = self.steps.memo {
            node.gauge.set_memo(memo);
        }
        for victim in &self.steps.victims {
            self.unload(victim, guard, take_turn).await?;
        }
        let free = async || refresh(&self.placement.fleet, self.client).await && self.room_is_free();
        self.until("free its memory", FREE_TIMEOUT, free).await
    }

    /// A busy model whose time is up finishes what it has; nothing new is sent there meanwhile, and the lease
    /// lives on.
    async fn finished(&self, closed: &Closed, lease: Option<&Lease>) -> Result<(), Attempt> {
        let began = Instant::now();
        while closed.inflight() > 0 {
            let left = self.placement.policy.load_wait.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Err(self.overdue("finish", self.placement.policy.load_wait));
            }
            let idle = async || closed.inflight() == 0;
            if self.until("finish", left.min(LEASE_TTL / 3), idle).await.is_err() && lease.is_some() {
                self.lease(lease).await?;
            }
        }
        Ok(())
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
                let hash = stable_hash(victim.model.as_bytes());
                self.placement.prefixes.forget(hash, self.replica.node.hash);
                self.placement.thrash.evicted(hash, now_ms());
                self.replica.node.gauge.count_cycle();
                let reason = if take_turn { "turn" } else { "need" };
                self.placement.metrics.evictions.with_label_values(&[node, &victim.model, reason]).inc();
                Ok(())
            }
            Err(error) if error.code() == Some("busy") => Err(Attempt::Busy(error.to_string())),
            // Without an answer nobody knows whether it went; the next plan begins with a look.
            Err(error) if matches!(error.status(), Some(409) | None) => {
                Err(Attempt::Again(error.to_string()))
            }
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
                return Err(self.overdue(what, limit));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    fn overdue(&self, what: &str, limit: Duration) -> Attempt {
        let node = &self.replica.node.name;
        let message = format!("{node} did not {what} within {} s after an eviction", limit.as_secs());
        let error = ApiError::new(ErrorKind::OutOfMemory, message).with_code("eviction_incomplete");
        Attempt::Failed(error.with_retry_after(5))
    }

    /// Asks for the load; when it was taken on, since when.
    async fn load(&self, guard: &Guard) -> Result<Instant, Attempt> {
        let started = Instant::now();
        let Err(error) = self.client.load(&self.load_request(guard)).await else { return Ok(started) };
        let attempt = match error.status() {
            // Without an answer nobody knows whether it began; the next plan begins with a look.
            Some(409) | None => Attempt::Again(error.to_string()),
            Some(_) => Attempt::Failed(node_said(error, "load_refused")),
        };
        self.placement.load_ended(self.model, &self.replica.node.name, &attempt, started);
        Err(attempt)
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
            ..LoadRequest::default()
        }
    }
}
