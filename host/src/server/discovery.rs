//! `GET /discovery`: the machine, its devices and its plugins, in the words of the node API.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use plugin_loader::Manifest;
use wire_api::node::DeviceId;
use wire_api::node::discovery::{
    ConsideredBuild, Device, DeviceBuild, DeviceKind, Discovery, Host, Plugin, PluginManifest, PluginState,
};

use super::House;
use crate::catalogue::{Chosen, DeviceReport, Entry, NotServed, explain};
use crate::discovery::gpu::{Gpu, capability_text};
use crate::discovery::{self as machine, Machine};
use crate::lifecycle::Models;
use crate::worker::protocol::RankDevice;

/// `GET /discovery`.
pub async fn discovery(State(house): State<Arc<House>>) -> Json<Discovery> {
    let machine = look().await;
    let snapshot = house.models.catalogue().snapshot();
    let reports = explain(&snapshot, &machine);
    let devices = described(&reports, &machine, &house.models, true);
    let plugins = snapshot.entries.iter().map(|entry| plugin(entry, &reports)).collect();
    Json(Discovery {
        name: house.settings.name.clone(),
        boot_id: house.boot_id.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: host(&machine),
        devices,
        plugins,
    })
}

/// Every device with its memory as it is now, without what computes on it.
pub async fn devices(models: &Models) -> Vec<Device> {
    let machine = look().await;
    described(&explain(&models.catalogue().snapshot(), &machine), &machine, models, false)
}

/// Looks at the machine. A driver may take its time, so not on a thread that serves others.
async fn look() -> Machine {
    match tokio::task::spawn_blocking(machine::look).await {
        Ok(machine) => machine,
        // Only when the runtime ends.
        Err(_) => machine::look(),
    }
}

fn host(machine: &Machine) -> Host {
    let Machine { cpu, memory, gpus } = machine;
    Host {
        operating_system: std::env::consts::OS.to_owned(),
        cpu: cpu.model.clone(),
        cpu_level: u8::try_from(cpu.level).ok().filter(|level| *level > 0),
        threads: cpu.threads as u32,
        memory_total_bytes: memory.total_bytes,
        memory_free_bytes: memory.available_bytes,
        cpu_features: cpu.features.clone(),
        physical_cores: cpu.physical as u32,
        affinity: cpu.affinity.len() as u32,
        cpu_quota: cpu.quota,
        driver: gpus.driver.as_ref().map(|driver| driver.version.clone()),
        cuda: gpus
            .driver
            .as_ref()
            .map(|driver| format!("{}.{}", driver.cuda / 1000, driver.cuda % 1000 / 10)),
        notes: gpus.fault.iter().chain(&gpus.notes).cloned().collect(),
    }
}

/// GPUs come first: a planner that takes the first device that fits takes the better one.
fn described(reports: &[DeviceReport], machine: &Machine, models: &Models, with_builds: bool) -> Vec<Device> {
    let mut all: Vec<Device> = reports
        .iter()
        .map(|report| {
            let gpu = machine.gpus.all.iter().find(|gpu| gpu.id() == report.id);
            let mut device = match gpu {
                Some(gpu) => card(gpu),
                None => processor(machine, models),
            };
            device.id = DeviceId(report.id.clone());
            device.memory_leased_bytes = models.promised_bytes(&report.id);
            device.build = best_build(report);
            device.fault = fault(report);
            if with_builds {
                device.builds = report.served.iter().map(|(name, chosen)| build(name, chosen)).collect();
            }
            device
        })
        .collect();
    all.sort_by_key(|device| device.kind == DeviceKind::Cpu);
    all
}

fn processor(machine: &Machine, models: &Models) -> Device {
    let (memory_total_bytes, memory_free_bytes) = models.main_memory(&machine.memory);
    Device {
        kind: DeviceKind::Cpu,
        name: machine.cpu.model.clone(),
        memory_total_bytes,
        memory_free_bytes,
        ..Device::default()
    }
}

fn card(gpu: &Gpu) -> Device {
    let known = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Device {
        kind: DeviceKind::Cuda,
        name: gpu.name.clone(),
        uuid: known(&gpu.uuid),
        pci_bus: known(&gpu.bus),
        compute_capability: (gpu.compute_capability > 0).then_some(gpu.compute_capability),
        memory_total_bytes: gpu.total_bytes,
        memory_free_bytes: gpu.free_bytes,
        memory_others_bytes: Some(gpu.others_bytes),
        temperature_celsius: gpu.temperature_celsius,
        ..Device::default()
    }
}

