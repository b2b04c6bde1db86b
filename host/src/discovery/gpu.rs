//! NVIDIA GPUs, from what the kernel driver shows in `/proc` and `/sys`.
//!
//! The supervisor neither links nor opens a CUDA library: it must start where there is none, and must never
//! hold a GPU context. Facts that only the driver's management library knows (free memory, compute
//! capability) are absent here.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::read;

/// A GPU the driver has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Ordinal in PCI bus order.
    pub ordinal: u32,
    /// Name the vendor gave it.
    pub name: String,
    /// PCI address.
    pub bus: String,
    /// UUID the driver gave it.
    pub uuid: String,
}

/// Looks for GPUs.
pub fn look() -> Vec<Gpu> {
    look_in(Path::new("/proc/driver/nvidia/gpus"))
}

fn look_in(folder: &Path) -> Vec<Gpu> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut buses: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    buses.sort();
    let gpus = buses.into_iter().zip(0..).filter_map(|(bus, ordinal)| {
        let text = read(folder.join(&bus).join("information"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
            line.unwrap_or_default().trim().to_owned()
        };
        Some(Gpu { ordinal, name: field("Model"), uuid: field("GPU UUID"), bus })
    });
    gpus.collect()
}

/// Version of the NVIDIA kernel driver, e.g. `580.65.06`; `None` without one.
pub fn driver_version() -> Option<String> {
    let text = read("/proc/driver/nvidia/version")?;
    let line = text.lines().find(|line| line.starts_with("NVRM version"))?;
    line.split_whitespace()
        .find(|word| word.chars().next().is_some_and(|c| c.is_ascii_digit()) && word.contains('.'))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_come_in_bus_order() {
        let folder = tempfile::tempdir().unwrap();
        for (bus, name) in [("0000:41:00.0", "B"), ("0000:01:00.0", "A")] {
            let gpu = folder.path().join(bus);
            std::fs::create_dir(&gpu).unwrap();
            let text = format!("Model: \t\t NVIDIA {name}\nGPU UUID: \t GPU-{name}\n");
            std::fs::write(gpu.join("information"), text).unwrap();
        }
        let gpus = look_in(folder.path());
        let seen: Vec<_> =
            gpus.iter().map(|gpu| (gpu.ordinal, gpu.name.as_str(), gpu.uuid.as_str())).collect();
        assert_eq!(seen, [(0, "NVIDIA A", "GPU-A"), (1, "NVIDIA B", "GPU-B")]);
        assert!(look_in(Path::new("/nonexistent")).is_empty());
    }
}
