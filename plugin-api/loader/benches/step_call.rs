//! What one call through the boundary costs: a step that computes next to nothing, and a routing decision.
//!
//! The step feeds one token and wants nothing back, so nearly all of it is the way in and out: the handle's
//! bookkeeping, the call, the panic guard, the checks of the row. It must stay below a microsecond.

use std::hint::black_box;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::AtomicU32;

use criterion::{Criterion, criterion_group, criterion_main};
use plugin_loader::{HostServices, Level, LoadOptions, Plugin, Policy, Row, Source, StepOutput, Want};

/// The release build of the echo plugin.
fn echo() -> Plugin {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let output = Command::new(env!("CARGO"))
        .args([
            "build",
            "--release",
            "--quiet",
            "--message-format=json-render-diagnostics",
            "-p",
            "echo-plugin",
        ])
        .current_dir(root)
        .output()
        .expect("cargo runs");
    let path = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["kind"][0] == "cdylib")
        .find_map(|message| Some(PathBuf::from(message["filenames"][0].as_str()?)))
        .expect("cargo built the plugin");
    let services = HostServices::new(|_| {}, Level::OFF, 1);
    Plugin::open_under(&path, &services, &Policy::anything()).expect("echo opens")
}

fn step(criterion: &mut Criterion) {
    let source = Source {
        config: r#"{"model_type": "echo", "max_position_embeddings": 4000000000}"#.into(),
        ..Source::default()
    };
    let options = LoadOptions { max_context: u32::MAX, ..LoadOptions::default() };
    let mut model = echo().load(0, &source, &options, &mut |_, _, _| true).expect("echo loads");
    let cancel = AtomicU32::new(0);
    let mut output = StepOutput::default();
    for rows in [1u32, 64] {
        let sequences: Vec<_> = (0..rows).map(|_| model.sequence_new().expect("room")).collect();
        let tokens = vec![65; rows as usize];
        let mut batch: Vec<Row> = sequences
            .iter()
            .zip(0..)
            .map(|(&sequence, at)| Row {
                sequence,
                position: 0,
                tokens: at..at + 1,
                want: Want::NOTHING,
                images: 0..0,
            })
            .collect();
        criterion.bench_function(&format!("step of {rows} empty rows"), |bencher| {
            bencher.iter(|| {
                model.step(black_box(&batch), &tokens, &[], &cancel, &mut output).expect("fed");
                if batch[0].position == 1000 {
                    for row in &mut batch {
                        model.trim(row.sequence, 0).expect("any length");
                        row.position = 0;
                    }
                } else {
                    batch.iter_mut().for_each(|row| row.position += 1);
                }
            });
        });
    }
    criterion.bench_function("sequence_bytes, the smallest verb", |bencher| {
        let sequence = model.sequence_new().expect("room");
        bencher.iter(|| model.sequence_bytes(black_box(sequence)));
    });
}

criterion_group!(benches, step);
criterion_main!(benches);
