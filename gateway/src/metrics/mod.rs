//! What is counted, as Prometheus reads it.
//!
//! Handles are looked up once per model, node and caller and then kept: a request only adds to them.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

const SECONDS: [f64; 16] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0];
const INTER_TOKEN_SECONDS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0];
const TOKENS_PER_SECOND: [f64; 12] =
    [1.0, 2.0, 5.0, 10.0, 20.0, 35.0, 50.0, 75.0, 100.0, 150.0, 250.0, 500.0];
const LOAD_SECONDS: [f64; 11] = [0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 900.0];

const WHO: [&str; 3] = ["model", "node", "key"];

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    prompt_tokens: IntCounterVec,
    completion_tokens: IntCounterVec,
    cached_tokens: IntCounterVec,
    first_token: HistogramVec,
    inter_token: HistogramVec,
    duration: HistogramVec,
    tokens_per_second: HistogramVec,
    replicas: RwLock<HashMap<(u64, u64, u64), Arc<ReplicaMetrics>>>,
    /// Requests turned away by the gateway itself, by code.
    pub refused: IntCounterVec,
    /// Streams whose node broke off: gone on with by another, refused by it, or nobody there to go on.
    pub continuations: IntCounterVec,
    /// Requests sent a second time, by reason.
    pub retries: IntCounterVec,
    /// Requests under way.
    pub inflight: IntGauge,
    /// Requests waiting for a cold model, by model.
    pub waiting: IntGaugeVec,
    /// Requests that had to wait for a load, by model.
    pub cold_starts: IntCounterVec,
    /// Loads by model, node and outcome.
    pub loads: IntCounterVec,
    /// How long loads took, by model and node.
    pub load_duration: HistogramVec,
    /// Evictions by node, model and reason.
    pub evictions: IntCounterVec,
    /// Loads of a model within ten minutes of its eviction.
    pub reloads: IntCounter,
    /// Share of the loads of the last ten minutes that were reloads.
    pub thrash_ratio: Gauge,
    /// Whether the coordinator of several gateways answers.
    pub coordinator_up: IntGauge,
    /// Whether a node is up, by node.
    pub node_up: IntGaugeVec,
    /// Whether a node's breaker is open, by node.
    pub breaker_open: IntGaugeVec,
    /// Fields a translation had to drop, by name.
    pub dropped_fields: IntCounterVec,
    /// Requests sent to a second node because the first was slow: `sent`, and of these `won`.
    pub hedges: IntCounterVec,
    /// How long requests waited for a cold model, by model.
    pub cold_start: HistogramVec,
    /// Rows of the usage ledger that could not be kept.
    pub usage_rows_lost: IntGauge,
}

/// The handles of one model on one node for one caller.
pub struct ReplicaMetrics {
    complete: IntCounter,
    client_gone: IntCounter,
    upstream_lost: IntCounter,
    refused: IntCounter,
    /// Prompt tokens.
    pub prompt_tokens: IntCounter,
    /// Generated tokens.
    pub completion_tokens: IntCounter,
    /// Prompt tokens from a cache.
    pub cached_tokens: IntCounter,
    /// Seconds to the first content.
    pub first_token: Histogram,
    /// Seconds between tokens.
    pub inter_token: Histogram,
    /// Seconds from request to end.
    pub duration: Histogram,
    /// Generated tokens per second after the first.
    pub tokens_per_second: Histogram,
}

/// How a request that reached a node ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Whole.
    Complete,
    /// The client left.
    ClientGone,
    /// The node broke off.
    UpstreamLost,
    /// The node said no.
    Refused,
}

impl End {
    /// The word for people and machines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::ClientGone => "client_gone",
            Self::UpstreamLost => "upstream_lost",
            Self::Refused => "refused",
        }
    }
}

