//! `neuron plugins`: which plugins there are, which serve which device, and why others do not.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::{ConfigFile, log, table};
use crate::catalogue::{ArchitectureKey, Catalogue, Chosen, NotServed, Snapshot};
use crate::device::plugin::device_info;
use crate::discovery::{self, Machine};
use crate::worker::protocol::RankDevice;

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

/// What serves an architecture on a device.
type Served = BTreeMap<String, Result<Chosen, NotServed>>;

/// Looks, and prints what there is.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    log::start_quietly();
    let config = options.file.load()?.config;
    let mut catalogue = config.plugins.catalogue_options()?;
    catalogue.probe_program = std::env::current_exe()?;
    let snapshot = scan(Catalogue::new(catalogue)).await;
    let machine = discovery::look();
    let served = served(&snapshot, &machine);
    if options.json {
        println!("{}", document(&snapshot, &served));
    } else {
        print!("{}", picture(&snapshot, &machine, &served));
    }
    Ok(())
}

/// One look at the directories.
pub(super) async fn scan(catalogue: Catalogue) -> Arc<Snapshot> {
    catalogue.refresh().await;
    catalogue.snapshot()
}

/// What serves each architecture on the processor.
fn served(snapshot: &Snapshot, machine: &Machine) -> Served {
    let cpu = device_info(&RankDevice::Cpu {
        level: machine.cpu.level,
        total_bytes: machine.memory.total_bytes,
        free_bytes: machine.memory.available_bytes,
    });
    let reports = snapshot.entries.iter().filter_map(|entry| entry.outcome.as_ref().ok());
    let architectures = reports.flat_map(|report| &report.architectures);
    architectures
        .filter_map(|architecture| {
            let model_type = architecture.model_types.first().cloned().map(ArchitectureKey::ModelType);
            let gguf = || architecture.gguf_architectures.first().cloned().map(ArchitectureKey::Gguf);
            let key = model_type.or_else(gguf)?;
            Some((architecture.name.clone(), snapshot.choose(&key, &cpu)))
        })
        .collect()
}

fn picture(snapshot: &Snapshot, machine: &Machine, served: &Served) -> String {
    let mut text = format!("cpu-0  {} (cpu-v{})\n", machine.cpu.model, machine.cpu.level);
    if served.is_empty() {
        text.push_str("  nothing can be served: there is no usable plugin\n");
    }
    let mut rows = Vec::new();
    for (name, chosen) in served {
        match chosen {
            Ok(chosen) => {
                let path = chosen.path.display().to_string();
                rows.push(table::row([&format!("  {name}"), &chosen.build, &chosen.version, &path, ""]));
                let others = chosen.considered.iter().filter(|(path, _)| *path != chosen.path);
                rows.extend(
                    others
                        .map(|(path, why)| table::row(["", "", "", &format!("not {}", path.display()), why])),
                );
            }
            Err(error) => rows.push(table::row([&format!("  {name}"), "-", "", &error.to_string(), ""])),
        }
    }
    text.push_str(&table::columns(&rows));
    for gpu in &machine.gpus {
        text.push_str(&format!(
            "cuda-{}  {}\n  this build of neuron only loads onto the processor\n",
            gpu.ordinal, gpu.name
        ));
    }
    let refused: Vec<_> = snapshot.entries.iter().filter_map(|entry| entry.outcome.as_ref().err()).collect();
    if !refused.is_empty() {
        text.push_str("\nrefused\n");
        refused.iter().for_each(|refusal| text.push_str(&format!("  {refusal}\n")));
    }
    text.push_str("\nlooked for in\n");
    for directory in &snapshot.directories {
        let there = if directory.is_dir() { "" } else { "  (not there)" };
        text.push_str(&format!("  {}{there}\n", directory.display()));
    }
    text
}

fn document(snapshot: &Snapshot, served: &Served) -> serde_json::Value {
    let considered = |considered: &[(std::path::PathBuf, String)]| -> Vec<_> {
        considered.iter().map(|(path, reason)| json!({"path": path, "reason": reason})).collect()
    };
    let served: Vec<_> = served
        .iter()
        .map(|(name, chosen)| match chosen {
            Ok(chosen) => json!({
                "architecture": name,
                "device": "cpu-0",
                "path": chosen.path,
                "plugin": chosen.plugin,
                "build": chosen.build,
                "version": chosen.version,
                "considered": considered(&chosen.considered),
            }),
            Err(error) => {
                json!({"architecture": name, "device": "cpu-0", "path": null, "reason": error.to_string()})
            }
        })
        .collect();
    let refused: Vec<_> = snapshot
        .entries
        .iter()
        .filter_map(|entry| Some((entry.path.as_path(), entry.outcome.as_ref().err()?)))
        .map(|(path, refusal): (&Path, _)| json!({"path": path, "reason": refusal.to_string()}))
        .collect();
    json!({"served": served, "refused": refused, "directories": snapshot.directories})
}
