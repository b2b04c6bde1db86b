//! Where a model goes: which devices, and which build of its plugin on each.
//!
//! A request that names devices gets those or an error. One that names none gets a GPU that a build fits, the
//! one with most memory left, machine code before PTX. The processor takes what no GPU can take, and says why
//! none could: never in silence.

use plugin_loader::{DeviceInfo, Fit};
use wire_api::node::DeviceId;
use wire_api::node::models::Failure;

use super::error::{code, failure};
use crate::catalogue::{ArchitectureKey, Chosen, NotServed, Snapshot};
use crate::device::found;
use crate::device::plugin::device_info;
use crate::discovery::Machine;
use crate::discovery::gpu::{Gpu, Requested, find};
use crate::worker::protocol::RankDevice;

/// Where one rank goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Seat {
    /// The device.
    pub device: RankDevice,
    /// What the driver calls it; empty for the processor.
    pub uuid: String,
    /// The build it computes with.
    pub chosen: Chosen,
}

impl Seat {
    /// What the node calls the device.
    pub fn id(&self) -> DeviceId {
        DeviceId(self.device.id())
    }
}

/// Where a model goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    /// One per rank.
    pub seats: Vec<Seat>,
    /// What is not as good as it could be, one sentence each.
    pub warnings: Vec<String>,
}

/// Finds a place for a model of the architecture `key`. `promised` are the bytes of a device that others were
/// promised and do not use yet.
pub fn place(
    requested: &[DeviceId],
    machine: &Machine,
    snapshot: &Snapshot,
    key: &ArchitectureKey,
    promised: impl Fn(&str) -> u64,
) -> Result<Placement, Failure> {
    if requested.is_empty() {
        choose(machine, snapshot, key, promised)
    } else {
        obey(requested, machine, snapshot, key)
    }
}

/// The devices a request names, and nothing else.
fn obey(
    requested: &[DeviceId],
    machine: &Machine,
    snapshot: &Snapshot,
    key: &ArchitectureKey,
) -> Result<Placement, Failure> {
    let mut devices = Vec::new();
    for name in requested {
        let device = find(&machine.gpus, name.as_str())
            .map_err(|error| failure(code::NO_DEVICE, error.to_string(), false))?;
        if matches!(device, Requested::Gpu(_)) && devices.contains(&device) {
            let message =
                format!("the device {name} is named twice; each part of a model needs a GPU of its own");
            return Err(failure(code::INVALID, message, false));
        }
        devices.push(device);
    }
    let on_gpus = devices.iter().filter(|device| **device != Requested::Cpu).count();
    if on_gpus != 0 && on_gpus != devices.len() {
        let message = "a model is split over GPUs or over parts of the processor, not over both";
        return Err(failure(code::INVALID, message, false));
    }
    let found: Vec<(RankDevice, String)> = (0..)
        .zip(&devices)
        .map(|(ordinal, device)| match device {
            Requested::Cpu => (found::cpu(machine), String::new()),
            Requested::Gpu(gpu) => cuda(machine, gpu, ordinal),
        })
        .collect();
    let infos: Vec<DeviceInfo> = found.iter().map(|(device, _)| device_info(device)).collect();
    let chosen = snapshot.choose_ranks(key, &infos).map_err(|error| {
        let names: Vec<String> = devices.iter().map(|device| named(machine, device)).collect();
        no_plugin(&names.join(" and "), &error)
    })?;
    let seats: Vec<Seat> =
        found.into_iter().zip(chosen).map(|((device, uuid), chosen)| Seat { device, uuid, chosen }).collect();
    let warnings = warnings(&seats);
    Ok(Placement { seats, warnings })
}

/// The best device there is.
fn choose(
    machine: &Machine,
    snapshot: &Snapshot,
    key: &ArchitectureKey,
    promised: impl Fn(&str) -> u64,
) -> Result<Placement, Failure> {
    let mut best: Option<(Seat, (bool, u64))> = None;
    let mut without = Vec::new();
    for gpu in machine.gpus.all.iter().filter(|gpu| !gpu.hidden) {
        if let Some(fault) = &gpu.fault {
            without.push(format!("{} ({}) cannot be used: {fault}", gpu.id(), gpu.name));
            continue;
        }
        let (device, uuid) = cuda(machine, gpu, 0);
        match snapshot.choose(key, &device_info(&device)) {
            Ok(chosen) => {
                let left = gpu.free_bytes.saturating_sub(promised(&gpu.id()));
                let rank = (chosen.fit > Fit::Compiled, left);
                if best.as_ref().is_none_or(|(_, other)| rank > *other) {
                    best = Some((Seat { device, uuid, chosen }, rank));
                }
            }
            Err(NotServed::NoBuild { reasons, .. }) => {
                without.push(format!("{} ({}): {reasons}", gpu.id(), gpu.name));
            }
            Err(error) => return Err(no_plugin(&format!("{} ({})", gpu.id(), gpu.name), &error)),
        }
    }
    if let Some((seat, _)) = best {
        let seats = vec![seat];
        let warnings = warnings(&seats);
        return Ok(Placement { seats, warnings });
    }
    let device = found::cpu(machine);
    let chosen = snapshot.choose(key, &device_info(&device)).map_err(|error| {
        let gpus = if without.is_empty() { String::new() } else { format!("; {}", without.join("; ")) };
        failure(code::NO_PLUGIN, format!("{error}{gpus}"), false)
    })?;
    let mut warnings = chosen.warnings();
    if !without.is_empty() {
        warnings.push(format!("the processor computes, because no GPU can: {}", without.join("; ")));
    }
    Ok(Placement { seats: vec![Seat { device, uuid: String::new(), chosen }], warnings })
}

fn cuda(machine: &Machine, gpu: &Gpu, ordinal: u32) -> (RankDevice, String) {
    (found::cuda(gpu, machine.gpus.driver.as_ref(), ordinal), gpu.uuid.clone())
}

fn named(machine: &Machine, device: &Requested<'_>) -> String {
    match device {
        Requested::Cpu => format!("cpu-0 ({})", machine.cpu.model),
        Requested::Gpu(gpu) => format!("{} ({})", gpu.id(), gpu.name),
    }
}

fn no_plugin(devices: &str, error: &NotServed) -> Failure {
    let message = match error {
        // Says nothing of devices.
        NotServed::Unknown { .. } => error.to_string(),
        _ => format!("{devices}: {error}"),
    };
    failure(code::NO_PLUGIN, message, false)
}

fn warnings(seats: &[Seat]) -> Vec<String> {
    let compiled: Vec<&Seat> = seats.iter().filter(|seat| seat.chosen.fit == Fit::Compiled).collect();
    match (seats, compiled.as_slice()) {
        ([seat], _) => {
            seat.chosen.warnings().into_iter().map(|warning| format!("{}: {warning}", seat.id())).collect()
        }
        (_, []) => Vec::new(),
        (_, [first, ..]) => {
            let names: Vec<String> = compiled.iter().map(|seat| seat.device.id()).collect();
            vec![format!(
                "no build holds machine code for all of these GPUs: the driver compiles {} for {}; the first load takes \
                 minutes",
                first.chosen.build,
                names.join(" and ")
            )]
        }
    }
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
