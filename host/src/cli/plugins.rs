//! `neuron plugins`: which plugins there are, which serve which device, and why others do not.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::{ConfigFile, log, table};
use crate::catalogue::{Catalogue, Chosen, DeviceReport, Snapshot, explain};
use crate::discovery::gpu::capability_text;
use crate::discovery::{self, Machine};
use crate::lifecycle::bytes;

/// The command's arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  neuron plugins
  neuron plugins --plugins ./target/plugins
  neuron plugins --json | jq -r '.refused[] | .reason'

This looks at the directories itself, as `neuron serve` would; no neuron has to run.")]
pub struct Options {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    file: ConfigFile,
}

/// Looks, and prints what there is.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    log::start_quietly();
    let config = options.file.load()?.config;
    let mut catalogue = config.plugins.catalogue_options()?;
    catalogue.probe_program = std::env::current_exe()?;
    let snapshot = scan(Catalogue::new(catalogue)).await;
    let machine = discovery::look();
    let reports = explain(&snapshot, &machine);
    if options.json {
        println!("{}", document(&snapshot, &machine, &reports));
    } else {
        print!("{}", picture(&snapshot, &machine, &reports));
    }
    Ok(())
}

/// One look at the directories.
pub(super) async fn scan(catalogue: Catalogue) -> Arc<Snapshot> {
    catalogue.refresh().await;
    catalogue.snapshot()
}

fn picture(snapshot: &Snapshot, machine: &Machine, reports: &[DeviceReport]) -> String {
    let mut text = String::new();
    for report in reports {
        text.push_str(&format!("{}  {}\n", report.id, title(report, machine)));
        match &report.fault {
            Some(fault) => text.push_str(&format!("  not used: {fault}\n")),
            None if report.served.is_empty() => {
                text.push_str("  nothing can be served: there is no usable plugin\n");
            }
            None => text.push_str(&table::columns(&rows(report))),
        }
    }
    for note in machine.gpus.fault.iter().chain(&machine.gpus.notes) {
        text.push_str(&format!("note  {note}\n"));
    }
    let refused: Vec<_> = snapshot.entries.iter().filter_map(|entry| entry.outcome.as_ref().err()).collect();
    if !refused.is_empty() {
        text.push_str("\nrefused\n");
        refused.iter().for_each(|refusal| text.push_str(&format!("  {refusal}\n")));
    }
    let doubted: Vec<_> = snapshot.entries.iter().filter_map(|entry| entry.manifest.as_ref().err()).collect();
    if !doubted.is_empty() {
        text.push_str("\nnot believed\n");
        doubted.iter().for_each(|why| text.push_str(&format!("  {why}\n")));
    }
    text.push_str("\nlooked for in\n");
    for directory in &snapshot.directories {
        let there = if directory.is_dir() { "" } else { "  (not there)" };
        text.push_str(&format!("  {}{there}\n", directory.display()));
    }
    text
}

/// What a device is, on one line.
fn title(report: &DeviceReport, machine: &Machine) -> String {
    let Some(gpu) = machine.gpus.all.iter().find(|gpu| gpu.id() == report.id) else {
        return format!("{} (cpu-v{})", report.name, machine.cpu.level);
    };
    if gpu.total_bytes == 0 {
        return gpu.name.clone();
    }
    let mut text = format!(
        "{} (compute capability {}, {} of {} free",
        gpu.name,
        capability_text(gpu.compute_capability),
        bytes(gpu.free_bytes),
        bytes(gpu.total_bytes)
    );
    if let Some(temperature) = gpu.temperature_celsius {
        text.push_str(&format!(", {temperature} °C"));
    }
    text.push_str(&format!(")  {}  {}", gpu.bus, gpu.uuid));
    text
}

fn rows(report: &DeviceReport) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for (name, chosen) in &report.served {
        let chosen = match chosen {
            Ok(chosen) => chosen,
            Err(error) => {
                rows.push(table::row([&format!("  {name}"), "-", "", &error.to_string(), ""]));
                continue;
            }
        };
        let path = chosen.path.display().to_string();
        rows.push(table::row([&format!("  {name}"), &chosen.build, &chosen.version, &path, &why(chosen)]));
        let others = chosen.considered.iter().filter(|considered| considered.path != chosen.path);
        rows.extend(others.map(|considered| {
            let path = format!("not {}", considered.path.display());
            table::row(["", "", "", &path, &considered.verdict.reason])
        }));
    }
    rows
}

/// Why a file was chosen, and whether its like has been seen to run.
fn why(chosen: &Chosen) -> String {
    let warned = chosen.warnings().into_iter().map(|warning| format!("warning: {warning}"));
    let mut text =
        warned.reduce(|all, next| format!("{all}; {next}")).unwrap_or_else(|| chosen.reason.clone());
    match chosen.hardware_runs.as_deref() {
        Some([]) if chosen.build.starts_with("cpu-") => {} // what tests run on every day
        Some([]) => text.push_str("; it has not run on any hardware yet"),
        Some(runs) => text.push_str(&format!("; it has run on {}", runs.join(", "))),
        None => {}
    }
    text
}

fn document(snapshot: &Snapshot, machine: &Machine, reports: &[DeviceReport]) -> serde_json::Value {
    let served: Vec<_> = reports
        .iter()
        .flat_map(|report| report.served.iter().map(move |(name, chosen)| (report, name, chosen)))
        .map(|(report, name, chosen)| match chosen {
            Ok(chosen) => json!({
                "architecture": name,
                "device": report.id,
                "path": chosen.path,
                "plugin": chosen.plugin,
                "build": chosen.build,
                "version": chosen.version,
                "fit": chosen.fit,
                "reason": chosen.reason,
                "warnings": chosen.warnings(),
                "hardware_runs": chosen.hardware_runs,
                "considered": chosen.considered,
            }),
            Err(error) => {
                json!({"architecture": name, "device": report.id, "path": null, "reason": error.to_string()})
            }
        })
        .collect();
    let refused: Vec<_> = snapshot
        .entries
        .iter()
        .filter_map(|entry| Some((entry.path.as_path(), entry.outcome.as_ref().err()?)))
        .map(|(path, refusal): (&Path, _)| json!({"path": path, "reason": refusal.to_string()}))
        .collect();
    let manifests: Vec<_> = snapshot
        .entries
        .iter()
        .filter_map(|entry| match &entry.manifest {
            Ok(manifest) => Some(json!({"path": entry.path, "manifest": manifest.as_ref()?})),
            Err(why) => Some(json!({"path": entry.path, "manifest": null, "reason": why})),
        })
        .collect();
    let devices: Vec<_> = reports
        .iter()
        .map(|report| json!({"device": report.id, "name": report.name, "fault": report.fault}))
        .collect();
    json!({
        "devices": devices,
        "gpus": machine.gpus,
        "served": served,
        "refused": refused,
        "manifests": manifests,
        "directories": snapshot.directories,
    })
}
