//! The Grafana dashboard asks only for what cortex and neuron export: every name, and every label it sorts by.

use std::collections::BTreeSet;
use std::path::Path;

use cortex::metrics::{End, Metrics};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Words of an expression that name a metric of ours.
fn names(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("cortex_") || word.starts_with("neuron_"))
}

fn expressions(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str() {
                    Some(text) if matches!(name.as_str(), "expr" | "definition") => {
                        found.push(text.to_owned())
                    }
                    _ => expressions(value, found),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

/// Every series cortex exports once each of its metrics has been touched.
fn exported_by_cortex() -> String {
    let metrics = Metrics::default();
    let replica = metrics.replica((1, 2, 3), "m", "n", "k");
    replica.ended(End::Complete);
    metrics.refused.with_label_values(&["c"]).inc();
    metrics.retries.with_label_values(&["r"]).inc();
    metrics.hedges.with_label_values(&["sent"]).inc();
    metrics.waiting.with_label_values(&["m"]).inc();
    metrics.cold_starts.with_label_values(&["m"]).inc();
    metrics.cold_start.with_label_values(&["m"]).observe(1.0);
    metrics.loads.with_label_values(&["m", "n", "ready"]).inc();
    metrics.load_duration.with_label_values(&["m", "n"]).observe(1.0);
    metrics.evictions.with_label_values(&["n", "m", "r"]).inc();
    metrics.node_up.with_label_values(&["n"]).set(1);
    metrics.breaker_open.with_label_values(&["n"]).set(0);
    metrics.dropped_fields.with_label_values(&["f"]).inc();
    metrics.render()
}

/// The names neuron registers, from its source: cortex must not depend on the host.
fn exported_by_neuron() -> BTreeSet<String> {
    let source = std::fs::read_to_string(root().join("host/src/metrics.rs")).expect("neuron's metrics");
    let quoted = source.split('"').filter(|text| text.starts_with("neuron_"));
    quoted.filter(|text| names(text).next() == Some(text)).map(str::to_owned).collect()
}

#[test]
fn every_name_on_the_dashboard_is_exported() {
    let text = std::fs::read_to_string(root().join("packaging/grafana/cortex.json")).expect("the dashboard");
    let dashboard: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let mut asked = Vec::new();
    expressions(&dashboard, &mut asked);
    assert!(asked.len() > 20, "the dashboard asks for something");
    let ours = exported_by_cortex();
    let neurons = exported_by_neuron();
    let mut used = BTreeSet::new();
    for expression in &asked {
        for name in names(expression) {
            let base = name.strip_suffix("_bucket").unwrap_or(name);
            let known = if name.starts_with("cortex_") {
                ours.lines().any(|line| {
                    line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name} "))
                })
            } else {
                neurons.contains(base)
            };
            assert!(known, "{name} in {expression:?} is exported by nobody");
            used.insert(base.to_owned());
        }
    }
    // And the other way round: what cortex counts can be seen.
    for line in ours.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().expect("a name");
        assert!(used.contains(name), "{name} is exported and not on the dashboard");
    }
}