/// The build a device was made for, whether it is installed or not.
fn best_build(report: &DeviceReport) -> String {
    match report.device {
        RankDevice::Cpu { level, .. } => format!("cpu-v{}", level.clamp(2, 4)),
        RankDevice::Cuda { compute_capability, .. } => match compute_capability {
            80..=88 => "ampere".to_owned(),
            89 => "ada".to_owned(),
            90..=99 => "hopper".to_owned(),
            100.. => "blackwell".to_owned(),
            _ => String::new(),
        },
    }
}

/// Why nothing can be loaded onto a device. The processor has no fault: a plugin for it may come any time, and a
/// node that has none yet is not broken.
fn fault(report: &DeviceReport) -> Option<String> {
    let unserved = || match report.device {
        RankDevice::Cuda { compute_capability, .. } if !report.serves_something() => Some(format!(
            "no plugin here computes on compute capability {}; `neuron plugins` says why",
            capability_text(compute_capability)
        )),
        _ => None,
    };
    report.fault.clone().or_else(unserved)
}

fn build(architecture: &str, chosen: &Result<Chosen, NotServed>) -> DeviceBuild {
    let architecture = architecture.to_owned();
    match chosen {
        Err(error) => DeviceBuild { architecture, reason: error.to_string(), ..DeviceBuild::default() },
        Ok(chosen) => DeviceBuild {
            architecture,
            build: Some(chosen.build.clone()),
            version: Some(chosen.version.clone()),
            path: Some(chosen.path.display().to_string()),
            reason: chosen.reason.clone(),
            warnings: chosen.warnings(),
            considered: chosen
                .considered
                .iter()
                .map(|considered| ConsideredBuild {
                    path: considered.path.display().to_string(),
                    build: considered.build.clone(),
                    fits: considered.verdict.fit.is_some(),
                    reason: considered.verdict.reason.clone(),
                })
                .collect(),
        },
    }
}

fn plugin(entry: &Entry, reports: &[DeviceReport]) -> Plugin {
    let descriptor = entry.descriptor.as_ref();
    let mut plugin = Plugin {
        path: entry.path.display().to_string(),
        name: descriptor.map(|descriptor| descriptor.name.clone()).unwrap_or_default(),
        build: descriptor.map(|descriptor| descriptor.build.clone()).unwrap_or_default(),
        version: descriptor.map(|descriptor| descriptor.version.clone()).unwrap_or_default(),
        abi_version: descriptor.map(|descriptor| descriptor.abi.clone()).unwrap_or_default(),
        manifest: entry.manifest.as_ref().ok().and_then(Option::as_ref).map(manifest),
        ..Plugin::default()
    };
    match &entry.outcome {
        Ok(report) => {
            let served = reports
                .iter()
                .flat_map(|report| report.served.iter().map(move |(_, chosen)| (report, chosen)));
            let chosen = served.filter_map(|(report, chosen)| Some((report, chosen.as_ref().ok()?)));
            let considered = |report: &DeviceReport, chosen: &Chosen| {
                (chosen.path == entry.path).then(|| DeviceId(report.id.clone()))
            };
            plugin.chosen_for = chosen.filter_map(|(report, chosen)| considered(report, chosen)).collect();
            plugin.chosen_for.dedup();
            plugin.state =
                if fits_any(entry, reports) { PluginState::Usable } else { PluginState::Unsuitable };
            plugin.architectures = report.architectures.iter().map(|info| info.name.clone()).collect();
            plugin.reason = entry.manifest.as_ref().err().cloned();
        }
        Err(refusal) => {
            plugin.state = PluginState::Refused;
            plugin.reason = Some(refusal.to_string());
        }
    }
    plugin
}

/// Whether any device here can compute with the file. One without an architecture (strategies) needs no device.
fn fits_any(entry: &Entry, reports: &[DeviceReport]) -> bool {
    let Some(contender) = entry.contender() else { return false };
    let no_architecture = entry.outcome.as_ref().is_ok_and(|report| report.architectures.is_empty());
    let sound = reports.iter().filter(|report| report.fault.is_none());
    let mut devices = sound.map(|report| crate::device::plugin::device_info(&report.device));
    no_architecture || devices.any(|device| plugin_loader::judge(&contender, &device).fit.is_some())
}

fn manifest(manifest: &Manifest) -> PluginManifest {
    PluginManifest {
        git: manifest.git.clone(),
        sha256: manifest.sha256.clone(),
        cuda: manifest.cuda.clone(),
        sass: manifest.sass.clone().unwrap_or_default(),
        ptx: manifest.ptx.clone().unwrap_or_default(),
        hardware_runs: manifest.hardware_runs.clone(),
    }
}
