//! Which of several builds of a plugin computes best on a device.
//!
//! The choice is total and explainable: every candidate gets a sentence, and the order depends on nothing but
//! the candidates and the device. Machine code of the device's very generation comes first, then that of an
//! older one of the same major version, then PTX that the driver compiles at the first load.

use std::cmp::Reverse;
use std::path::PathBuf;

use plugin_abi::arch::{DeviceInfo, DeviceKind};
use semver::Version;
use serde::{Deserialize, Serialize};

use crate::descriptor::Descriptor;
use crate::manifest::Manifest;

/// How well a build suits a device. Ordered: a later one is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// PTX that the driver compiles when it is first loaded.
    Compiled,
    /// Machine code of an older generation with the same major version, or a lower CPU level.
    Older,
    /// Machine code of this very generation, or the processor's own level.
    Exact,
}

/// What can be said of one build on one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildVerdict {
    /// Larger is better; `None` when it cannot run there.
    pub score: Option<u32>,
    /// How well it suits; `None` when it cannot run there.
    pub fit: Option<Fit>,
    /// Why, in one sentence.
    pub reason: String,
}

/// A file that competes for a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Contender {
    /// The file.
    pub path: PathBuf,
    /// What it claims to be.
    pub descriptor: Descriptor,
    /// What was found in it when it was built, if that is known.
    pub manifest: Option<Manifest>,
}

/// What was said of one candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Considered {
    /// The file.
    pub path: PathBuf,
    /// Its build.
    pub build: String,
    /// The verdict.
    #[serde(flatten)]
    pub verdict: BuildVerdict,
}

/// Which build was chosen for a device, and what was said of each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The chosen file; `None` when no build can run there.
    pub chosen: Option<PathBuf>,
    /// Every candidate with its sentence, best first.
    pub considered: Vec<Considered>,
}

/// Judges one build for one device.
pub fn judge(contender: &Contender, device: &DeviceInfo) -> BuildVerdict {
    let build = &contender.descriptor.build;
    match (cpu_level(build), device.kind) {
        (Some(level), DeviceKind::CPU) => judge_cpu(build, level, device.cpu_level),
        (Some(_), _) => no(format!("{build} computes on the CPU only")),
        (None, DeviceKind::CUDA) => judge_cuda(contender, device),
        (None, _) => no(format!("{build} does not compute on the CPU")),
    }
}

fn yes(score: u32, fit: Fit, reason: String) -> BuildVerdict {
    BuildVerdict { score: Some(score), fit: Some(fit), reason }
}

fn no(reason: String) -> BuildVerdict {
    BuildVerdict { score: None, fit: None, reason }
}

fn cpu_level(build: &str) -> Option<u32> {
    build.strip_prefix("cpu-v")?.parse().ok()
}

fn judge_cpu(build: &str, level: u32, processor: u32) -> BuildVerdict {
    if level > processor {
        return no(format!("{build} needs an x86-64-v{level} processor; this one is x86-64-v{processor}"));
    }
    let fit = if level == processor { Fit::Exact } else { Fit::Older };
    yes(100 + level, fit, format!("{build} runs on this x86-64-v{processor} processor"))
}

/// Machine code in a build: its compute capability, and whether it runs on that very card alone.
type MachineCode = (u32, bool);

/// What a build holds for GPUs, going by the manifest where there is one, else by the descriptor.
fn contents(contender: &Contender) -> (Vec<MachineCode>, u32) {
    let Descriptor { machine_code, ptx, .. } = &contender.descriptor;
    let claimed = || machine_code.iter().map(|&code| (u32::from(code), false)).collect();
    let manifest = contender.manifest.as_ref();
    (
        manifest.and_then(Manifest::machine_code).unwrap_or_else(claimed),
        manifest.and_then(Manifest::lowest_ptx).unwrap_or(u32::from(*ptx)),
    )
}

fn judge_cuda(contender: &Contender, device: &DeviceInfo) -> BuildVerdict {
    let Descriptor { build, cuda, .. } = &contender.descriptor;
    let cuda = u32::from(*cuda);
    let capability = device.compute_capability;
    let (machine_code, ptx) = contents(contender);
    if capability == 0 {
        return no(format!(
            "{build} cannot be matched: the driver does not tell the card's compute capability"
        ));
    }
    if device.driver != 0 && cuda / 1000 > device.driver / 1000 {
        return no(format!(
            "{build} was compiled with CUDA {}; the driver only knows {}, and needs to be upgraded",
            toolkit(cuda),
            toolkit(device.driver)
        ));
    }
    let runs = |(code, bound): &MachineCode| {
        *code == capability || (!bound && code / 10 == capability / 10 && code % 10 <= capability % 10)
    };
    match machine_code.iter().filter(|code| runs(code)).map(|(code, _)| *code).max() {
        Some(code) if code == capability => yes(
            3000,
            Fit::Exact,
            format!("{build} holds machine code for compute capability {}", dotted(capability)),
        ),
        Some(code) => yes(
            2000 + code,
            Fit::Older,
            format!("{build} holds machine code for {}, which runs on {}", dotted(code), dotted(capability)),
        ),
        None if ptx != 0 && ptx <= capability => yes(
            1000 + ptx,
            Fit::Compiled,
            format!(
                "{build} holds PTX for {} that the driver compiles for {}; the first load takes minutes",
                dotted(ptx),
                dotted(capability)
            ),
        ),
        None => no(nothing_for(build, &machine_code, capability)),
    }
}

fn nothing_for(build: &str, machine_code: &[MachineCode], capability: u32) -> String {
    let held: Vec<String> = machine_code.iter().map(|(code, _)| dotted(*code)).collect();
    let held = match held.as_slice() {
        [] => "none at all".to_owned(),
        codes => format!("only for {}", codes.join(" and ")),
    };
    format!("{build} holds no machine code for compute capability {}, {held}", dotted(capability))
}

/// `9.0` for 90.
fn dotted(capability: u32) -> String {
    format!("{}.{}", capability / 10, capability % 10)
}

/// `13.0` for 13000.
fn toolkit(cuda: u32) -> String {
    format!("{}.{}", cuda / 1000, cuda % 1000 / 10)
}

/// Chooses the best build for a device: by score, then the newer version, then the place in `contenders`.
pub fn choose_build(contenders: &[Contender], device: &DeviceInfo) -> Choice {
    choose(contenders, |contender| judge(contender, device))
}

/// As [`choose_build`], for one build that serves all `devices`; it is as good as it is on the one it suits
/// least.
pub fn choose_common_build(contenders: &[Contender], devices: &[DeviceInfo]) -> Choice {
    choose(contenders, |contender| {
        let verdicts = devices.iter().map(|device| judge(contender, device));
        verdicts.min_by_key(|verdict| verdict.score).unwrap_or_else(|| no("there is no device".into()))
    })
}

fn choose(contenders: &[Contender], judge: impl Fn(&Contender) -> BuildVerdict) -> Choice {
    let mut ranked: Vec<_> = contenders
        .iter()
        .enumerate()
        .map(|(place, contender)| {
            let verdict = judge(contender);
            let version = Version::parse(&contender.descriptor.version).ok();
            (Reverse((verdict.score, version)), place, verdict, contender)
        })
        .collect();
    ranked.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    let chosen = ranked.first().filter(|best| best.2.score.is_some()).map(|best| best.3.path.clone());
    let considered = ranked.into_iter().map(|(_, _, verdict, contender)| Considered {
        path: contender.path.clone(),
        build: contender.descriptor.build.clone(),
        verdict,
    });
    Choice { chosen, considered: considered.collect() }
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
