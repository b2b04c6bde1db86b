//! Everything up to the launch: the whole run on a processor, and what is said where there is no GPU.

#[path = "../../loader/tests/built/mod.rs"]
mod built;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// A bundle with plugins built for this processor.
fn bundle(packages: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let plugins = folder.path().join("plugins");
    std::fs::create_dir(&plugins).expect("a folder for plugins");
    for package in packages {
        let library = built::library(package, &[]);
        std::fs::copy(library, plugins.join(format!("{package}.so"))).expect("copied");
    }
    symlink(built::root().join("fixtures"), folder.path().join("fixtures")).expect("a link");
    folder
}

fn run(bundle: &Path, arguments: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_gpu-check"))
        .arg("--bundle")
        .arg(bundle)
        .arg("--out")
        .arg(bundle.join("results"))
        .args(arguments)
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output, text)
}

#[test]
fn the_whole_run_is_green_on_a_processor() {
    let bundle = bundle(&["echo-plugin", "qwen3-plugin"]);
    let (output, text) = run(bundle.path(), &["--device", "cpu", "--threads", "1"]);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let results = std::fs::read_to_string(bundle.path().join("results/results.json")).expect("results");
    let results: Value = serde_json::from_str(&results).expect("JSON");
    let subjects: Vec<&str> = results["checks"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|check| check["subject"].as_str())
        .collect();
    for subject in [
        "echo",
        "tiny-qwen3-tied in f32",
        "tiny-qwen3-moe in bf16",
        "tiny-qwen3-tied in q8_0",
        "memory after unloading tiny-qwen3",
        "speed of tiny-qwen3",
    ] {
        assert!(subjects.contains(&subject), "{subject} is not among {subjects:?}");
    }
    assert!(results["measured"][0]["decode"][0]["tokens_per_s"].as_f64().is_some_and(|rate| rate > 0.0));
    let skipped = results["skipped"].to_string();
    assert!(skipped.contains("tiny-llama"), "what no plugin serves is listed: {skipped}");
}

#[test]
fn a_wrong_answer_is_not_green() {
    let bundle = bundle(&["qwen3-plugin"]);
    let fixture = bundle.path().join("spoilt/models/tiny-qwen3-tied");
    std::fs::create_dir_all(&fixture).expect("a folder");
    let original = built::root().join("fixtures/models/tiny-qwen3-tied");
    for entry in std::fs::read_dir(original).expect("a fixture").flatten() {
        std::fs::copy(entry.path(), fixture.join(entry.file_name())).expect("copied");
    }
    let path = fixture.join("expected.safetensors");
    let mut bytes = std::fs::read(&path).expect("recordings");
    let end = bytes.len();
    for at in (end / 4..end / 4 * 3).step_by(4) {
        bytes[at / 4 * 4 + 3] ^= 0x80; // signs of about half of all numbers
    }
    std::fs::write(&path, bytes).expect("spoilt");
    let fixtures = bundle.path().join("fixtures");
    std::fs::remove_file(&fixtures)
        .and_then(|()| symlink(bundle.path().join("spoilt"), &fixtures))
        .expect("a link");
    let (output, text) = run(bundle.path(), &["--device", "cpu", "--only", "goldens"]);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("FAIL tiny-qwen3-tied in f32"), "{text}");
}

#[test]
fn without_a_gpu_it_says_so_and_has_a_status_of_its_own() {
    if Path::new("/dev/nvidiactl").exists() {
        println!("skipped: this machine has an NVIDIA driver");
        return;
    }
    let bundle = bundle(&["echo-plugin"]);
    let (output, text) = run(bundle.path(), &[]);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("no device to run on: the NVIDIA management library does not answer"), "{text}");
}
