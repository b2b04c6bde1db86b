//! Which device a build can compute on, decided from numbers alone, before anything touches the device.

use plugin_abi::arch::{DeviceInfo, DeviceKind};

use crate::error::{Error, Result};

/// Lowest x86-64 level a CPU build needs; `None` when `build` is not a CPU build.
pub fn cpu_level(build: &str) -> Option<u32> {
    match build {
        "cpu-v2" => Some(2),
        "cpu-v3" => Some(3),
        "cpu-v4" => Some(4),
        _ => None,
    }
}

/// Whether machine code of a GPU generation runs on a compute capability (`major * 10 + minor`).
///
/// Machine code runs upwards within its major version; `ampere` code also runs on Ada cards, `ada` code only
/// there, and architecture-specific `hopper` code nowhere else.
pub fn generation_runs_on(build: &str, compute_capability: u32) -> bool {
    match build {
        "ampere" => (80..=89).contains(&compute_capability),
        "ada" => compute_capability == 89,
        "hopper" => compute_capability == 90,
        "blackwell" => matches!(compute_capability, 100 | 103 | 120 | 121),
        _ => false,
    }
}

/// Compute capabilities a generation's build holds machine code for.
pub const fn machine_code(build: &str) -> &'static [u16] {
    match build.as_bytes() {
        b"ampere" => &[80],
        b"ada" => &[89],
        b"hopper" => &[90],
        b"blackwell" => &[100, 120],
        _ => &[],
    }
}

/// Lowest compute capability a generation's PTX can be compiled for; 0 when it is bound to one card.
pub const fn ptx(build: &str) -> u16 {
    match build.as_bytes() {
        b"ampere" => 80,
        b"ada" => 89,
        b"blackwell" => 100,
        _ => 0, // hopper's PTX names sm_90a, which loads on that card alone
    }
}

/// CUDA toolkit a build was compiled with, as `major * 1000 + minor * 10`; 0 for CPU builds.
pub const fn cuda(build: &str) -> u16 {
    match build.as_bytes() {
        b"ampere" | b"ada" | b"hopper" | b"blackwell" => 13000,
        _ => 0,
    }
}

/// The part of a plugin's descriptor that tells a host which GPUs the build is for; empty for CPU builds.
pub const fn descriptor_fields(build: &str) -> &'static str {
    match build.as_bytes() {
        b"ampere" => r#","machine_code":[80],"ptx":80,"cuda":13000"#,
        b"ada" => r#","machine_code":[89],"ptx":89,"cuda":13000"#,
        b"hopper" => r#","machine_code":[90],"ptx":0,"cuda":13000"#,
        b"blackwell" => r#","machine_code":[100,120],"ptx":100,"cuda":13000"#,
        _ => "",
    }
}

/// Whether the driver can compile a build's PTX for a compute capability.
fn ptx_runs_on(build: &str, compute_capability: u32) -> bool {
    let lowest = u32::from(ptx(build));
    lowest != 0 && lowest <= compute_capability
}

/// The refusal every plugin gives first: a build for the wrong device would compute garbage without an error.
pub fn fits(build: &str, device: &DeviceInfo) -> Result<()> {
    match (cpu_level(build), device.kind) {
        (Some(level), DeviceKind::CPU) if device.cpu_level >= level || device.cpu_level == 0 => Ok(()),
        (Some(level), DeviceKind::CPU) => Err(Error::Unsupported(format!(
            "build {build} needs an x86-64-v{level} processor; this one is x86-64-v{}",
            device.cpu_level
        ))),
        (Some(_), _) => Err(Error::Unsupported(format!("build {build} computes on the CPU only"))),
        (None, DeviceKind::CUDA)
            if generation_runs_on(build, device.compute_capability)
                || ptx_runs_on(build, device.compute_capability) =>
        {
            Ok(())
        }
        (None, DeviceKind::CUDA) => Err(Error::Unsupported(format!(
            "build {build} holds no machine code for compute capability {}.{}",
            device.compute_capability / 10,
            device.compute_capability % 10
        ))),
        (None, _) => Err(Error::Unsupported(format!("build {build} does not compute on the CPU"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(kind: DeviceKind, compute_capability: u32, cpu_level: u32) -> DeviceInfo {
        DeviceInfo {
            kind,
            ordinal: 0,
            compute_capability,
            driver: 13000,
            cpu_level,
            pci_address: 0,
            total_bytes: 0,
            free_bytes: 0,
        }
    }

    #[test]
    fn the_descriptor_says_what_the_tables_say() {
        for build in ["ampere", "ada", "hopper", "blackwell"] {
            let expected = format!(
                r#","machine_code":{:?},"ptx":{},"cuda":{}"#,
                machine_code(build),
                ptx(build),
                cuda(build)
            );
            assert_eq!(descriptor_fields(build), expected.replace(", ", ","), "{build}");
        }
    }

    #[test]
    fn every_build_fits_its_own_devices_only() {
        let cases = [
            ("cpu-v3", device(DeviceKind::CPU, 0, 3), true),
            ("cpu-v3", device(DeviceKind::CPU, 0, 2), false),
            ("cpu-v3", device(DeviceKind::CUDA, 90, 4), false),
            ("ampere", device(DeviceKind::CUDA, 86, 4), true),
            ("ampere", device(DeviceKind::CUDA, 89, 4), true),
            ("ampere", device(DeviceKind::CUDA, 75, 4), false),
            ("ampere", device(DeviceKind::CUDA, 90, 4), true), // through PTX
            ("ada", device(DeviceKind::CUDA, 86, 4), false),
            ("hopper", device(DeviceKind::CUDA, 90, 4), true),
            ("hopper", device(DeviceKind::CUDA, 100, 4), false), // its PTX is for one card
            ("blackwell", device(DeviceKind::CUDA, 120, 4), true),
            ("blackwell", device(DeviceKind::CPU, 0, 4), false),
        ];
        for (build, device, expected) in cases {
            assert_eq!(fits(build, &device).is_ok(), expected, "{build} on {:?}", device.kind);
        }
    }
}
