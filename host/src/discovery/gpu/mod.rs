//! NVIDIA GPUs, as the driver's management library shows them.
//!
//! A GPU is known by its UUID and its PCI address. Its number is the one `nvidia-smi` prints: a place in PCI
//! order that does not change with `CUDA_VISIBLE_DEVICES`; what that variable hides keeps its number and is
//! listed as hidden. Looking opens no context and holds no memory of a GPU: a process that serves others must
//! start where there is no driver, and must not stand in the way of one that goes.

mod nvml;
mod request;
mod visible;

use serde::{Deserialize, Serialize};

use super::read;

pub use request::{NoDevice, Requested, find};

/// A GPU the driver has found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Place in PCI order, as `nvidia-smi` numbers it.
    pub number: u32,
    /// Name the vendor gave it.
    pub name: String,
    /// UUID the driver gave it, `GPU-…`.
    pub uuid: String,
    /// PCI address, `0000:01:00.0`.
    pub bus: String,
    /// Compute capability as `major * 10 + minor`; 0 when unknown.
    pub compute_capability: u32,
    /// All memory.
    pub total_bytes: u64,
    /// Memory nobody uses.
    pub free_bytes: u64,
    /// Memory in use that is not known to be held by this process or its children.
    pub others_bytes: u64,
    /// Degrees Celsius, where the card says.
    pub temperature_celsius: Option<u32>,
    /// Processes that compute on it, with the memory they hold there where the driver tells.
    pub processes: Vec<(u32, Option<u64>)>,
    /// Why it cannot be used, in a sentence's second half; `None` when it can.
    pub fault: Option<String>,
    /// Nothing is wrong with it but that `CUDA_VISIBLE_DEVICES` leaves it to others.
    pub hidden: bool,
}

impl Gpu {
    /// What this node calls it: `cuda-0`.
    pub fn id(&self) -> String {
        format!("cuda-{}", self.number)
    }

    /// Its PCI address as the ABI writes it, `domain << 16 | bus << 8 | device << 3`; 0 when it is not known.
    pub fn pci_address(&self) -> u32 {
        let mut parts = self.bus.split([':', '.']).map(|part| u32::from_str_radix(part, 16).ok());
        match (parts.next().flatten(), parts.next().flatten(), parts.next().flatten()) {
            (Some(domain), Some(bus), Some(device)) => domain << 16 | bus << 8 | device << 3,
            _ => 0,
        }
    }

    /// Memory the process `pid` holds there, where the driver tells.
    pub fn held_by(&self, pid: u32) -> Option<u64> {
        self.processes.iter().find(|(holder, _)| *holder == pid).and_then(|(_, bytes)| *bytes)
    }
}

/// NVIDIA's driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Driver {
    /// Its version, e.g. `580.65.06`.
    pub version: String,
    /// Newest CUDA it knows, as `major * 1000 + minor * 10`; 0 when unknown.
    pub cuda: u32,
}

/// All GPUs at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpus {
    /// The driver; `None` when it could not be asked.
    pub driver: Option<Driver>,
    /// GPUs in PCI order, those that cannot be used included.
    pub all: Vec<Gpu>,
    /// Why no GPU can be looked at, in one sentence; `None` when they were.
    pub fault: Option<String>,
    /// What is odd about `CUDA_VISIBLE_DEVICES`, one sentence each.
    pub notes: Vec<String>,
}

impl Gpus {
    /// Those a model can be loaded on.
    pub fn usable(&self) -> impl Iterator<Item = &Gpu> {
        self.all.iter().filter(|gpu| gpu.fault.is_none())
    }
}

/// Looks for GPUs.
pub fn look() -> Gpus {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    match nvml::read() {
        Ok((driver, all)) => seen(driver, all, visible.as_deref()),
        Err(missing) => Gpus { fault: Some(missing.to_string()), ..Gpus::default() },
    }
}

/// What is left of the driver's list once memory of ours and hidden devices are told apart.
fn seen(driver: Driver, mut all: Vec<Gpu>, visible: Option<&str>) -> Gpus {
    for gpu in &mut all {
        let ours: u64 =
            gpu.processes.iter().filter(|(pid, _)| is_ours(*pid)).filter_map(|(_, bytes)| *bytes).sum();
        gpu.others_bytes = gpu.others_bytes.saturating_sub(ours);
    }
    let notes = visible::hide(&mut all, visible);
    Gpus { driver: Some(driver), all, fault: None, notes }
}

/// Whether a process is this one or a child of it.
fn is_ours(pid: u32) -> bool {
    let own = std::process::id();
    pid == own || {
        let status = read(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        parent.and_then(|text| text.trim().parse::<u32>().ok()) == Some(own)
    }
}

/// Version of the NVIDIA kernel module, e.g. `580.65.06`; `None` without one. It may be there while the
/// library is not: in a container that was not given the GPUs.
pub fn kernel_module() -> Option<String> {
    let text = read("/proc/driver/nvidia/version")?;
    let line = text.lines().find(|line| line.starts_with("NVRM version"))?;
    line.split_whitespace()
        .find(|word| word.chars().next().is_some_and(|c| c.is_ascii_digit()) && word.contains('.'))
        .map(str::to_owned)
}

/// `8.9` for 89.
pub fn capability_text(compute_capability: u32) -> String {
    format!("{}.{}", compute_capability / 10, compute_capability % 10)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A box with an old card, three generations of consumer cards and a server's.
    pub(crate) fn mixed_box() -> Vec<Gpu> {
        let cards = [
            ("NVIDIA GeForce RTX 2080", "GPU-20800000-0000-0000-0000-000000000000", 75, 8),
            ("NVIDIA GeForce RTX 3090", "GPU-30900000-0000-0000-0000-000000000001", 86, 24),
            ("NVIDIA GeForce RTX 4090", "GPU-40900000-0000-0000-0000-000000000002", 89, 24),
            ("NVIDIA GeForce RTX 5090", "GPU-50900000-0000-0000-0000-000000000003", 120, 32),
            ("NVIDIA H200", "GPU-20000000-0000-0000-0000-000000000004", 90, 141),
        ];
        let gpu = |(number, (name, uuid, compute_capability, gib)): (u32, (&str, &str, u32, u64))| Gpu {
            number,
            name: name.into(),
            uuid: uuid.into(),
            bus: format!("0000:{:02x}:00.0", number * 16 + 1),
            compute_capability,
            total_bytes: gib << 30,
            free_bytes: (gib << 30) - (1 << 29),
            others_bytes: 1 << 29,
            ..Gpu::default()
        };
        (0..).zip(cards).map(gpu).collect()
    }

    #[test]
    fn memory_of_children_is_not_others() {
        let mut all = mixed_box();
        let own = std::process::id();
        all[1].processes = vec![(own, Some(1 << 28)), (1, Some(1 << 27)), (own, None)];
        let driver = Driver { version: "580.65.06".into(), cuda: 13000 };
        let gpus = seen(driver, all, None);
        assert_eq!(gpus.all[1].others_bytes, (1 << 29) - (1 << 28));
        assert_eq!(gpus.all[2].others_bytes, 1 << 29);
        assert_eq!((gpus.all[1].held_by(1), gpus.all[1].held_by(own)), (Some(1 << 27), Some(1 << 28)));
        assert_eq!(gpus.usable().count(), 5);
        let at = |bus: &str| Gpu { bus: bus.into(), ..Gpu::default() }.pci_address();
        assert_eq!((at("0001:41:02.0"), at("0000:01:00.0"), at("")), (0x1_4110, 0x100, 0));
    }
}
