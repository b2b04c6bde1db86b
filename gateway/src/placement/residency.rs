//! Making a model resident: one load per model, shared by everybody who waits, carried out as a
//! transaction with the node.
//!
//! In the node's turn: look again → ask for a lease → stop routing to the victims and see that nothing is
//! in flight → unload each, only if idle → load under the lease's fence. Then, with the turn given on:
//! follow until the node says ready (it has produced a token by then). Whatever fails before the load
//! leaves the victims that are still there in service; a failed eviction never leads to a load. The node
//! may refuse any step because its residency changed; then the plan is made anew.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use plugin_loader::{Candidate, Residency};
use tokio::sync::watch;
use tokio::time::Instant;
use wire_api::node::models::ModelState;
use wire_api::{ApiError, ErrorKind};

use super::Placement;
use super::change::{Attempt, Change};
use super::decisions::{Facts, request};
use super::failure::{does_not_fit, load_failed, loading_state, lost, no_place};
use super::flight::Landed;
pub use super::flight::{Flight, Flights};
use super::room::{Plan, Room};
use super::route::may_become_resident;
use crate::coordinator::{Claim, Held, Lost};
use crate::fleet::identity::{now_ms, random_bits};
use crate::fleet::poll::refresh;
use crate::fleet::view::{FleetView, ModelView, Replica};

/// How often a load is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);
/// How often it is looked whether waiting has helped, when nothing else wakes.
const IDLE_LOOK: Duration = Duration::from_millis(500);
/// How often a plan is made anew because the node changed meanwhile.
const REPLANS: u32 = 8;
/// How long a node may be silent during a load before it counts as lost.
const SILENCE: Duration = Duration::from_secs(30);

/// What has become of a load so far.
#[derive(Default)]
struct Course {
    /// Held from before the first plan until it is over: nobody else loads the model meanwhile.
    claim: Option<Held>,
    /// Nodes it will not be done on, and why.
    failed: HashMap<u64, ApiError>,
    replans: u32,
}

impl Course {
    /// Takes in how an attempt ended; true when the model serves.
    fn take(&mut self, attempt: Attempt, replica: &Replica, flight: &watch::Sender<Flight>) -> bool {
        let node = &replica.node;
        match attempt {
            Attempt::Ready => return true,
            Attempt::Busy(reason) => {
                flight.send_replace(Flight::Waiting { reason });
            }
            Attempt::Again(reason) => {
                self.replans += 1;
                tracing::info!(node = %node.name, reason, "planning anew");
                flight.send_replace(Flight::Waiting { reason });
                if self.replans >= REPLANS {
                    let message = "the node changed faster than a plan could be made";
                    let error = ApiError::new(ErrorKind::Conflict, message).with_code("plan_conflict");
                    self.failed.insert(node.hash, error.with_retry_after(2));
                }
            }
            Attempt::Failed(error) => {
                self.failed.insert(node.hash, error);
            }
        }
        false
    }
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
        let mut course = Course::default();
        let mut changes = self.fleet.watch();
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
                    && !course.failed.contains_key(&replica.node.hash)
            });
            if let Some(replica) = coming {
                let attempt = self.follow(known, replica, flight).await;
                if course.take(attempt, replica, flight) {
                    return Ok(());
                }
            } else if course.claim.is_some() || only.is_some() {
                let take_turn = started.elapsed() >= self.policy.turn_after;
                match self.choose_node(&view, known, only, &course.failed, take_turn)? {
                    None => {
                        let reason = "every node that could load it is busy with other models";
                        flight.send_replace(Flight::Waiting { reason: reason.into() });
                        let _ = tokio::time::timeout(IDLE_LOOK, changes.changed()).await;
                    }
                    Some(replica) => {
                        let attempt = self.attempt(known, replica, take_turn, flight).await?;
                        let again = matches!(attempt, Attempt::Again(_) | Attempt::Busy(_));
                        if course.take(attempt, replica, flight) {
                            return Ok(());
                        }
                        if again {
                            let _ = tokio::time::timeout(FOLLOW_EVERY, changes.changed()).await;
                        }
                    }
                }
            } else {
                match self.coordinator.claim_model(model).await? {
                    // What was seen before it was claimed may be old: look again.
                    Claim::Mine(claim) => course.claim = Some(claim),
                    Claim::Theirs { owner } => {
                        flight.send_replace(Flight::Waiting { reason: format!("{owner} is loading it") });
                        let _ = tokio::time::timeout(IDLE_LOOK, changes.changed()).await;
                    }
                }
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
        let (now, policy) = (now_ms(), self.policy_now());
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
            match Room::new(view, model, replica, &policy).plan(&self.evictor, take_turn) {
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
    ) -> Result<Attempt, Lost> {
        let node = &replica.node;
        let again = |why: String| Ok(Attempt::Again(why));
        let Some(client) = self.client(&node.name) else {
            return again(format!("{} has left", node.name));
        };
        flight
            .send_replace(Flight::Waiting { reason: format!("another change on {} comes first", node.name) });
        let turn = self.coordinator.lock_node(&node.name).await?;
        // While waiting for the turn the node has changed; only the plan made now counts.
        if !refresh(&self.fleet, &client).await {
            return again(format!("{} does not answer", node.name));
        }
        let view = self.fleet.view();
        let Some((model, replica)) = view.model(&model.id).and_then(|m| Some((m, m.on(&node.name)?))) else {
            return again("the model is gone from the catalogue".into());
        };
        if replica.residency != Residency::LOADABLE {
            return again("somebody else loads it".into());
        }
        let policy = self.policy_now();
        let steps = match Room::new(&view, model, replica, &policy).plan(&self.evictor, take_turn) {
            Plan::Now(steps) => steps,
            Plan::Later => return Ok(Attempt::Busy("its room was taken".into())),
            Plan::Never { missing_bytes } => {
                return Ok(Attempt::Failed(does_not_fit(model, missing_bytes)));
            }
        };
        let change = Change { placement: self, client: &client, model, replica, steps: &steps, flight };
        let begun = change.carry_out(take_turn).await;
        drop(turn);
        Ok(match begun {
            Ok(began) => {
                let attempt = self.follow(model, replica, flight).await;
                self.load_ended(model, &node.name, &attempt, began);
                attempt
            }
            Err(attempt) => attempt,
        })
    }

    /// Watches a load until it is over.
    async fn follow(&self, model: &ModelView, replica: &Replica, flight: &watch::Sender<Flight>) -> Attempt {
        let Some(client) = self.client(&replica.node.name) else {
            return Attempt::Again(format!("{} has left", replica.node.name));
        };
        let name = &replica.node.name;
        let mut heard = Instant::now();
        loop {
            if refresh(&self.fleet, &client).await {
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
}
