//! Plugins of every released ABI version load into this host and work.
//!
//! `released/<ABI version>/` holds libraries as they were built then, for x86-64 Linux. They are added when a
//! version is released, never rebuilt, and dropped when the last host that honours their version is.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;

use plugin_loader::{
    HostServices, Level, LoadOptions, Plugin, Policy, RouteRequest, Row, Source, StepOutput, Want, descriptor,
};

fn versions() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/released");
    let mut versions: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the released plugins are there")
        .map(|entry| entry.expect("readable").path())
        .collect();
    versions.sort();
    assert!(!versions.is_empty(), "there is at least one released version");
    versions
}

fn open(path: &Path) -> Plugin {
    let services = HostServices::new(|_| {}, Level::OFF, 1);
    Plugin::open_under(path, &services, &Policy::anything()).unwrap_or_else(|refusal| panic!("{refusal}"))
}

#[test]
fn an_architecture_of_every_version_answers() {
    for version in versions() {
        let path = version.join("echo.so");
        let claimed = descriptor(&path).expect("a descriptor").abi;
        assert_eq!(Some(claimed.as_ref()), version.file_name(), "it is filed under its version");
        let source = Source { config: r#"{"model_type": "echo"}"#.into(), ..Source::default() };
        let mut model =
            open(&path).load(0, &source, &LoadOptions::default(), &mut |_, _, _| true).expect("it loads");
        let sequence = model.sequence_new().expect("room");
        let row = Row { sequence, position: 0, tokens: 0..3, want: Want::TOKEN, images: 0..0 };
        let mut output = StepOutput::default();
        model.step(&[row], &[7, 8, 9], &[], &AtomicU32::new(0), &mut output).expect("it steps");
        assert_eq!(output.token(0), Some(7), "{}", path.display());
        let forked = model.fork(sequence, 1).expect("it forks");
        assert_eq!((model.stats().sequences, model.sequence_bytes(forked)), (2, 8));
    }
}

#[test]
fn a_strategy_of_every_version_chooses() {
    for version in versions() {
        let plugin = open(&version.join("strategies.so"));
        let candidate = |node| plugin_loader::Candidate {
            node,
            residency: plugin_loader::Residency::RESIDENT,
            slots: 8,
            inflight: u32::from(node == 1),
            running: u32::from(node == 1),
            queued: 0,
            cached_tokens: 0,
            pending_prefill_tokens: 0,
            active_tokens: 0,
            prefill_tokens_per_s: 0.0,
            decode_tokens_per_s: 0.0,
            kv_used: 0.0,
            first_token_s: 0.0,
            inter_token_s: 0.0,
            weight: 1.0,
            metrics_age_ms: 0,
            load_s: 0.0,
            eviction_regret_s: 0.0,
            evictions: 0,
            priority_violation: 0,
            devices: 1,
            free_bytes: 0,
            total_bytes: 0,
            need_bytes: 0,
            reserved: [0; 4],
        };
        let router = plugin.create_router("least_inflight", "").expect("made");
        let decision =
            router.choose(&RouteRequest::default(), &[candidate(1), candidate(2)], true).expect("it chooses");
        assert_eq!(decision.index, 1, "{}", decision.explanation);
    }
}