impl ReplicaMetrics {
    /// Counts a request's end.
    pub fn ended(&self, end: End) {
        match end {
            End::Complete => self.complete.inc(),
            End::ClientGone => self.client_gone.inc(),
            End::UpstreamLost => self.upstream_lost.inc(),
            End::Refused => self.refused.inc(),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new().expect("names and labels are fixed and valid")
    }
}

impl Metrics {
    fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<IntCounterVec> {
            let made = IntCounterVec::new(Opts::new(format!("cortex_{name}"), help), labels)?;
            registry.register(Box::new(made.clone()))?;
            Ok(made)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<IntGaugeVec> {
            let made = IntGaugeVec::new(Opts::new(format!("cortex_{name}"), help), labels)?;
            registry.register(Box::new(made.clone()))?;
            Ok(made)
        };
        let histograms =
            |name: &str, help: &str, labels: &[&str], buckets: &[f64]| -> prometheus::Result<HistogramVec> {
                let options = HistogramOpts::new(format!("cortex_{name}"), help).buckets(buckets.to_vec());
                let made = HistogramVec::new(options, labels)?;
                registry.register(Box::new(made.clone()))?;
                Ok(made)
            };
        let inflight = IntGauge::new("cortex_requests_inflight", "Requests under way")?;
        registry.register(Box::new(inflight.clone()))?;
        let reloads =
            IntCounter::new("cortex_reloads_total", "Loads of a model within ten minutes of its eviction")?;
        registry.register(Box::new(reloads.clone()))?;
        let thrash_ratio = Gauge::new(
            "cortex_thrash_ratio",
            "Share of the loads of the last ten minutes that were reloads",
        )?;
        registry.register(Box::new(thrash_ratio.clone()))?;
        let usage_rows_lost =
            IntGauge::new("cortex_usage_rows_lost", "Rows of the usage ledger that could not be kept")?;
        registry.register(Box::new(usage_rows_lost.clone()))?;
        let coordinator_up =
            IntGauge::new("cortex_coordinator_up", "Whether the coordinator of several gateways answers")?;
        registry.register(Box::new(coordinator_up.clone()))?;
        let with_end = ["model", "node", "key", "end"];
        Ok(Self {
            requests: counters(
                "requests_total",
                "Requests that reached a node, by how they ended",
                &with_end,
            )?,
            prompt_tokens: counters("prompt_tokens_total", "Prompt tokens, cached ones included", &WHO)?,
            completion_tokens: counters("completion_tokens_total", "Generated tokens", &WHO)?,
            cached_tokens: counters("cached_tokens_total", "Prompt tokens that came from a cache", &WHO)?,
            first_token: histograms(
                "first_token_seconds",
                "From the request to its first content",
                &WHO,
                &SECONDS,
            )?,
            inter_token: histograms(
                "inter_token_seconds",
                "Between two tokens, mean of a request",
                &WHO,
                &INTER_TOKEN_SECONDS,
            )?,
            duration: histograms(
                "request_seconds",
                "From the request to the end of its answer",
                &WHO,
                &SECONDS,
            )?,
            tokens_per_second: histograms(
                "tokens_per_second",
                "Generated tokens per second after the first, per request",
                &WHO,
                &TOKENS_PER_SECOND,
            )?,
            replicas: RwLock::default(),
            refused: counters("refused_total", "Requests turned away by the gateway, by code", &["code"])?,
            continuations: counters(
                "continuations_total",
                "Streams whose node broke off, by what became of them",
                &["outcome"],
            )?,
            retries: counters("retries_total", "Requests sent to another node, by reason", &["reason"])?,
            waiting: gauges("waiting_requests", "Requests waiting for a cold model", &["model"])?,
            cold_starts: counters("cold_starts_total", "Requests that had to wait for a load", &["model"])?,
            loads: counters("loads_total", "Loads, by outcome", &["model", "node", "outcome"])?,
            load_duration: histograms(
                "load_seconds",
                "From command to ready",
                &["model", "node"],
                &LOAD_SECONDS,
            )?,
            evictions: counters(
                "evictions_total",
                "Models unloaded, by reason",
                &["node", "model", "reason"],
            )?,
            node_up: gauges("node_up", "Whether the node answers", &["node"])?,
            breaker_open: gauges("breaker_open", "Whether requests to the node are held back", &["node"])?,
            dropped_fields: counters(
                "translation_lossy_fields_total",
                "Fields a translation had to drop",
                &["field"],
            )?,
            hedges: counters(
                "hedges_total",
                "Requests sent to a second node because the first was slow, and how many of those answered first",
                &["outcome"],
            )?,
            cold_start: histograms(
                "cold_start_seconds",
                "How long requests waited for a cold model",
                &["model"],
                &LOAD_SECONDS,
            )?,
            usage_rows_lost,
            inflight,
            reloads,
            thrash_ratio,
            coordinator_up,
            registry,
        })
    }

    /// The handles of one model on one node for one caller, named by stable hashes.
    pub fn replica(
        &self,
        hashes: (u64, u64, u64),
        model: &str,
        node: &str,
        key: &str,
    ) -> Arc<ReplicaMetrics> {
        if let Some(found) = self.replicas.read().unwrap_or_else(PoisonError::into_inner).get(&hashes) {
            return Arc::clone(found);
        }
        let who = [model, node, key];
        let end = |end: End| self.requests.with_label_values(&[model, node, key, end.as_str()]);
        let made = Arc::new(ReplicaMetrics {
            complete: end(End::Complete),
            client_gone: end(End::ClientGone),
            upstream_lost: end(End::UpstreamLost),
            refused: end(End::Refused),
            prompt_tokens: self.prompt_tokens.with_label_values(&who),
            completion_tokens: self.completion_tokens.with_label_values(&who),
            cached_tokens: self.cached_tokens.with_label_values(&who),
            first_token: self.first_token.with_label_values(&who),
            inter_token: self.inter_token.with_label_values(&who),
            duration: self.duration.with_label_values(&who),
            tokens_per_second: self.tokens_per_second.with_label_values(&who),
        });
        let mut replicas = self.replicas.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(replicas.entry(hashes).or_insert(made))
    }

    /// The text Prometheus reads.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        let families = self.registry.gather();
        TextEncoder::new().encode(&families, &mut text).expect("writing to memory cannot fail");
        String::from_utf8(text).expect("the text format is UTF-8")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_have_buckets() {
        let metrics = Metrics::default();
        let replica = metrics.replica((1, 2, 3), "m", "n", "");
        replica.first_token.observe(0.07);
        replica.ended(End::Complete);
        let text = metrics.render();
        assert!(
            text.contains("cortex_first_token_seconds_bucket{key=\"\",model=\"m\",node=\"n\",le=\"0.1\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("cortex_requests_total{end=\"complete\",key=\"\",model=\"m\",node=\"n\"} 1"),
            "{text}"
        );
        assert!(Arc::ptr_eq(&replica, &metrics.replica((1, 2, 3), "m", "n", "")));
    }
}
