//! Which device somebody means: `cpu`, `cuda-1`, `cuda-dev-1`, `1`, a UUID or its beginning, a PCI address.

use thiserror::Error;

use super::{Gpu, Gpus};

/// A device a request names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requested<'a> {
    /// The processor.
    Cpu,
    /// A GPU that can be used.
    Gpu(&'a Gpu),
}

/// A request names a device that cannot be had. Each is one sentence.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NoDevice {
    /// Nothing goes by that name.
    #[error("the device {name} is not here; there are {there}")]
    Unknown {
        /// As it was asked for.
        name: String,
        /// What there is instead, and why no GPU if none.
        there: String,
    },
    /// It is there but cannot be used.
    #[error("the device {name} ({what}) cannot be used: {fault}")]
    Unusable {
        /// As it was asked for.
        name: String,
        /// Its product name.
        what: String,
        /// Why.
        fault: String,
    },
    /// The beginning of several UUIDs.
    #[error("the device {name} may be {these}; write more of the UUID")]
    Ambiguous {
        /// As it was asked for.
        name: String,
        /// Which it may be.
        these: String,
    },
    /// Part of a GPU.
    #[error("the device {0} is a MIG instance; neuron computes on whole GPUs only")]
    Mig(String),
}

/// The device `name` stands for.
pub fn find<'a>(gpus: &'a Gpus, name: &str) -> Result<Requested<'a>, NoDevice> {
    if matches!(name, "cpu" | "cpu-0" | "cpu-dev-0") {
        return Ok(Requested::Cpu);
    }
    if name.starts_with("MIG-") {
        return Err(NoDevice::Mig(name.to_owned()));
    }
    let meant: Vec<&Gpu> = gpus.all.iter().filter(|gpu| is_called(gpu, name)).collect();
    match meant.as_slice() {
        [gpu] => match &gpu.fault {
            None => Ok(Requested::Gpu(gpu)),
            Some(fault) => Err(NoDevice::Unusable {
                name: name.to_owned(),
                what: gpu.name.clone(),
                fault: fault.clone(),
            }),
        },
        [] => Err(NoDevice::Unknown { name: name.to_owned(), there: there(gpus) }),
        several => Err(NoDevice::Ambiguous {
            name: name.to_owned(),
            these: several
                .iter()
                .map(|gpu| format!("{} ({})", gpu.id(), gpu.uuid))
                .collect::<Vec<_>>()
                .join(" or "),
        }),
    }
}

fn is_called(gpu: &Gpu, name: &str) -> bool {
    let number = name.strip_prefix("cuda-dev-").or_else(|| name.strip_prefix("cuda-")).unwrap_or(name);
    if let Ok(number) = number.parse::<u32>() {
        return gpu.number == number;
    }
    // The shortest beginning that says anything is longer than what all UUIDs begin with.
    let by_uuid = name.len() > "GPU-".len() && name.starts_with("GPU-") && gpu.uuid.starts_with(name);
    by_uuid || address(name).is_some_and(|address| address == gpu.bus)
}

fn there(gpus: &Gpus) -> String {
    let mut all = vec!["cpu-0".to_owned()];
    all.extend(gpus.all.iter().map(|gpu| format!("{} ({})", gpu.id(), gpu.name)));
    let mut text = all.join(", ");
    if let Some(fault) = &gpus.fault {
        text.push_str(&format!(" ({fault})"));
    }
    text
}

/// A PCI address as this crate writes it, `0000:01:00.0`: lower case, four digits of domain. `None` when
/// `text` is none.
pub(super) fn address(text: &str) -> Option<String> {
    let (front, function) = text.split_once('.').unwrap_or((text, "0"));
    let parts: Vec<&str> = front.split(':').collect();
    let (domain, bus, device) = match parts.as_slice() {
        [domain, bus, device] => (*domain, *bus, *device),
        [bus, device] => ("0", *bus, *device),
        _ => return None,
    };
    let hex = |text: &str| u32::from_str_radix(text, 16).ok();
    Some(format!("{:04x}:{:02x}:{:02x}.{:x}", hex(domain)?, hex(bus)?, hex(device)?, hex(function)?))
}

#[cfg(test)]
mod tests {
    use super::super::tests::mixed_box;
    use super::*;

    #[test]
    fn a_device_has_many_names() {
        let gpus = Gpus { all: mixed_box(), ..Gpus::default() };
        for name in ["cpu", "cpu-0", "cpu-dev-0"] {
            assert_eq!(find(&gpus, name), Ok(Requested::Cpu), "{name}");
        }
        let names = [
            "2",
            "cuda-2",
            "cuda-dev-2",
            "GPU-40900000-0000-0000-0000-000000000002",
            "GPU-40",
            "0000:21:00.0",
            "00000000:21:00.0",
            "21:00.0",
            "21:00",
        ];
        for name in names {
            assert_eq!(find(&gpus, name), Ok(Requested::Gpu(&gpus.all[2])), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_had_is_said_in_a_sentence() {
        let mut gpus = Gpus { all: mixed_box(), ..Gpus::default() };
        gpus.all[3].fault = Some("CUDA_VISIBLE_DEVICES=\"0\" hides it".into());
        let said = |name: &str| find(&gpus, name).unwrap_err().to_string();
        for (name, expected) in [
            (
                "cuda-9",
                "the device cuda-9 is not here; there are cpu-0, cuda-0 (NVIDIA GeForce RTX 2080), cuda-1",
            ),
            ("cuda-3", "the device cuda-3 (NVIDIA GeForce RTX 5090) cannot be used: CUDA_VISIBLE_DEVICES"),
            ("GPU-20", "the device GPU-20 may be cuda-0 (GPU-20800000"),
            ("GPU-", "the device GPU- is not here"),
            ("MIG-1", "the device MIG-1 is a MIG instance"),
            ("ff:00.0", "the device ff:00.0 is not here"),
            ("gpu", "the device gpu is not here"),
            ("", "the device  is not here"),
        ] {
            assert!(said(name).starts_with(expected), "{name}: {}", said(name));
        }
        let none = Gpus { fault: Some("no NVIDIA driver: it is not there".into()), ..Gpus::default() };
        let text = find(&none, "cuda-0").unwrap_err().to_string();
        assert_eq!(
            text,
            "the device cuda-0 is not here; there are cpu-0 (no NVIDIA driver: it is not there)"
        );
    }
}
