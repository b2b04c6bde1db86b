//! This machine's processor as a device.

use plugin_abi::arch::{DeviceInfo, DeviceKind};

/// The host processor: its x86-64 level, and the machine's memory in bytes (0 when unknown).
pub fn cpu_device() -> DeviceInfo {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |key: &str| {
        memory
            .lines()
            .find_map(|line| {
                line.strip_prefix(key)?.strip_prefix(':')?.split_whitespace().next()?.parse::<u64>().ok()
            })
            .map_or(0, |kib| kib * 1024)
    };
    DeviceInfo {
        kind: DeviceKind::CPU,
        ordinal: 0,
        compute_capability: 0,
        driver: 0,
        cpu_level: cpu_level(),
        pci_address: 0,
        total_bytes: bytes("MemTotal"),
        free_bytes: bytes("MemAvailable"),
    }
}

/// x86-64 level as the psABI defines it, 1 to 4.
#[cfg(target_arch = "x86_64")]
fn cpu_level() -> u32 {
    macro_rules! all {
        ($($feature:tt),+) => { $(std::is_x86_feature_detected!($feature))&&+ };
    }
    if !all!("cmpxchg16b", "popcnt", "sse3", "sse4.1", "sse4.2", "ssse3") {
        1
    } else if !all!("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe") {
        2
    } else if !all!("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl") {
        3
    } else {
        4
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_level() -> u32 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_memory_and_a_level() {
        let device = cpu_device();
        assert!(device.total_bytes > 1 << 20, "{device:?}");
        assert!(device.free_bytes <= device.total_bytes, "{device:?}");
        #[cfg(target_arch = "x86_64")]
        assert!((1..=4).contains(&device.cpu_level));
    }
}
