//! Computing elsewhere than on the host's cores.
//!
//! There are two roads through the layers. On the *host* they run own kernels over weights in the mapped file. Off it, on
//! a GPU, weights and state are tensors that lie there, and a layer is put together from candle's and candle-nn's
//! operations; where those have nothing that would do, from a kernel of ours. Each part asks `on_host` which road its
//! input takes, so a model has neither word in it, and a better kernel replaces a piece of a part.
//!
//! What is off the host stays there: between a step's tokens and its logits nothing comes back, except where a part
//! says so.
//!
//! Tests can take the second road on the CPU, through candle's CPU operations (`compose`), which
//! proves its arithmetic where there is no GPU.

#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(feature = "cuda")]
pub(crate) mod failure;
#[cfg(feature = "cuda")]
pub(crate) mod gpu;
#[cfg(any(feature = "cuda", test))]
pub(crate) mod launch;
#[cfg(feature = "cuda")]
mod libraries;

use candle_core::{DType, Device};
use plugin_sdk::{DeviceInfo, DeviceKind, Options};

use crate::error::{Error, Result};

#[cfg(feature = "composed")]
static COMPOSED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// From now on everything in this process is put together from candle's operations, on the CPU as well.
#[cfg(feature = "composed")]
pub fn compose() {
    COMPOSED.store(true, std::sync::atomic::Ordering::Relaxed);
}

/// Do the own kernels of the CPU take what lies on this device?
pub(crate) fn on_host(device: &Device) -> bool {
    #[cfg(feature = "composed")]
    if COMPOSED.load(std::sync::atomic::Ordering::Relaxed) {
        return false;
    }
    device.is_cpu()
}

/// Where a sequence's keys and values are kept, and as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// In the host's memory, f32, in blocks of tokens.
    Host,
    /// Where the model computes, in the dtype of its activations.
    Placed(DType),
}

impl Kept {
    /// What a model loaded with these options will do.
    pub fn planned(options: &Options<'_>) -> Result<Self> {
        Ok(match options.device.kind {
            DeviceKind::CPU => Self::Host,
            _ => Self::Placed(dtype(options)?),
        })
    }
}

/// Dtype of the activations: what the options say, otherwise f32 on the CPU and bf16 on a GPU.
pub fn dtype(options: &Options<'_>) -> Result<DType> {
    Ok(match (options.dtype, options.device.kind) {
        ("" | "auto", DeviceKind::CPU) | ("f32", _) => DType::F32,
        ("" | "auto", _) | ("bf16", _) => DType::BF16,
        ("f16", _) => DType::F16,
        (other, _) => {
            return Err(Error::Unsupported(format!(
                "dtype `{other}` is unknown; use auto, f32, f16 or bf16"
            )));
        }
    })
}

/// Opens a device for one rank, on the thread that will use it. A GPU is checked as by [`probe`] first.
pub fn open(device: &DeviceInfo) -> Result<Device> {
    match device.kind {
        DeviceKind::CPU => Ok(Device::Cpu),
        #[cfg(feature = "cuda")]
        DeviceKind::CUDA => cuda::open(device),
        _ => Err(Error::Unsupported("this build computes on the CPU only".into())),
    }
}

/// Can this build compute on a device? Asked before anything is opened; the answer is a sentence when it cannot.
///
/// For a GPU: is there a driver, is it new enough, is the device there, and is there machine code for it?
pub fn probe(device: &DeviceInfo) -> plugin_sdk::Result<()> {
    match device.kind {
        DeviceKind::CPU => Ok(()),
        #[cfg(feature = "cuda")]
        DeviceKind::CUDA => Ok(cuda::find(device).map(|_| ())?),
        _ => Err(plugin_sdk::Error::Unsupported("this build computes on the CPU only".into())),
    }
}

/// Waits until a device has done everything it was given, and learns what went wrong.
pub(crate) fn finish(device: &Device) -> Result<()> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::finish(device),
        _ => Ok(()),
    }
}

/// Bytes free on a device right now; 0 for the CPU and when it cannot be told.
pub(crate) fn free_bytes(device: &Device) -> u64 {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::free_bytes(device),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_takes_bf16_unless_told_otherwise() {
        let mut options = plugin_sdk::testing::options();
        assert_eq!(Kept::planned(&options).unwrap(), Kept::Host);
        options.device.kind = DeviceKind::CUDA;
        assert_eq!(Kept::planned(&options).unwrap(), Kept::Placed(DType::BF16));
        options.dtype = "f32";
        assert_eq!(Kept::planned(&options).unwrap(), Kept::Placed(DType::F32));
        options.dtype = "int3";
        assert!(matches!(dtype(&options), Err(Error::Unsupported(_))));
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_for_the_cpu_says_so() {
        let mut device = plugin_sdk::testing::options().device;
        device.kind = DeviceKind::CUDA;
        assert!(probe(&device).unwrap_err().message().contains("CPU only"));
        assert!(matches!(open(&device), Err(Error::Unsupported(_))));
    }
}
