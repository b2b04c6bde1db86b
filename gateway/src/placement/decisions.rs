//! What was decided lately, and on which figures: enough to ask the strategy again and hear why.
//!
//! Strategies are pure, so nothing is written down for people while a request waits. The snapshot is
//! kept; when somebody asks, the same router is given the same snapshot and explains itself.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use plugin_loader::{Candidate, RouteRequest};

/// Routing decisions kept.
const ROUTES_KEPT: usize = 1024;
/// Changes of residency kept.
const CHANGES_KEPT: usize = 256;

/// A request as the router saw it; owned.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Stable hash of the conversation; 0 when unknown.
    pub session: u64,
    /// Counts routed requests.
    pub ordinal: u64,
    /// Random bits.
    pub seed: u64,
    /// Estimated tokens of the prompt.
    pub prompt_tokens: u32,
    /// Most tokens the answer may have.
    pub max_tokens: Option<u64>,
    /// Larger is more important.
    pub priority: i32,
    /// Chained hashes of the prompt's blocks.
    pub prefix_blocks: Vec<u64>,
    /// Tokens in one block.
    pub block_tokens: u32,
}

/// One routing decision.
#[derive(Debug, Clone)]
pub struct RouteRecord {
    /// The request it was for.
    pub request_id: String,
    /// The model's id.
    pub model: String,
    /// Stable hash of the model's id.
    pub model_hash: u64,
    /// The request.
    pub facts: Facts,
    /// Tokens the answer was expected to have.
    pub expected_tokens: f32,
    /// When, on the gateway's clock.
    pub now_ms: u64,
    /// When, for people.
    pub unix_ms: u64,
    /// What there was to choose from.
    pub candidates: Vec<Candidate>,
    /// What was chosen.
    pub chosen: usize,
}

impl RouteRecord {
    /// The request as the router is asked.
    pub fn request(&self) -> RouteRequest<'_> {
        request(&self.facts, self.model_hash, self.expected_tokens, self.now_ms)
    }
}

/// A request as the router is asked.
pub fn request(facts: &Facts, model: u64, expected_tokens: f32, now_ms: u64) -> RouteRequest<'_> {
    RouteRequest {
        model,
        session: facts.session,
        ordinal: facts.ordinal,
        seed: facts.seed,
        now_ms,
        prompt_tokens: facts.prompt_tokens,
        max_tokens: facts.max_tokens.map_or(u32::MAX, |limit| limit.min(u64::from(u32::MAX)) as u32),
        expected_tokens,
        priority: facts.priority,
        prefix_blocks: &facts.prefix_blocks,
        block_tokens: facts.block_tokens,
    }
}

/// A change of what is loaded where, or an attempt at one.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ChangeRecord {
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The node.
    pub node: String,
    /// The model.
    pub model: String,
    /// `load`, `evict`, `unload`, `idle`, `recycle`.
    pub action: &'static str,
    /// For which model, in an eviction.
    pub on_behalf_of: Option<String>,
    /// `done`, or the code of what went wrong.
    pub outcome: String,
    /// How long it took.
    pub seconds: f64,
    /// Why: what the evictor said of every resident, or the error.
    pub reason: String,
}

/// What was decided lately.
#[derive(Default)]
pub struct Decisions {
    routes: Mutex<VecDeque<RouteRecord>>,
    changes: Mutex<VecDeque<ChangeRecord>>,
}

impl Decisions {
    /// Keeps a routing decision.
    pub fn routed(&self, record: RouteRecord) {
        push(&self.routes, record, ROUTES_KEPT);
    }

    /// Keeps a change of residency.
    pub fn changed(&self, record: ChangeRecord) {
        push(&self.changes, record, CHANGES_KEPT);
    }

    /// The decisions for a request, oldest first: one per attempt.
    pub fn routes_of(&self, request_id: &str) -> Vec<RouteRecord> {
        let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        routes.iter().filter(|record| record.request_id == request_id).cloned().collect()
    }

    /// The last changes, newest first.
    pub fn changes(&self, most: usize) -> Vec<ChangeRecord> {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.iter().rev().take(most).cloned().collect()
    }
}

fn push<T>(queue: &Mutex<VecDeque<T>>, record: T, most: usize) {
    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    let oldest = if queue.len() >= most { queue.pop_front() } else { None };
    queue.push_back(record);
    drop(queue);
    // Freed outside the lock.
    drop(oldest);
}
