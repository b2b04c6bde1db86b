//! Which room may depend on which. The table is docs/ARCHITECTURE.md's, in a form that can be checked.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process;

/// What one of our crates may use: other crates of ours, and crates it must never see.
struct Room {
    name: &'static str,
    uses: &'static [&'static str],
    never: &'static [&'static str],
}

const GPU_AND_TENSORS: &[&str] = &["candle-core", "candle-nn", "cudarc"];
const NETWORK: &[&str] = &["tokio", "axum", "hyper", "reqwest"];

/// The house. Dev-dependencies are free: a test may stand in two rooms.
const ROOMS: &[Room] = &[
    Room { name: "plugin-abi", uses: &[], never: &["tokio", "serde", "libloading"] },
    Room { name: "plugin-sdk", uses: &["plugin-abi"], never: &["tokio", "libloading", "candle-core"] },
    Room { name: "plugin-loader", uses: &["plugin-abi"], never: GPU_AND_TENSORS },
    Room { name: "plugin-conformance", uses: &["plugin-abi", "plugin-loader"], never: GPU_AND_TENSORS },
    Room {
        name: "gpu-check",
        uses: &["plugin-loader"],
        never: &["candle-core", "candle-nn", "tokio", "plugin-sdk"],
    },
    Room { name: "wire-api", uses: &[], never: NETWORK },
    Room { name: "layers", uses: &["plugin-sdk"], never: NETWORK },
    Room { name: "golden", uses: &["plugin-sdk", "layers"], never: NETWORK },
    Room { name: "strategy-options", uses: &["plugin-sdk"], never: NETWORK },
    Room { name: "routers", uses: &["plugin-sdk", "strategy-options"], never: NETWORK },
    Room { name: "evictors", uses: &["plugin-sdk", "strategy-options"], never: NETWORK },
    Room {
        name: "neuron",
        uses: &["plugin-abi", "plugin-loader", "plugin-conformance", "wire-api"],
        never: &["candle-core", "candle-nn", "candle-transformers", "cudarc"],
    },
    Room {
        name: "cortex",
        uses: &["plugin-loader", "plugin-sdk", "wire-api", "routers", "evictors"],
        never: GPU_AND_TENSORS,
    },
    Room { name: "xtask", uses: &[], never: GPU_AND_TENSORS },
];

/// An architecture: `arch-<name>`, or a leaf that exports some.
const ARCHITECTURE: Room = Room { name: "arch-*", uses: &["plugin-sdk", "layers"], never: NETWORK };

/// One line per arrow that points the wrong way.
pub fn check() -> Result<Vec<String>> {
    let output = process::cargo().args(["metadata", "--format-version", "1", "--no-deps"]).output()?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let ours: BTreeMap<&str, &Value> =
        packages.iter().filter_map(|package| Some((package["name"].as_str()?, package))).collect();
    let mut violations = Vec::new();
    for (name, package) in &ours {
        for dependency in normal_dependencies(package) {
            if let Some(reason) = refuse(name, dependency, ours.contains_key(dependency)) {
                violations.push(format!("{name} must not depend on {dependency}: {reason}"));
            }
        }
    }
    Ok(violations)
}

fn normal_dependencies(package: &Value) -> impl Iterator<Item = &str> {
    package["dependencies"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|dependency| dependency["kind"].is_null())
        .filter_map(|dependency| dependency["name"].as_str())
}

fn refuse(name: &str, dependency: &str, ours: bool) -> Option<&'static str> {
    if name.ends_with("-plugin") {
        // A leaf only gathers; whatever it gathers is checked in its own room.
        return (NETWORK.contains(&dependency)).then_some("a leaf exports, nothing else");
    }
    let room = if name.starts_with("arch-") {
        &ARCHITECTURE
    } else {
        match ROOMS.iter().find(|room| room.name == name) {
            Some(room) => room,
            None => {
                return Some("the crate has no place in the house; give it one in xtask/src/tidy/arrows.rs");
            }
        }
    };
    if room.never.contains(&dependency) {
        return Some("this room must never see it");
    }
    (ours && !room.uses.contains(&dependency)).then_some("no arrow leads there")
}

#[cfg(test)]
mod tests {
    use super::refuse;

    #[test]
    fn arrows_point_one_way() {
        let cases = [
            ("neuron", "wire-api", true, true),
            ("neuron", "plugin-sdk", true, false),
            ("neuron", "candle-core", false, false),
            ("arch-llama", "layers", true, true),
            ("arch-llama", "arch-qwen3", true, false),
            ("arch-llama", "tokio", false, false),
            ("wire-api", "axum", false, false),
            ("layers", "arch-llama", true, false),
            ("cortex", "neuron", true, false),
            ("stranger", "serde", false, false),
        ];
        for (name, dependency, ours, allowed) in cases {
            assert_eq!(refuse(name, dependency, ours).is_none(), allowed, "{name} -> {dependency}");
        }
    }
}
