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
    /// Devices reachable without the host: one group for tensor parallelism.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<DeviceId>,
    /// Why it cannot be used, if it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
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
