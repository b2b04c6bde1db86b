//! NVIDIA GPUs: finding the one the host means, and refusing what would compute garbage.
//!
//! The order of the questions matters. Launches of precompiled kernels are not checked by the libraries that make them, so
//! a build for another generation computes silently on memory nobody wrote. Compute capabilities are therefore compared
//! before a context exists. Nothing here panics where CUDA is missing: the libraries are opened when they
//! are first called, and a missing one answers with a status.

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{CudaDevice, Device};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use cudarc::driver::{DriverError, result};
use plugin_sdk::DeviceInfo;
use plugin_sdk::device::{generation_runs_on, ptx};

use super::{failure, libraries};
use crate::error::{Error, Result};

/// Oldest driver that loads kernels written by the tool chain of CUDA 13.0, as the driver numbers its versions.
const DRIVER_FLOOR: i32 = 13000;

/// The generation this build is for.
pub(crate) const BUILD: &str = match option_env!("NEURON_BUILD") {
    Some(build) => build,
    None => generation(match option_env!("CUDA_COMPUTE_CAP") {
        Some(capability) => capability,
        None => "",
    }),
};

/// Whether precompiled kernels also hold portable code, which the build says when it put it there.
const PORTABLE_KERNELS: bool = option_env!("NEURON_KERNEL_PTX").is_some();

/// The device runs this build's portable code alone.
static PORTABLE: AtomicBool = AtomicBool::new(false);

const fn generation(capability: &str) -> &str {
    match capability.as_bytes() {
        b"80" | b"86" | b"87" => "ampere",
        b"89" => "ada",
        b"90" | b"90a" => "hopper",
        _ => "blackwell",
    }
}

/// A device as the driver knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its number in this process.
    ordinal: usize,
    /// Domain, bus and device.
    bus: [i32; 3],
    /// `major * 10 + minor`.
    capability: u32,
}

/// Finds the device the host means and asks whether this build runs on it.
pub(crate) fn find(wanted: &DeviceInfo) -> Result<Found> {
    driver()?;
    if let Some(sentence) = libraries::runtime() {
        return Err(Error::Unsupported(sentence));
    }
    let found = choose(&devices()?, wanted)?;
    runs_on(BUILD, found.capability)?;
    Ok(found)
}

/// Opens the device on this thread, which alone uses it from now on.
pub(crate) fn open(wanted: &DeviceInfo) -> Result<Device> {
    let found = find(wanted)?;
    if !generation_runs_on(BUILD, found.capability) {
        PORTABLE.store(true, Ordering::Relaxed);
        tracing::warn!(
            build = BUILD,
            capability = found.capability,
            "there is no machine code for this GPU: the driver compiles the kernels when they are first used"
        );
    }
    let device = Device::new_cuda(found.ordinal).map_err(|error| match failure::kind(&error) {
        Some(known @ (Error::OutOfMemory(_) | Error::DeviceLost(_))) => known,
        _ => Error::Unsupported(format!(
            "the GPU cannot be used: {error}; libcublas.so.13, libcublasLt.so.13 and libcurand.so.10 must be found"
        )),
    })?;
    tracing::info!(libraries = libraries::in_use().join("; "), "CUDA is in use");
    if let Device::Cuda(cuda) = &device {
        // SAFETY: all work of a rank is put on the one stream of its thread, in order; nothing is used on another.
        unsafe { cuda.disable_event_tracking() };
    }
    Ok(device)
}

/// Refuses work that only precompiled kernels do, on a device they hold no code for.
pub(crate) fn precompiled(what: &str) -> Result<()> {
    if PORTABLE.load(Ordering::Relaxed) && !PORTABLE_KERNELS {
        return Err(Error::Unsupported(format!(
            "{what} needs machine code for this GPU, which build {BUILD} does not hold; \
             install the build made for it, or serve the model unquantized"
        )));
    }
    Ok(())
}

/// Waits for the stream; a kernel that failed is known afterwards.
pub(crate) fn finish(device: &CudaDevice) -> Result<()> {
    let failed = |error: DriverError| failure::driver(error.0, format!("the GPU did not finish: {error:?}"));
    device.cuda_stream().synchronize().map_err(failed)
}

/// Bytes free right now; 0 when the driver does not say.
pub(crate) fn free_bytes(device: &CudaDevice) -> u64 {
    device.cuda_stream().context().mem_get_info().map_or(0, |(free, _)| free as u64)
}

/// Starts the driver and asks how old it is.
fn driver() -> Result<()> {
    result::init().map_err(|DriverError(code)| {
        Error::Unsupported(libraries::driver().unwrap_or_else(|| no_driver(code)))
    })?;
    let mut version = 0;
    // SAFETY: the driver writes one number.
    let code = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    if code != CUresult::CUDA_SUCCESS {
        return Err(Error::Unsupported(no_driver(code)));
    }
    recent(version)
}

fn recent(version: i32) -> Result<()> {
    if version >= DRIVER_FLOOR {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "the NVIDIA driver (libcuda.so.1) supports CUDA {}.{}; this build needs 13.0: install driver 580 or later",
        version / 1000,
        version % 1000 / 10
    )))
}

