//! The device of a run: what it is, what it holds, how much of it is in use.

use std::str::FromStr;

use nvml_wrapper::Nvml;
use plugin_loader::{DeviceInfo, DeviceKind, cpu_device};
use serde::Serialize;

/// A device as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The processor.
    Cpu,
    /// A GPU, by its number among those this process sees.
    Cuda(u32),
}

impl FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) => {
                number.parse().map(Self::Cuda).map_err(|_| format!("{number:?} is not the number of a GPU"))
            }
            _ => Err("a device is cpu, cuda or cuda:N".into()),
        }
    }
}

/// The device of a run.
#[derive(Debug, Serialize)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// `major.minor`; empty for a processor.
    pub capability: String,
    /// Version of the driver; empty for a processor.
    pub driver: String,
    /// As plugins see it.
    #[serde(skip)]
    pub info: DeviceInfo,
    /// Its memory in bytes.
    pub memory_bytes: u64,
    #[serde(skip)]
    gpu: Option<Gpu>,
}

#[derive(Debug)]
struct Gpu {
    nvml: Nvml,
    index: u32,
}

impl Asked {
    /// The device, or a sentence that says why there is none.
    pub fn look(self) -> Result<Found, String> {
        let Self::Cuda(ordinal) = self else { return Ok(processor()) };
        let nvml = Nvml::init().map_err(|error| {
            format!(
                "the NVIDIA management library does not answer ({error}); this machine has no NVIDIA driver, or \
                 this process may not use it"
            )
        })?;
        let index = visible(&nvml, ordinal)?;
        gpu(nvml, index, ordinal).map_err(|error| format!("GPU {index} does not answer: {error}"))
    }
}

fn processor() -> Found {
    let info = cpu_device();
    Found {
        name: "processor".into(),
        capability: String::new(),
        driver: String::new(),
        info,
        memory_bytes: info.total_bytes,
        gpu: None,
    }
}

/// The management library's number of the GPU that CUDA calls `ordinal`.
fn visible(nvml: &Nvml, ordinal: u32) -> Result<u32, String> {
    let count = nvml.device_count().map_err(|error| format!("the driver lists no GPUs: {error}"))?;
    let uuid = |index| nvml.device_by_index(index).and_then(|device| device.uuid()).unwrap_or_default();
    let uuids: Vec<String> = (0..count).map(uuid).collect();
    match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(listed) => pick(&listed, &uuids, ordinal),
        Err(_) if ordinal < count => Ok(ordinal),
        Err(_) => Err(format!("there is no GPU {ordinal}; the driver lists {count}")),
    }
}

/// The entry of `CUDA_VISIBLE_DEVICES` that `ordinal` stands for: a number, or the beginning of a UUID. What comes
/// after an entry that names nothing is not visible.
fn pick(listed: &str, uuids: &[String], ordinal: u32) -> Result<u32, String> {
    let known = |entry: &str| match entry.parse::<usize>() {
        Ok(index) => (index < uuids.len()).then_some(index),
        Err(_) => uuids.iter().position(|uuid| !entry.is_empty() && uuid.starts_with(entry)),
    };
    let visible: Vec<usize> = listed.split(',').map(str::trim).map_while(known).collect();
    let index = visible.get(ordinal as usize).ok_or_else(|| {
        format!(
            "CUDA_VISIBLE_DEVICES={listed} shows {} GPUs, and GPU {ordinal} is not one of them",
            visible.len()
        )
    })?;
    Ok(*index as u32)
}

fn gpu(nvml: Nvml, index: u32, ordinal: u32) -> Result<Found, nvml_wrapper::error::NvmlError> {
    let device = nvml.device_by_index(index)?;
    let capability = device.cuda_compute_capability()?;
    let memory = device.memory_info()?;
    let found = Found {
        name: device.name()?,
        capability: format!("{}.{}", capability.major, capability.minor),
        driver: nvml.sys_driver_version()?,
        info: DeviceInfo {
            kind: DeviceKind::CUDA,
            ordinal,
            compute_capability: (capability.major * 10 + capability.minor).max(0) as u32,
            driver: nvml.sys_cuda_driver_version()?.max(0) as u32,
            total_bytes: memory.total,
            free_bytes: memory.free,
            ..cpu_device()
        },
        memory_bytes: memory.total,
        gpu: None,
    };
    Ok(Found { gpu: Some(Gpu { nvml, index }), ..found })
}

impl Found {
    /// Whether it is a GPU.
    pub fn is_gpu(&self) -> bool {
        self.gpu.is_some()
    }

    /// One line for people.
    pub fn sentence(&self) -> String {
        let memory = self.memory_bytes as f64 / f64::from(1 << 30);
        if !self.is_gpu() {
            return format!("device: {} (x86-64-v{}), {memory:.0} GiB", self.name, self.info.cpu_level);
        }
        format!(
            "device: {}, compute capability {}, {memory:.0} GiB, driver {} (CUDA {}.{})",
            self.name,
            self.capability,
            self.driver,
            self.info.driver / 1000,
            self.info.driver % 1000 / 10
        )
    }

    /// Bytes in use: on a GPU by everybody, on the processor by this process.
    pub fn used_bytes(&self) -> u64 {
        match &self.gpu {
            Some(Gpu { nvml, index }) => {
                let memory = nvml.device_by_index(*index).and_then(|device| device.memory_info());
                memory.map_or(0, |memory| memory.used)
            }
            None => resident_bytes(),
        }
    }
}

/// Anonymous memory of this process: mapped files are the page cache's, and leave it when it likes.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_asked_for_by_name() {
        let cases = [
            ("cpu", Ok(Asked::Cpu)),
            ("cuda", Ok(Asked::Cuda(0))),
            ("cuda:3", Ok(Asked::Cuda(3))),
            ("cuda:x", Err(())),
            ("gpu", Err(())),
            ("", Err(())),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Asked>().map_err(drop), expected, "{text}");
        }
    }

    #[test]
    fn the_list_of_visible_devices_is_respected() {
        let uuids = ["GPU-aa11".to_owned(), "GPU-bb22".to_owned(), "GPU-cc33".to_owned()];
        let cases = [
            ("2,0", 0, Some(2)),
            ("2,0", 1, Some(0)),
            ("2,0", 2, None),
            ("GPU-bb", 0, Some(1)),
            ("0,7,1", 1, None), // 7 names nothing and hides what follows
            ("", 0, None),
            ("-1", 0, None),
        ];
        for (listed, ordinal, expected) in cases {
            assert_eq!(pick(listed, &uuids, ordinal).ok(), expected, "{listed:?} {ordinal}");
        }
    }

    #[test]
    fn a_processor_is_always_there_and_knows_what_it_uses() {
        let found = Asked::Cpu.look().expect("a processor");
        assert!(!found.is_gpu() && found.used_bytes() > 0, "{}", found.sentence());
    }
}
