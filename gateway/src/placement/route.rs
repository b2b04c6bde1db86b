//! Which replica serves a request.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use plugin_loader::{Candidate, Residency};
use wire_api::{ApiError, ErrorKind};

use super::Placement;
use super::decisions::{Facts, RouteRecord, request};
use super::room::{Plan, Room};
use crate::config::NodeKind;
use crate::fleet::gauge::{BreakerState, Ticket};
use crate::fleet::identity::{now_ms, random_bits, unix_ms};
use crate::fleet::view::{FleetView, Health, ModelView, NodeView, Replica};

/// A request with a place: counted there until the ticket is dropped.
pub struct Placed {
    /// The model.
    pub model: Arc<ModelView>,
    /// The node.
    pub node: Arc<NodeView>,
    /// What the node calls the model; None when it answers to the caller's name.
    pub rename: Option<String>,
    /// Counts the request.
    pub ticket: Ticket,
}

/// What the router said.
pub enum Step {
    /// Send it there.
    Go(Box<Placed>),
    /// No replica can serve; one must be made, best here.
    Load,
}

impl Placement {
    /// Facts every request begins with.
    pub fn new_facts(&self) -> Facts {
        Facts {
            ordinal: self.ordinal.fetch_add(1, Ordering::Relaxed),
            seed: random_bits(),
            ..Facts::default()
        }
    }

    /// Chooses a place for a request for `name`, leaving out nodes (by hash) it has `tried`.
    ///
    /// # Errors
    /// 404 for a model nobody knows, 503 for one that nobody can serve now.
    pub fn route(
        &self,
        view: &FleetView,
        name: &str,
        facts: &Facts,
        request_id: &str,
        tried: &[u64],
    ) -> Result<Step, ApiError> {
        let Some(model) = view.model(name) else { return Err(unknown(view, name)) };
        let now = now_ms();
        let mut indices = Vec::with_capacity(model.replicas.len());
        let mut candidates: Vec<Candidate> = Vec::with_capacity(model.replicas.len());
        for (index, replica) in model.replicas.iter().enumerate() {
            let fresh = !tried.contains(&replica.node.hash);
            if fresh && replica.serves() && replica.node.gauge.breaker() != BreakerState::Open {
                indices.push(index);
                candidates.push(replica.candidate(now));
            }
        }
        if candidates.is_empty() {
            return if tried.is_empty() && model.replicas.iter().any(may_become_resident) {
                Ok(Step::Load)
            } else {
                Err(nobody(model))
            };
        }
        if !facts.prefix_blocks.is_empty() {
            self.add_cached(model.hash, facts, &mut candidates);
        }
        let warm = candidates.len();
        if self.policy.consider_loading && tried.is_empty() {
            self.add_cold(view, model, now, &mut indices, &mut candidates);
        }
        let expected_tokens = model.gauge.expected_tokens(facts.max_tokens);
        let decide = |candidates: &[Candidate]| {
            let chosen = self.ask_router(&request(facts, model.hash, expected_tokens, now), candidates);
            self.decisions.routed(RouteRecord {
                request_id: request_id.to_owned(),
                model: model.id.clone(),
                model_hash: model.hash,
                facts: facts.clone(),
                expected_tokens,
                now_ms: now,
                unix_ms: unix_ms(),
                candidates: candidates.to_vec(),
                chosen,
            });
            chosen
        };
        let mut chosen = decide(&candidates);
        if chosen >= warm {
            // Another replica is worth its load. It is made beside the stream of requests; this one is served by
            // who has the model already.
            self.wish(&model.id, &model.replicas[indices[chosen]].node.name);
            candidates.truncate(warm);
            chosen = decide(&candidates);
        }
        let replica = &model.replicas[indices[chosen]];
        let prompt_tokens = u64::from(facts.prompt_tokens);
        match Ticket::take(&replica.node.gauge, &model.gauge, &replica.gauge, prompt_tokens) {
            Some(ticket) => Ok(Step::Go(Box::new(Placed {
                model: Arc::clone(model),
                node: Arc::clone(&replica.node),
                rename: (!replica.answers_to(name)).then(|| replica.served_as.clone()),
                ticket,
            }))),
            // Closed between the choice and now: without that replica.
            None => {
                let mut tried = tried.to_vec();
                tried.push(replica.node.hash);
                match self.route(view, name, facts, request_id, &tried) {
                    Err(error) if error.retryable && may_become_resident(replica) => Ok(Step::Load),
                    step => step,
                }
            }
        }
    }

