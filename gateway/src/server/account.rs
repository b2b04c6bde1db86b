//! What is written down about one request that reached a node.

use std::sync::Arc;
use std::time::Instant;

use crate::fleet::identity::unix_ms;
use crate::fleet::view::{ModelView, NodeView};
use crate::keys::Grant;

use crate::metrics::{End, Metrics, ReplicaMetrics};
use crate::proxy::observe::Tokens;
use crate::proxy::relay::Outcome;
use crate::telemetry::{Context, Span, Traced};
use crate::usage::{Ledger, Row};

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

/// Who asked for what, and where it went.
pub struct Party {
    /// The model.
    pub model: Arc<ModelView>,
    /// The node.
    pub node: Arc<NodeView>,
    /// The caller's permission; None when everybody may ask.
    pub grant: Option<Grant>,
    /// The route.
    pub route: &'static str,
    /// Its trace, where it has one.
    pub traced: Option<Traced>,
}

/// One request's entry in the books.
pub struct Account {
    request_id: String,
    handles: Arc<ReplicaMetrics>,
    ledger: Option<Arc<Ledger>>,
    party: Party,
    started: Instant,
    first_token_s: Option<f64>,
    _underway: Underway,
}

impl Account {
    /// Opens the entry of a request that `started` then and was sent to a replica.
    pub fn open(
        request_id: String,
        handles: Arc<ReplicaMetrics>,
        ledger: Option<Arc<Ledger>>,
        party: Party,
        started: Instant,
        underway: Underway,
    ) -> Self {
        Self { request_id, handles, ledger, party, started, first_token_s: None, _underway: underway }
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
        let end = match outcome {
            Outcome::Complete => End::Complete,
            Outcome::ClientGone => End::ClientGone,
            Outcome::UpstreamLost => End::UpstreamLost,
        };
        self.ended(end, tokens);
    }

    /// The node said no.
    pub fn refused(&mut self) {
        self.ended(End::Refused, Tokens::default());
    }

    fn ended(&mut self, end: End, tokens: Tokens) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.handles.duration.observe(seconds);
        self.handles.ended(end);
        let cost = self
            .party
            .model
            .spec
            .as_ref()
            .map_or(0.0, |spec| spec.cost.of(tokens.prompt, tokens.cached, tokens.completion));
        if let Some(grant) = &mut self.party.grant {
            grant.settle(tokens.prompt + tokens.completion, cost);
        }
        if let Some(traced) = self.party.traced.take() {
            traced.tracer.ended(self.span(traced.context, end, tokens, seconds));
        }
        if let Some(ledger) = &self.ledger {
            ledger.record(self.row(end, tokens, seconds, cost));
        }
    }

    fn span(&self, context: Context, end: End, tokens: Tokens, seconds: f64) -> Span {
        let end_ms = unix_ms() as f64;
        let start_ms = end_ms - seconds * 1000.0;
        Span {
            context,
            route: self.party.route,
            start_ms,
            end_ms,
            first_token_ms: self.first_token_s.map(|after| start_ms + after * 1000.0),
            outcome: end.as_str(),
            model: self.party.model.id.clone(),
            node: self.party.node.name.clone(),
            key: self.key_name(),
            tokens: [tokens.prompt, tokens.cached, tokens.completion],
        }
    }

    fn key_name(&self) -> String {
        self.party.grant.as_ref().map_or_else(String::new, |grant| grant.key().name.clone())
    }

    fn row(&self, end: End, tokens: Tokens, seconds: f64, cost: f64) -> Row {
        let total_ms = seconds * 1000.0;
        Row {
            request_id: self.request_id.clone(),
            unix_ms: unix_ms().saturating_sub(total_ms as u64),
            key: self.key_name(),
            model: self.party.model.id.clone(),
            node: self.party.node.name.clone(),
            route: self.party.route.into(),
            outcome: end.as_str().into(),
            prompt_tokens: tokens.prompt,
            cached_tokens: tokens.cached,
            completion_tokens: tokens.completion,
            first_token_ms: self.first_token_s.map(|seconds| seconds * 1000.0),
            total_ms,
            cost,
        }
    }
}