fn no_driver(code: CUresult) -> String {
    let needed = "driver 580 or later is needed";
    match code {
        CUresult::CUDA_ERROR_NO_DEVICE => {
            format!("no CUDA driver or device: libcuda.so.1 was not found or shows no GPU; {needed}")
        }
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            format!("libcuda.so.1 is a stub, not a driver; {needed}")
        }
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            format!("libcuda.so.1 and the kernel's NVIDIA module are of different versions; reboot, {needed}")
        }
        other => format!("the NVIDIA driver (libcuda.so.1) does not start: {other:?}; {needed}"),
    }
}

fn devices() -> Result<Vec<Found>> {
    let failed =
        |error: DriverError| failure::driver(error.0, format!("the GPUs cannot be listed: {error:?}"));
    let count = result::device::get_count().map_err(failed)?;
    let describe = |ordinal: i32| -> Result<Found, DriverError> {
        let device = result::device::get(ordinal)?;
        // SAFETY: the device was just given out by the driver.
        let ask = |attribute| unsafe { result::device::get_attribute(device, attribute) };
        let major = ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        Ok(Found {
            ordinal: ordinal as usize,
            bus: [
                ask(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?,
                ask(Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?,
                ask(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?,
            ],
            capability: (10 * major + minor) as u32,
        })
    };
    (0..count).map(|ordinal| describe(ordinal).map_err(failed)).collect()
}

/// By PCI address where the host tells it, since numbers depend on the environment of a process; otherwise by number, if
/// what the host knows of that device is true of this one.
fn choose(devices: &[Found], wanted: &DeviceInfo) -> Result<Found> {
    let address = wanted.pci_address;
    let found = if address == 0 {
        devices
            .get(wanted.ordinal as usize)
            .filter(|found| wanted.compute_capability == 0 || found.capability == wanted.compute_capability)
    } else {
        let bus = [address >> 16, address >> 8 & 0xff, address >> 3 & 0x1f].map(|part| part as i32);
        devices.iter().find(|found| found.bus == bus)
    };
    found.copied().ok_or_else(|| {
        let place = match address {
            0 => format!("number {}", wanted.ordinal),
            _ => format!("{:04x}:{:02x}:{:02x}", address >> 16, address >> 8 & 0xff, address >> 3 & 0x1f),
        };
        Error::Unsupported(format!(
            "the GPU {place} of compute capability {}.{} is not among the {} that CUDA shows this process; \
             is it left out of CUDA_VISIBLE_DEVICES?",
            wanted.compute_capability / 10,
            wanted.compute_capability % 10,
            devices.len()
        ))
    })
}

fn runs_on(build: &str, capability: u32) -> Result<()> {
    let lowest = u32::from(ptx(build));
    if generation_runs_on(build, capability) || (lowest != 0 && lowest <= capability) {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "build {build} holds no code for compute capability {}.{}; install the build made for this GPU",
        capability / 10,
        capability % 10
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOX: [Found; 2] = [
        Found { ordinal: 0, bus: [0, 0x41, 0], capability: 90 },
        Found { ordinal: 1, bus: [1, 0x01, 3], capability: 86 },
    ];

    fn wanted(ordinal: u32, pci_address: u32, compute_capability: u32) -> DeviceInfo {
        let mut device = plugin_sdk::testing::options().device;
        (device.ordinal, device.pci_address, device.compute_capability) =
            (ordinal, pci_address, compute_capability);
        device
    }

    #[test]
    fn a_device_is_known_by_its_address_whatever_its_number() {
        let address = 1 << 16 | 0x01 << 8 | 3 << 3;
        assert_eq!(choose(&BOX, &wanted(0, address, 86)).unwrap(), BOX[1]);
        let gone = choose(&BOX, &wanted(0, address + (1 << 8), 86)).unwrap_err().to_string();
        assert!(gone.contains("0001:02:03") && gone.contains("CUDA_VISIBLE_DEVICES"), "{gone}");
    }

    #[test]
    fn without_an_address_the_number_must_fit_what_the_host_knows() {
        assert_eq!(choose(&BOX, &wanted(1, 0, 86)).unwrap(), BOX[1]);
        assert!(choose(&BOX, &wanted(1, 0, 90)).is_err());
        assert!(choose(&BOX, &wanted(2, 0, 90)).is_err());
    }

    #[test]
    fn every_refusal_is_a_sentence_with_a_remedy() {
        let old = recent(12080).unwrap_err().to_string();
        assert!(old.contains("12.8") && old.contains("13.0") && old.contains("580"), "{old}");
        assert!(recent(13000).is_ok());
        assert!(no_driver(CUresult::CUDA_ERROR_NO_DEVICE).contains("no CUDA driver or device"));
        let other = runs_on("hopper", 100).unwrap_err().to_string();
        assert!(other.contains("10.0") && other.contains("hopper"), "{other}");
        assert!(runs_on("ampere", 86).is_ok() && runs_on("blackwell", 121).is_ok());
    }
}
