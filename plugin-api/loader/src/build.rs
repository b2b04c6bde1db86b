//! Which of several builds of a plugin computes best on a device.
//!
//! The choice is total and explainable: every candidate gets a sentence, and the order depends on nothing but
//! the candidates and the device.

use std::cmp::Reverse;
use std::path::PathBuf;

use plugin_abi::arch::{DeviceInfo, DeviceKind};
use semver::Version;
use serde::{Deserialize, Serialize};

use crate::descriptor::Descriptor;

/// What can be said of one build on one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildVerdict {
    /// Larger is better; `None` when it cannot run there.
    pub score: Option<u32>,
    /// Why, in one sentence.
    pub reason: String,
}

/// A file that competes for a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contender {
    /// The file.
    pub path: PathBuf,
    /// What it claims to be.
    pub descriptor: Descriptor,
}

/// Which build was chosen for a device, and what was said of each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The chosen file; `None` when no build can run there.
    pub chosen: Option<PathBuf>,
    /// Every candidate with its sentence, best first.
    pub considered: Vec<(PathBuf, String)>,
}

/// Judges one build for one device: machine code of the very generation before that of an older one of the same
/// major version, before PTX that the driver compiles; the highest CPU level the processor has.
pub fn judge(descriptor: &Descriptor, device: &DeviceInfo) -> BuildVerdict {
    let build = &descriptor.build;
    match (cpu_level(build), device.kind) {
        (Some(level), DeviceKind::CPU) => judge_cpu(build, level, device.cpu_level),
        (Some(_), _) => no(format!("{build} computes on the CPU only")),
        (None, DeviceKind::CUDA) => judge_cuda(descriptor, device),
        (None, _) => no(format!("{build} does not compute on the CPU")),
    }
}

fn yes(score: u32, reason: String) -> BuildVerdict {
    BuildVerdict { score: Some(score), reason }
}

fn no(reason: String) -> BuildVerdict {
    BuildVerdict { score: None, reason }
}

fn cpu_level(build: &str) -> Option<u32> {
    build.strip_prefix("cpu-v")?.parse().ok()
}

fn judge_cpu(build: &str, level: u32, processor: u32) -> BuildVerdict {
    if level > processor {
        return no(format!("{build} needs an x86-64-v{level} processor; this one is x86-64-v{processor}"));
    }
    yes(100 + level, format!("{build} runs on this x86-64-v{processor} processor"))
}

fn judge_cuda(descriptor: &Descriptor, device: &DeviceInfo) -> BuildVerdict {
    let Descriptor { build, machine_code, ptx, cuda, .. } = descriptor;
    let capability = device.compute_capability;
    let name = format!("{}.{}", capability / 10, capability % 10);
    if device.driver != 0 && u32::from(*cuda) / 1000 > device.driver / 1000 {
        return no(format!(
            "{build} was compiled with CUDA {}.{}; the driver only knows {}.{}",
            cuda / 1000,
            cuda % 1000 / 10,
            device.driver / 1000,
            device.driver % 1000 / 10
        ));
    }
    let best = machine_code
        .iter()
        .map(|&code| u32::from(code))
        .filter(|code| code / 10 == capability / 10 && code % 10 <= capability % 10)
        .max();
    match best {
        Some(code) if code == capability => {
            yes(300, format!("{build} holds machine code for compute capability {name}"))
        }
        Some(code) => yes(
            200 + code % 10,
            format!("{build} holds machine code for {}.{}, which runs on {name}", code / 10, code % 10),
        ),
        None if *ptx != 0 && u32::from(*ptx) <= capability => yes(
            100,
            format!("{build} holds PTX that the driver can compile for {name}; the first load is slow"),
        ),
        None => no(format!("{build} holds no machine code for compute capability {name}")),
    }
}

