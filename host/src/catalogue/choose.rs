//! Which plugin file serves an architecture on a device, and why.

use std::path::PathBuf;

use plugin_loader::{
    ArchitectureInfo, Choice, Considered, Contender, DeviceInfo, Fit, Manifest, Report, choose_build, judge,
};
use thiserror::Error;

use super::{Entry, Snapshot};

/// What a model's files say it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ArchitectureKey {
    /// `model_type` of `config.json`.
    ModelType(String),
    /// `general.architecture` of a GGUF.
    Gguf(String),
}

impl std::fmt::Display for ArchitectureKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ModelType(name) => write!(f, "model_type {name:?}"),
            Self::Gguf(name) => write!(f, "GGUF architecture {name:?}"),
        }
    }
}

impl ArchitectureKey {
    /// The bare name.
    pub fn name(&self) -> &str {
        match self {
            Self::ModelType(name) | Self::Gguf(name) => name,
        }
    }

    pub(super) fn served_by<'a>(&self, report: &'a Report) -> Option<&'a ArchitectureInfo> {
        report.architectures.iter().find(|info| match self {
            Self::ModelType(name) => info.model_types.contains(name),
            Self::Gguf(name) => info.gguf_architectures.contains(name),
        })
    }
}

/// The file that serves an architecture on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// The file.
    pub path: PathBuf,
    /// Name of the plugin.
    pub plugin: String,
    /// Its build.
    pub build: String,
    /// Its version.
    pub version: String,
    /// How well it suits the device.
    pub fit: Fit,
    /// Why it was chosen, in one sentence.
    pub reason: String,
    /// The architecture inside it.
    pub architecture: ArchitectureInfo,
    /// What it has run on; `None` when no manifest says.
    pub hardware_runs: Option<Vec<String>>,
    /// Every candidate with a sentence, best first.
    pub considered: Vec<Considered>,
}

impl Chosen {
    /// What the operator should know before it is used, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let compiled = (self.fit == Fit::Compiled).then(|| {
            format!(
                "{}; install the build made for this card, or give the first load time and the driver a cache \
                 (cuda.cache)",
                self.reason
            )
        });
        compiled.into_iter().collect()
    }
}

/// No plugin serves this.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotServed {
    /// No usable plugin knows the architecture.
    #[error("no plugin serves {key}; {known}")]
    Unknown {
        /// What was asked for.
        key: String,
        /// What is served instead, and where plugins were looked for.
        known: String,
    },
    /// Plugins know the architecture, but none is built for the device.
    #[error("no build of a plugin for {key} fits the device: {reasons}")]
    NoBuild {
        /// What was asked for.
        key: String,
        /// Why each does not.
        reasons: String,
    },
    /// Each device may have a build, but ranks of one model must share one.
    #[error(
        "no single build of a plugin for {key}, which the parts of a model must share, fits all of them: {reasons}"
    )]
    NoCommonBuild {
        /// What was asked for.
        key: String,
        /// Why each does not.
        reasons: String,
    },
}

/// A file that knows an architecture.
pub(super) struct Able<'a> {
    pub contender: Contender,
    pub architecture: &'a ArchitectureInfo,
    pub report: &'a Report,
}

impl Able<'_> {
    /// This file, as chosen by `choice` for `device`.
    pub fn chosen(&self, device: &DeviceInfo, considered: Vec<Considered>) -> Option<Chosen> {
        let verdict = judge(&self.contender, device);
        Some(Chosen {
            path: self.contender.path.clone(),
            plugin: self.report.build.name.clone(),
            build: self.report.build.build.clone(),
            version: self.report.build.version.clone(),
            fit: verdict.fit?,
            reason: verdict.reason,
            architecture: self.architecture.clone(),
            hardware_runs: self.contender.manifest.as_ref().map(|manifest| manifest.hardware_runs.clone()),
            considered,
        })
    }
}

impl Entry {
    /// The file as a candidate for any device; `None` when it is not used at all.
    pub fn contender(&self) -> Option<Contender> {
        self.outcome.as_ref().ok()?;
        let manifest: Option<Manifest> = self.manifest.clone().ok().flatten();
        Some(Contender { path: self.path.clone(), descriptor: self.descriptor.clone()?, manifest })
    }
}

impl Snapshot {
    /// The file that serves `key` on `device` best.
    pub fn choose(&self, key: &ArchitectureKey, device: &DeviceInfo) -> Result<Chosen, NotServed> {
        let able = self.able(key)?;
        let contenders: Vec<Contender> = able.iter().map(|able| able.contender.clone()).collect();
        let Choice { chosen, considered } = choose_build(&contenders, device);
        let best = chosen.and_then(|path| able.iter().find(|able| able.contender.path == path));
        match best.and_then(|able| able.chosen(device, considered.clone())) {
            Some(chosen) => Ok(chosen),
            None => Err(no_build(key, &considered)),
        }
    }

