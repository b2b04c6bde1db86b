//! What is written down about one request that reached a node.

use std::sync::Arc;
use std::time::Instant;

use crate::metrics::{End, Metrics, ReplicaMetrics};
use crate::proxy::observe::Tokens;
use crate::proxy::relay::Outcome;

/// Counts a request among those under way, until dropped.
pub struct Underway(Arc<Metrics>);

impl Underway {
    /// Counts one in.
    pub fn begin(metrics: &Arc<Metrics>) -> Self {
        metrics.inflight.inc();
        Self(Arc::clone(metrics))
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.inflight.dec();
    }
}

/// One request's entry in the books.
pub struct Account {
    request_id: String,
    handles: Arc<ReplicaMetrics>,
    started: Instant,
    first_token_s: Option<f64>,
    _underway: Underway,
}

impl Account {
    /// Opens the entry of a request that `started` then and was sent to a replica.
    pub fn open(request_id: String, handles: Arc<ReplicaMetrics>, started: Instant, underway: Underway) -> Self {
        Self { request_id, handles, started, first_token_s: None, _underway: underway }
    }

    /// The request's id.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// The first content came.
    pub fn first_token(&mut self, seconds: f64) {
        self.first_token_s = Some(seconds);
        self.handles.first_token.observe(seconds);
    }

    /// Tokens came so far apart.
    pub fn inter_token(&mut self, seconds: f64) {
        self.handles.inter_token.observe(seconds);
        if seconds > 0.0 {
            self.handles.tokens_per_second.observe(1.0 / seconds);
        }
    }

    /// The answer is over.
    pub fn answered(&mut self, tokens: Option<Tokens>, outcome: Outcome) {
        let tokens = tokens.unwrap_or_default();
        self.handles.prompt_tokens.inc_by(tokens.prompt);
        self.handles.cached_tokens.inc_by(tokens.cached);
        self.handles.completion_tokens.inc_by(tokens.completion);
        self.ended(match outcome {
            Outcome::Complete => End::Complete,
            Outcome::ClientGone => End::ClientGone,
            Outcome::UpstreamLost => End::UpstreamLost,
        });
    }

    /// The node said no.
    pub fn refused(&mut self) {
        self.ended(End::Refused);
    }

    fn ended(&mut self, end: End) {
        self.handles.duration.observe(self.started.elapsed().as_secs_f64());
        self.handles.ended(end);
    }
}
