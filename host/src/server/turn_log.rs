//! One line per request, however it ends.

use std::time::Instant;

use wire_api::ApiError;

use crate::generation::Turn;

/// Writes its line when it is dropped, so that a client that goes away is told of, too.
pub struct TurnLog {
    id: String,
    model: String,
    route: &'static str,
    stream: bool,
    started: Instant,
    first: Option<f64>,
    usage: (u64, u64, u64),
    miss_reason: &'static str,
    outcome: Option<String>,
}

impl TurnLog {
    /// A request that has just been read.
    pub fn new(id: &str, model: &str, route: &'static str, stream: bool) -> Self {
        Self {
            id: id.to_owned(),
            model: model.to_owned(),
            route,
            stream,
            started: Instant::now(),
            first: None,
            usage: (0, 0, 0),
            miss_reason: "",
            outcome: None,
        }
    }

    /// Something was said.
    pub fn spoke(&mut self) {
        if self.first.is_none() {
            self.first = Some(self.started.elapsed().as_secs_f64() * 1000.0);
        }
    }

    /// What the turn cost so far.
    pub fn count(&mut self, turn: &Turn) {
        let usage = turn.usage();
        self.usage = (usage.prompt_tokens, usage.cached_tokens(), usage.completion_tokens);
        self.miss_reason = turn.counts().miss_reason.map_or("", |reason| reason.as_str());
    }

    /// It is complete.
    pub fn done(&mut self) {
        self.outcome = Some("done".to_owned());
    }

    /// It failed.
    pub fn failed(&mut self, error: &ApiError) {
        self.outcome = Some(error.code.clone());
    }
}

impl Drop for TurnLog {
    fn drop(&mut self) {
        let (prompt_tokens, cached_tokens, completion_tokens) = self.usage;
        tracing::info!(
            request = self.id,
            model = self.model,
            route = self.route,
            stream = self.stream,
            outcome = self.outcome.as_deref().unwrap_or("client_gone"),
            prompt_tokens,
            cached_tokens,
            miss_reason = self.miss_reason,
            completion_tokens,
            first_token_ms = self.first.unwrap_or_default().round(),
            total_ms = (self.started.elapsed().as_secs_f64() * 1000.0).round(),
            "turn"
        );
    }
}