    /// Every usable file that knows `key`.
    pub(super) fn able(&self, key: &ArchitectureKey) -> Result<Vec<Able<'_>>, NotServed> {
        let able = self.entries.iter().filter_map(|entry| {
            let contender = entry.contender()?;
            let report = entry.outcome.as_ref().ok()?;
            Some(Able { contender, architecture: key.served_by(report)?, report })
        });
        let able: Vec<_> = able.collect();
        if able.is_empty() {
            return Err(NotServed::Unknown { key: key.to_string(), known: self.known() });
        }
        Ok(able)
    }

    /// Every architecture the usable plugins know, by name, with what a model of it says it is.
    pub fn architectures(&self) -> std::collections::BTreeMap<String, ArchitectureKey> {
        let reports = self.entries.iter().filter_map(|entry| entry.outcome.as_ref().ok());
        let known = reports.flat_map(|report| &report.architectures).filter_map(|architecture| {
            let model_type = architecture.model_types.first().cloned().map(ArchitectureKey::ModelType);
            let gguf = || architecture.gguf_architectures.first().cloned().map(ArchitectureKey::Gguf);
            Some((architecture.name.clone(), model_type.or_else(gguf)?))
        });
        known.collect()
    }

    fn known(&self) -> String {
        let usable = self.entries.iter().filter_map(|entry| entry.outcome.as_ref().ok());
        let mut names: Vec<&str> = usable
            .flat_map(|report| report.architectures.iter())
            .flat_map(|info| info.model_types.iter().chain(&info.gguf_architectures))
            .map(String::as_str)
            .collect();
        names.sort_unstable();
        names.dedup();
        let directories: Vec<_> = self.directories.iter().map(|path| path.display().to_string()).collect();
        let refused = self.entries.iter().filter(|entry| entry.outcome.is_err()).count();
        let served = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
        let refused =
            if refused == 0 { String::new() } else { format!(" ({refused} files there are refused)") };
        format!("the plugins in {}{refused} serve {served}", directories.join(", "))
    }
}

/// Nothing fits; each candidate says why.
fn no_build(key: &ArchitectureKey, considered: &[Considered]) -> NotServed {
    let reasons: Vec<&str> = considered.iter().map(|considered| considered.verdict.reason.as_str()).collect();
    NotServed::NoBuild { key: key.to_string(), reasons: reasons.join("; ") }
}

#[cfg(test)]
pub(crate) mod tests {
    use plugin_loader::{BuildInfo, Cause, Descriptor, Refusal, cpu_device};

    use super::*;

    /// A plugin file of one build, as the tables of the author's side describe it.
    pub(crate) fn entry(path: &str, build: &str, model_type: &str) -> Entry {
        let (machine_code, ptx): (&[u16], u16) = match build {
            "ampere" => (&[80], 80),
            "ada" => (&[89], 89),
            "hopper" => (&[90], 0),
            "blackwell" => (&[100, 120], 100),
            _ => (&[], 0),
        };
        let cuda = if machine_code.is_empty() { 0 } else { 13000 };
        let descriptor = Descriptor {
            abi: "1.0.0".into(),
            name: "x".into(),
            version: "1.0.0".into(),
            build: build.into(),
            git: String::new(),
            panic: "unwind".into(),
            machine_code: machine_code.to_vec(),
            ptx,
            cuda,
        };
        let architecture = ArchitectureInfo {
            name: "x".into(),
            model_types: vec![model_type.into()],
            gguf_architectures: vec![format!("g-{model_type}")],
            capabilities: 0,
            max_world: 8,
        };
        let build = BuildInfo {
            name: "x".into(),
            version: "1.0.0".into(),
            build: build.into(),
            rustc: String::new(),
            target: String::new(),
            git: String::new(),
            machine_code: Vec::new(),
            ptx: 0,
            cuda: 0,
            debug: false,
        };
        let report =
            Report { build, architectures: vec![architecture], routers: Vec::new(), evictors: Vec::new() };
        Entry { path: path.into(), descriptor: Some(descriptor), manifest: Ok(None), outcome: Ok(report) }
    }

    #[test]
    fn the_best_build_is_chosen_and_what_is_missing_is_named() {
        let refusal = Refusal { path: "c.so".into(), cause: Cause::ProbeHung(1) };
        let snapshot = Snapshot {
            revision: 1,
            entries: vec![
                entry("a.so", "cpu-v2", "llama"),
                entry("b.so", "cpu-v3", "llama"),
                entry("h.so", "hopper", "qwen3"),
                Entry { path: "c.so".into(), descriptor: None, manifest: Ok(None), outcome: Err(refusal) },
            ],
            directories: vec!["/plugins".into()],
        };
        let device = DeviceInfo { cpu_level: 3, ..cpu_device() };
        let chosen = snapshot.choose(&ArchitectureKey::ModelType("llama".into()), &device).unwrap();
        assert_eq!((chosen.path, chosen.build.as_str()), ("b.so".into(), "cpu-v3"));
        assert_eq!(chosen.considered.len(), 2);
        let gguf = snapshot.choose(&ArchitectureKey::Gguf("g-llama".into()), &device).unwrap();
        assert_eq!(gguf.architecture.name, "x");
        let wrong = snapshot.choose(&ArchitectureKey::ModelType("qwen3".into()), &device).unwrap_err();
        assert!(
            matches!(&wrong, NotServed::NoBuild { reasons, .. } if reasons.contains("hopper")),
            "{wrong}"
        );
        let unknown = snapshot.choose(&ArchitectureKey::ModelType("phi".into()), &device).unwrap_err();
        let text = unknown.to_string();
        assert!(text.contains("\"phi\"") && text.contains("llama") && text.contains("/plugins"), "{text}");
        assert!(text.contains("1 files there are refused"), "{text}");
    }
}
