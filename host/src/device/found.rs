//! From what was discovered to what a rank computes on.

use crate::discovery::Machine;
use crate::discovery::gpu::{Driver, Gpu};
use crate::worker::protocol::RankDevice;

/// The processor, as a device.
pub fn cpu(machine: &Machine) -> RankDevice {
    RankDevice::Cpu {
        level: machine.cpu.level,
        total_bytes: machine.memory.total_bytes,
        free_bytes: machine.memory.available_bytes,
    }
}

/// A GPU, as a device. `ordinal` is its place among those the worker will see.
pub fn cuda(gpu: &Gpu, driver: Option<&Driver>, ordinal: u32) -> RankDevice {
    RankDevice::Cuda {
        number: gpu.number,
        ordinal,
        compute_capability: gpu.compute_capability,
        pci_address: gpu.pci_address(),
        driver: driver.map_or(0, |driver| driver.cuda),
        total_bytes: gpu.total_bytes,
        free_bytes: gpu.free_bytes,
    }
}