    /// The router's answer; a router that fails is replaced by the least loaded, and said so.
    pub(super) fn ask_router(
        &self,
        request: &plugin_loader::RouteRequest<'_>,
        candidates: &[Candidate],
    ) -> usize {
        match self.router.choose(request, candidates, false) {
            Ok(decision) => decision.index,
            Err(error) => {
                tracing::error!(router = self.router.name(), %error, "the router failed; using the least loaded");
                let load = |candidate: &Candidate| {
                    (candidate.residency.0, candidate.inflight.max(candidate.running + candidate.queued))
                };
                (0..candidates.len()).min_by_key(|index| load(&candidates[*index])).unwrap_or(0)
            }
        }
    }

    /// Tells the router what of the prompt each candidate has seen before.
    fn add_cached(&self, model: u64, facts: &Facts, candidates: &mut [Candidate]) {
        let nodes = candidates.iter().map(|candidate| candidate.node);
        let known = self.prefixes.matches(model, &facts.prefix_blocks, nodes);
        for (candidate, blocks) in candidates.iter_mut().zip(known) {
            candidate.cached_tokens = (blocks * facts.block_tokens).min(facts.prompt_tokens);
        }
    }

    /// Adds the nodes that could load the model, with what that would cost.
    fn add_cold(
        &self,
        view: &FleetView,
        model: &ModelView,
        now: u64,
        indices: &mut Vec<usize>,
        candidates: &mut Vec<Candidate>,
    ) {
        let policy = self.policy_now();
        for (index, replica) in model.replicas.iter().enumerate() {
            if replica.residency == Residency::RESIDENT || !may_become_resident(replica) {
                continue;
            }
            let room = Room::new(view, model, replica, &policy);
            if let Plan::Now(plan) = room.plan(&self.evictor, false) {
                indices.push(index);
                candidates.push(plan.candidate(replica.candidate(now)));
            }
        }
    }
}

/// Whether the model could come to serve there.
pub fn may_become_resident(replica: &Replica) -> bool {
    replica.node.kind == NodeKind::Neuron
        && replica.node.usable()
        && replica.node.gauge.breaker() != BreakerState::Open
}

/// A model nobody knows: gone for good only when every node has been heard.
fn unknown(view: &FleetView, name: &str) -> ApiError {
    if view.complete() {
        return ApiError::model_not_found(name);
    }
    let unheard: Vec<&str> = view
        .nodes
        .iter()
        .filter(|node| node.health == Health::Unknown)
        .map(|node| node.name.as_str())
        .collect();
    ApiError::new(
        ErrorKind::Unavailable,
        format!("the model '{name}' is not known yet: {} has not answered", unheard.join(", ")),
    )
    .with_code("fleet_incomplete")
    .with_retry_after(2)
}

/// A model that is known and cannot be served now.
fn nobody(model: &ModelView) -> ApiError {
    let stands = |replica: &Replica| {
        let why = match replica.node.health {
            Health::Down => "is down",
            Health::Unknown => "has not answered yet",
            _ if replica.node.draining() => "is draining",
            _ if replica.node.gauge.breaker() == BreakerState::Open => "failed repeatedly",
            _ => "could not serve it",
        };
        format!("{} {why}", replica.node.name)
    };
    let reasons: Vec<String> = model.replicas.iter().map(stands).collect();
    let reasons = if reasons.is_empty() { "no node may load it".to_owned() } else { reasons.join(", ") };
    ApiError::new(ErrorKind::Unavailable, format!("the model '{}' cannot be served now: {reasons}", model.id))
        .with_code("no_replica")
        .with_retry_after(2)
}
