//! `GET /discovery`: what a node is made of.

use serde::{Deserialize, Serialize};

use super::{BootId, DeviceId};

/// A node: its machine, devices and plugins. It does not say where it can be reached: whoever asks
/// knows that better.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Discovery {
    /// Name of the node, for people.
    pub name: String,
    /// This life of the process.
    pub boot_id: BootId,
    /// Version of neuron.
    pub version: String,
    /// The machine.
    pub host: Host,
    /// What models can be loaded on.
    pub devices: Vec<Device>,
    /// Architecture plugins found, refused ones included.
    pub plugins: Vec<Plugin>,
}

/// The machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// `linux`.
    pub operating_system: String,
    /// The processor, as it calls itself.
    pub cpu: String,
    /// x86-64 level, 1 to 4; absent elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_level: Option<u8>,
    /// Threads the process may use.
    pub threads: u32,
    /// Main memory.
    pub memory_total_bytes: u64,
    /// Main memory that could be had now.
    pub memory_free_bytes: u64,
    /// Instruction sets that matter for inference.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpu_features: Vec<String>,
    /// Physical cores of the machine.
    #[serde(skip_serializing_if = "is_zero")]
    pub physical_cores: u32,
    /// Logical processors the process may run on.
    #[serde(skip_serializing_if = "is_zero")]
    pub affinity: u32,
    /// Processors' worth of time the control group grants; absent without a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_quota: Option<f64>,
    /// Version of NVIDIA's driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Newest CUDA the driver knows, as `13.0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cuda: Option<String>,
    /// Why no GPU can be looked at, or what is odd about those that can; one sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What a device is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The processor and main memory.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// A device a model can be loaded on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// `cpu-0`, `cuda-1`.
    pub id: DeviceId,
    /// What it is.
    pub kind: DeviceKind,
    /// Its product name.
    pub name: String,
    /// UUID the driver gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// PCI address, `0000:01:00.0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_bus: Option<String>,
    /// Build of plugins that suits it best: `cpu-v3`, `hopper`.
    pub build: String,
    /// CUDA compute capability times ten (`89` is 8.9).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute_capability: Option<u32>,
    /// All memory.
    pub memory_total_bytes: u64,
    /// Memory that is free, as the device says, whoever uses the rest.
    pub memory_free_bytes: u64,
    /// Memory promised by leases and not used yet.
    pub memory_leased_bytes: u64,
    /// Memory of a GPU that is not known to be used by this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_others_bytes: Option<u64>,
    /// Degrees Celsius.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_celsius: Option<u32>,
    /// Devices reachable without the host: one group for tensor parallelism.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<DeviceId>,
    /// Why it cannot be used, if it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// What serves each architecture on it. Only in `GET /discovery`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub builds: Vec<DeviceBuild>,
}

/// What serves one architecture on one device, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceBuild {
    /// The architecture.
    pub architecture: String,
    /// Build of the chosen file; absent when none fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build: Option<String>,
    /// Version of its plugin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The chosen file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Why it was chosen, or why none is.
    pub reason: String,
    /// What to know before it is used, one sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Every candidate with its sentence, best first, the chosen one included.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub considered: Vec<ConsideredBuild>,
}

/// A plugin file that was considered for a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsideredBuild {
    /// The file.
    pub path: String,
    /// Its build.
    pub build: String,
    /// Whether it could compute there.
    pub fits: bool,
    /// Why, or why not.
    pub reason: String,
}

/// A plugin file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Plugin {
    /// Name of the plugin.
    pub name: String,
    /// Architectures it serves, as `model_type` spells them.
    pub architectures: Vec<String>,
    /// `cpu-v3`, `hopper`.
    pub build: String,
    /// Its own version.
    pub version: String,
    /// Version of the ABI it was built for.
    pub abi_version: String,
    /// The file.
    pub path: String,
    /// Whether it can be used.
    pub state: PluginState,
    /// One sentence saying why not, when refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Devices it is the best build for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub chosen_for: Vec<DeviceId>,
    /// What the manifest beside the file says; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<PluginManifest>,
}

/// What was found in a plugin file when it was built, and what it has run on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PluginManifest {
    /// Git revision.
    pub git: String,
    /// SHA-256 of the file, in hex.
    pub sha256: String,
    /// CUDA toolkit, as `13.0`; empty for CPU builds.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cuda: String,
    /// Machine code found inside, as `sm_90a`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sass: Vec<String>,
    /// PTX found inside, as `sm_80`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ptx: Vec<String>,
    /// Hardware it has run on; empty when it has not.
    pub hardware_runs: Vec<String>,
}

/// Whether a plugin can be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PluginState {
    /// It loads and fits a device here.
    Usable,
    /// It loads; no device here fits its build.
    Unsuitable,
    /// It does not load, or broke while it was examined.
    #[default]
    Refused,
}