/// Chooses the best build for a device: by score, then the newer version, then the place in `contenders`.
pub fn choose_build(contenders: &[Contender], device: &DeviceInfo) -> Choice {
    let mut ranked: Vec<_> = contenders
        .iter()
        .enumerate()
        .map(|(place, contender)| {
            let verdict = judge(&contender.descriptor, device);
            let version = Version::parse(&contender.descriptor.version).ok();
            (Reverse((verdict.score, version)), place, verdict, contender)
        })
        .collect();
    ranked.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    let chosen = ranked.first().filter(|best| best.2.score.is_some()).map(|best| best.3.path.clone());
    let considered =
        ranked.into_iter().map(|(_, _, verdict, contender)| (contender.path.clone(), verdict.reason));
    Choice { chosen, considered: considered.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contender(file: &str, build: &str, machine_code: &[u16], ptx: u16, version: &str) -> Contender {
        let descriptor = Descriptor {
            abi: "1.0.0".into(),
            name: "x".into(),
            version: version.into(),
            build: build.into(),
            git: String::new(),
            panic: "unwind".into(),
            machine_code: machine_code.to_vec(),
            ptx,
            cuda: if machine_code.is_empty() { 0 } else { 13000 },
        };
        Contender { path: file.into(), descriptor }
    }

    fn all() -> Vec<Contender> {
        vec![
            contender("v2", "cpu-v2", &[], 0, "1.0.0"),
            contender("v4", "cpu-v4", &[], 0, "1.0.0"),
            contender("v3", "cpu-v3", &[], 0, "1.0.0"),
            contender("ampere", "ampere", &[80], 80, "1.0.0"),
            contender("ada", "ada", &[89], 89, "1.0.0"),
            contender("hopper", "hopper", &[90], 0, "1.0.0"),
            contender("blackwell", "blackwell", &[100, 120], 100, "1.0.0"),
        ]
    }

    fn device(kind: DeviceKind, compute_capability: u32, cpu_level: u32, driver: u32) -> DeviceInfo {
        DeviceInfo { kind, compute_capability, cpu_level, driver, ..crate::machine::cpu_device() }
    }

    #[test]
    fn every_device_gets_its_best_build() {
        let cases = [
            (device(DeviceKind::CPU, 0, 2, 0), Some("v2")),
            (device(DeviceKind::CPU, 0, 3, 0), Some("v3")),
            (device(DeviceKind::CPU, 0, 4, 0), Some("v4")),
            (device(DeviceKind::CPU, 0, 1, 0), None),
            (device(DeviceKind::CUDA, 75, 4, 13000), None),
            (device(DeviceKind::CUDA, 80, 4, 13000), Some("ampere")),
            (device(DeviceKind::CUDA, 86, 4, 13000), Some("ampere")),
            (device(DeviceKind::CUDA, 89, 4, 13000), Some("ada")),
            (device(DeviceKind::CUDA, 90, 4, 13000), Some("hopper")),
            (device(DeviceKind::CUDA, 103, 4, 13000), Some("blackwell")),
            (device(DeviceKind::CUDA, 120, 4, 13010), Some("blackwell")),
            (device(DeviceKind::CUDA, 90, 4, 12080), None),
        ];
        for (device, expected) in cases {
            let choice = choose_build(&all(), &device);
            assert_eq!(choice.chosen.as_deref(), expected.map(std::path::Path::new), "{choice:#?}");
            assert_eq!(choice.considered.len(), all().len(), "every candidate is explained");
            assert!(choice.considered.iter().all(|(_, reason)| !reason.is_empty()));
        }
    }

    #[test]
    fn ties_go_to_the_newer_version_and_then_to_the_earlier_place() {
        let contenders = [
            contender("old", "cpu-v2", &[], 0, "1.9.0"),
            contender("new", "cpu-v2", &[], 0, "1.10.0"),
            contender("again", "cpu-v2", &[], 0, "1.10.0"),
            contender("unversioned", "cpu-v2", &[], 0, "today"),
        ];
        let choice = choose_build(&contenders, &device(DeviceKind::CPU, 0, 4, 0));
        let order: Vec<_> = choice.considered.iter().map(|(path, _)| path.to_str().unwrap_or("")).collect();
        assert_eq!(order, ["new", "again", "old", "unversioned"]);
    }

    #[test]
    fn ptx_is_the_last_resort() {
        let contenders = [contender("ampere", "ampere", &[80], 80, "1.0.0")];
        let choice = choose_build(&contenders, &device(DeviceKind::CUDA, 90, 4, 13000));
        assert_eq!(choice.chosen.as_deref(), Some(std::path::Path::new("ampere")));
        assert!(choice.considered[0].1.contains("PTX"), "{choice:?}");
    }
}
