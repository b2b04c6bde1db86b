//! What this machine has: processors, memory, GPUs, as far as this process may use them.
//!
//! A container's quota and affinity mask count, not what the machine could do: thread pools sized for cores
//! that are not there make a model many times slower, and memory beyond a cgroup's limit is a kill, not an
//! error. Looking never changes anything and never fails; what cannot be found out is absent or 0.

mod cgroup;
pub mod cpu;
pub mod gpu;
pub mod memory;

use serde::{Deserialize, Serialize};

/// Everything found, for `/discovery` and for planning loads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Processors.
    pub cpu: cpu::Cpu,
    /// Memory.
    pub memory: memory::Memory,
    /// NVIDIA GPUs.
    pub gpus: gpu::Gpus,
}

/// Looks at the machine as it is now.
pub fn look() -> Machine {
    Machine { cpu: cpu::look(), memory: memory::look(), gpus: gpu::look() }
}

/// Whole text of a file, or nothing.
fn read(path: impl AsRef<std::path::Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}
