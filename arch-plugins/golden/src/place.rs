//! Where the tests compute: on the CPU, or on a GPU when told to.

use layers::device;
use layers::placement::Placement;
use layers::{DType, Device};
use plugin_sdk::DeviceKind;

/// A placement of one rank with activations of this dtype, on the device that `GOLDEN_DEVICE` names: `cpu`, or `cuda` for the
/// first GPU.
pub fn placement(dtype: DType) -> Placement {
    let device = match std::env::var("GOLDEN_DEVICE").as_deref() {
        Err(_) | Ok("cpu") => Device::Cpu,
        Ok("cuda") => {
            let mut info = plugin_sdk::testing::options().device;
            info.kind = DeviceKind::CUDA;
            device::open(&info).expect("the GPU can be used")
        }
        Ok(other) => panic!("GOLDEN_DEVICE is {other}; it may be cpu or cuda"),
    };
    Placement { device, dtype, ..Placement::cpu() }
}
