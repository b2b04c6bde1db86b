//! The architectures of this checkout keep every promise, each with its tiny checkpoints.

#[path = "../../loader/tests/built/mod.rs"]
mod built;

use std::path::PathBuf;

use plugin_conformance::{Options, check};

/// A leaf crate, and the checkpoints it is checked with.
const ARCHITECTURES: &[(&str, &[&str])] = &[
    ("llama-plugin", &["tiny-llama"]),
    ("qwen3-plugin", &["tiny-qwen3-tied", "tiny-qwen3-untied-sharded", "tiny-qwen3-moe"]),
    ("qwen3_5-plugin", &["tiny-qwen3_5-text", "tiny-qwen3_5-vl", "tiny-qwen3_5-moe-vl"]),
];

#[test]
fn every_architecture_keeps_its_promises() {
    for (package, checkpoints) in ARCHITECTURES {
        let library = built::library(package, &[]);
        for checkpoint in *checkpoints {
            let options = Options {
                model: Some(built::root().join("fixtures/models").join(checkpoint)),
                loads: 20,
                ..Options::new(PathBuf::from(env!("CARGO_BIN_EXE_plugin-check-child")))
            };
            let report = check(&library, &options);
            assert!(report.passed(), "{package} with {checkpoint}: {report}");
            let tried = report.findings.iter().any(|finding| finding.promise == "chunked-is-whole");
            assert!(tried, "{package} with {checkpoint}: {report}");
        }
    }
}
