//! Which plugin file serves an architecture on a device, and why.

use std::path::PathBuf;

use plugin_loader::{ArchitectureInfo, Contender, DeviceInfo, Report, choose_build};
use thiserror::Error;

use super::Snapshot;

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

    fn served_by<'a>(&self, report: &'a Report) -> Option<&'a ArchitectureInfo> {
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
    /// The architecture inside it.
    pub architecture: ArchitectureInfo,
    /// Every candidate with a sentence, best first.
    pub considered: Vec<(PathBuf, String)>,
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
}

impl Snapshot {
    /// The file that serves `key` on `device` best.
    pub fn choose(&self, key: &ArchitectureKey, device: &DeviceInfo) -> Result<Chosen, NotServed> {
        let able: Vec<_> = self
            .entries
            .iter()
            .filter_map(|entry| {
                let report = entry.outcome.as_ref().ok()?;
                let descriptor = entry.descriptor.clone()?;
                let architecture = key.served_by(report)?;
                Some((Contender { path: entry.path.clone(), descriptor }, architecture, report))
            })
            .collect();
        if able.is_empty() {
            return Err(NotServed::Unknown { key: key.to_string(), known: self.known() });
        }
        let contenders: Vec<Contender> = able.iter().map(|(contender, ..)| contender.clone()).collect();
        let choice = choose_build(&contenders, device);
        let chosen = choice.chosen.as_ref().and_then(|path| able.iter().find(|able| &able.0.path == path));
        match chosen {
            Some((contender, architecture, report)) => Ok(Chosen {
                path: contender.path.clone(),
                plugin: report.build.name.clone(),
                build: report.build.build.clone(),
                version: report.build.version.clone(),
                architecture: (*architecture).clone(),
                considered: choice.considered,
            }),
            None => Err(NotServed::NoBuild {
                key: key.to_string(),
                reasons: choice
                    .considered
                    .into_iter()
                    .map(|(_, reason)| reason)
                    .collect::<Vec<_>>()
                    .join("; "),
            }),
        }
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

#[cfg(test)]
mod tests {
    use plugin_loader::{BuildInfo, Cause, Descriptor, Refusal, cpu_device};

    use super::super::Entry;
    use super::*;

    fn entry(path: &str, build: &str, model_type: &str) -> Entry {
        let descriptor = Descriptor {
            abi: "1.0.0".into(),
            name: "x".into(),
            version: "1.0.0".into(),
            build: build.into(),
            git: String::new(),
            panic: "unwind".into(),
            machine_code: Vec::new(),
            ptx: 0,
            cuda: 0,
        };
        let architecture = ArchitectureInfo {
            name: "x".into(),
            model_types: vec![model_type.into()],
            gguf_architectures: vec![format!("g-{model_type}")],
            capabilities: 0,
            max_world: 1,
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
        Entry { path: path.into(), descriptor: Some(descriptor), outcome: Ok(report) }
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
                Entry { path: "c.so".into(), descriptor: None, outcome: Err(refusal) },
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
