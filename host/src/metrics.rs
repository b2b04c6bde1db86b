//! What this node counts and times, for Prometheus.
//!
//! One registry per process, made once and handed round; nothing is global. Histograms are exported with
//! buckets, so that percentiles can be computed over a fleet.

use prometheus::{
    Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Seconds, from a token on a fast GPU to a long queue.
const SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

/// Every metric of the engine side. Labels: `model`, and what the name says.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// `neuron_prompt_tokens_total{model,source}`; source is `computed` or `cached`.
    pub prompt_tokens: IntCounterVec,
    /// `neuron_generated_tokens_total{model}`.
    pub generated_tokens: IntCounterVec,
    /// `neuron_sequences_total{model,outcome}`; outcome is a finish reason or a kind of failure.
    pub sequences: IntCounterVec,
    /// `neuron_time_to_first_token_seconds{model}`, from submission.
    pub first_token: HistogramVec,
    /// `neuron_inter_token_seconds{model}`.
    pub inter_token: HistogramVec,
    /// `neuron_queue_seconds{model}`, from submission to admission.
    pub queue_time: HistogramVec,
    /// `neuron_inflight{model}`.
    pub inflight: IntGaugeVec,
    /// `neuron_queued{model}`.
    pub queued: IntGaugeVec,
    /// `neuron_running{model}`.
    pub running: IntGaugeVec,
    /// `neuron_state_bytes{model,kind}`; kind is `used`, `limit` or `prefix_cache`.
    pub state_bytes: IntGaugeVec,
    /// `neuron_resident_bytes{model}` of the worker.
    pub resident_bytes: IntGaugeVec,
    /// `neuron_prefix_cache_lookups_total{model,result}`; result is `hit` or a miss reason.
    pub prefix_lookups: IntCounterVec,
    /// `neuron_prefix_cache_entries{model}`.
    pub prefix_entries: IntGaugeVec,
    /// `neuron_plugin_sequences{model}`: what the plugin says it holds, read when the engine is idle; then it
    /// equals the cached prefixes, or a sequence was forgotten.
    pub plugin_sequences: IntGaugeVec,
    /// `neuron_preemptions{model}` since the load.
    pub preemptions: IntGaugeVec,
    /// `neuron_loads_total{model,outcome}`; outcome is `ready` or `failed`.
    pub loads: IntCounterVec,
    /// `neuron_load_seconds{model}`.
    pub load_time: HistogramVec,
    /// `neuron_worker_deaths_total{model,cause}`.
    pub worker_deaths: IntCounterVec,
    /// `neuron_model_state{model,state}`; 1 for the state a model is in.
    pub model_state: GaugeVec,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics, none counted yet.
    pub fn new() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntGaugeVec::new(Opts::new(name, help), labels))
        };
        let seconds = |name: &str, help: &str| {
            let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
            register(&registry, HistogramVec::new(options, &["model"]))
        };
        let model_state = Opts::new("neuron_model_state", "1 for the state a model is in.");
        Self {
            prompt_tokens: counter(
                "neuron_prompt_tokens_total",
                "Prompt tokens, computed or taken from the prefix cache.",
                &["model", "source"],
            ),
            generated_tokens: counter("neuron_generated_tokens_total", "Tokens generated.", &["model"]),
            sequences: counter("neuron_sequences_total", "Sequences that ended.", &["model", "outcome"]),
            first_token: seconds("neuron_time_to_first_token_seconds", "From submission to the first token."),
            inter_token: seconds("neuron_inter_token_seconds", "From one token of a sequence to the next."),
            queue_time: seconds("neuron_queue_seconds", "From submission to admission."),
            inflight: gauge("neuron_inflight", "Sequences submitted and not ended.", &["model"]),
            queued: gauge("neuron_queued", "Sequences that wait for a seat.", &["model"]),
            running: gauge("neuron_running", "Sequences in the batch.", &["model"]),
            state_bytes: gauge(
                "neuron_state_bytes",
                "Bytes of sequence state on one rank.",
                &["model", "kind"],
            ),
            resident_bytes: gauge("neuron_resident_bytes", "Resident memory of the worker.", &["model"]),
            prefix_lookups: counter(
                "neuron_prefix_cache_lookups_total",
                "Prompts looked up in the prefix cache, by what came of it.",
                &["model", "result"],
            ),
            prefix_entries: gauge("neuron_prefix_cache_entries", "Cached prefixes.", &["model"]),
            plugin_sequences: gauge(
                "neuron_plugin_sequences",
                "Sequences the plugin holds, cached prefixes included, as of when the engine was last idle.",
                &["model"],
            ),
            preemptions: gauge("neuron_preemptions", "Sequences set back for want of memory.", &["model"]),
            loads: counter("neuron_loads_total", "Loads that ended.", &["model", "outcome"]),
            load_time: seconds("neuron_load_seconds", "From the start of a load to readiness."),
            worker_deaths: counter(
                "neuron_worker_deaths_total",
                "Workers that ended unasked.",
                &["model", "cause"],
            ),
            model_state: register(&registry, GaugeVec::new(model_state, &["model", "state"])),
            registry,
        }
    }

    /// The registry, for metrics of other parts of this process.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Everything in the text format.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics could not be written");
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Forgets the gauges of a model that is gone; counters stay.
    pub fn forget(&self, model: &str) {
        // A gauge that was never set cannot be removed, which is as good.
        for gauge in [
            &self.inflight,
            &self.queued,
            &self.running,
            &self.resident_bytes,
            &self.preemptions,
            &self.prefix_entries,
            &self.plugin_sequences,
        ] {
            let _ = gauge.remove_label_values(&[model]);
        }
        for kind in ["used", "limit", "prefix_cache"] {
            let _ = self.state_bytes.remove_label_values(&[model, kind]);
        }
    }
}

/// # Panics
/// When a name is invalid or taken: a mistake in this file.
fn register<C: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<C>,
) -> C {
    let metric = metric.expect("the metrics of this file are well-formed");
    registry.register(Box::new(metric.clone())).expect("the metrics of this file have different names");
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_have_buckets() {
        let metrics = Metrics::new();
        metrics.first_token.with_label_values(&["m"]).observe(0.2);
        metrics.generated_tokens.with_label_values(&["m"]).inc_by(3);
        let text = metrics.render();
        assert!(
            text.contains("neuron_time_to_first_token_seconds_bucket{model=\"m\",le=\"0.25\"} 1"),
            "{text}"
        );
        assert!(text.contains("neuron_generated_tokens_total{model=\"m\"} 3"), "{text}");
    }
}
