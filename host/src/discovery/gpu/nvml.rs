//! The driver's management library, opened at run time.
//!
//! The library is opened once and kept: starting it takes the driver long where no other process keeps it
//! awake. After an error that speaks of the driver itself it is dropped and opened anew at the next look, so
//! that a driver that was reloaded is found without a restart.

use std::sync::{Mutex, PoisonError};

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{cuda_driver_version_major, cuda_driver_version_minor};
use thiserror::Error;

use super::request::address;
use super::{Driver, Gpu};

/// Why the driver cannot be asked. Each is one sentence, with the remedy where there is one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum Missing {
    /// Most machines.
    #[error(
        "no NVIDIA driver: libnvidia-ml.so.1 cannot be opened; where there is a GPU, install NVIDIA's driver, and \
         pass the GPUs into a container with --gpus all"
    )]
    Library,
    /// The library is there, the kernel module is not.
    #[error("NVIDIA's kernel module is not loaded; try `modprobe nvidia`, and see what dmesg says of NVRM")]
    Module,
    /// The library was upgraded under a running module.
    #[error("NVIDIA's driver was upgraded, and its older kernel module still runs; restart the machine")]
    Mismatch,
    /// Device files are not readable.
    #[error("the user neuron runs as may not ask NVIDIA's driver; give it access to /dev/nvidia*")]
    Permission,
    /// Anything else.
    #[error("NVIDIA's driver does not answer: {0}")]
    Other(String),
}

impl From<NvmlError> for Missing {
    fn from(error: NvmlError) -> Self {
        match error {
            NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => Self::Library,
            NvmlError::DriverNotLoaded => Self::Module,
            NvmlError::LibRmVersionMismatch => Self::Mismatch,
            NvmlError::NoPermission => Self::Permission,
            other => Self::Other(other.to_string()),
        }
    }
}

/// The driver, and every GPU it shows, in PCI order.
pub(super) fn read() -> Result<(Driver, Vec<Gpu>), Missing> {
    static LIBRARY: Mutex<Option<Nvml>> = Mutex::new(None);
    let mut kept = LIBRARY.lock().unwrap_or_else(PoisonError::into_inner);
    let library = match kept.take() {
        Some(library) => library,
        None => Nvml::init()?,
    };
    let found = read_from(&library)?;
    *kept = Some(library);
    Ok(found)
}

fn read_from(library: &Nvml) -> Result<(Driver, Vec<Gpu>), NvmlError> {
    let cuda = library.sys_cuda_driver_version().unwrap_or(0);
    let driver = Driver {
        version: library.sys_driver_version()?,
        cuda: (cuda_driver_version_major(cuda) * 1000 + cuda_driver_version_minor(cuda) * 10) as u32,
    };
    // The library's own order is that of the PCI bus.
    let count = library.device_count()?;
    Ok((driver, (0..count).map(|number| card(library, number)).collect()))
}

/// One card. What it does not tell is 0 or absent; what makes it unusable is its fault.
fn card(library: &Nvml, number: u32) -> Gpu {
    let device = match library.device_by_index(number) {
        Ok(device) => device,
        Err(error) => {
            return Gpu {
                number,
                name: "NVIDIA GPU".into(),
                fault: Some(fault_of(&error)),
                ..Gpu::default()
            };
        }
    };
    let memory = device.memory_info();
    let capability = device.cuda_compute_capability();
    let fault = memory.as_ref().err().or(capability.as_ref().err()).map(fault_of);
    let with_mig = device.mig_mode().is_ok_and(|mode| mode.current != 0);
    let mig = with_mig.then(|| {
        format!(
            "it is split into MIG instances, which neuron does not use; `nvidia-smi -i {number} -mig 0` makes \
             it whole again"
        )
    });
    let processes = device.running_compute_processes().unwrap_or_default();
    // What the driver keeps for itself is in neither of the last two.
    let (total, free, used) = memory.map_or((0, 0, 0), |memory| (memory.total, memory.free, memory.used));
    Gpu {
        number,
        name: device.name().unwrap_or_else(|_| "NVIDIA GPU".into()),
        uuid: device.uuid().unwrap_or_default(),
        bus: device.pci_info().ok().and_then(|pci| address(&pci.bus_id)).unwrap_or_default(),
        compute_capability: capability.map_or(0, |found| (found.major * 10 + found.minor).max(0) as u32),
        total_bytes: total,
        free_bytes: free,
        others_bytes: used,
        temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
        processes: processes
            .into_iter()
            .map(|process| match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => (process.pid, Some(bytes)),
                UsedGpuMemory::Unavailable => (process.pid, None),
            })
            .collect(),
        fault: fault.or(mig),
        hidden: false,
    }
}

fn fault_of(error: &NvmlError) -> String {
    match error {
        NvmlError::GpuLost => "it has fallen off the bus; see what dmesg says of NVRM".into(),
        NvmlError::ResetRequired => "the driver wants it to be reset: `nvidia-smi --gpu-reset`".into(),
        NvmlError::NoPermission => "the user neuron runs as may not use it".into(),
        other => format!("the driver cannot tell about it: {other}"),
    }
}
