//! The manifest beside a plugin: what the file is and what was found in it, for people and packagers.
//!
//! The host needs none: it goes by the file's own description, and believes a manifest only if the sum in it is the
//! file's. What it reads of it is `plugin_loader::Manifest`. Its allow-list is another thing: that list is written
//! here too, over every build, in the form `sha256sum` prints: sign it with minisign to pin a release.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::generation::Build;
use crate::inspect::Contents;
use crate::{process, target};

/// Name of the list of sums, in the folder above the builds.
const SUMS: &str = "plugins.sha256";

/// What is known of one plugin file. Fields are only ever added.
#[derive(Debug, Deserialize, Serialize)]
pub struct Manifest {
    /// Version of this form.
    pub format: u32,
    /// Name of the plugin.
    pub name: String,
    /// Version of the plugin.
    pub version: String,
    /// Build.
    pub build: String,
    /// Name of the file, in the same folder.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256 sum.
    pub sha256: String,
    /// Names of the architectures in it; empty when the machine that built it could not open it.
    pub architectures: Vec<String>,
    /// Compute capabilities it accepts without compiling anything; empty for processors.
    pub compute_capabilities: Vec<String>,
    /// Targets of the machine code found inside; absent where there is no GPU code at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sass: Option<Vec<String>>,
    /// Targets of the PTX found inside; absent where there is no GPU code at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ptx: Option<Vec<String>>,
    /// CUDA version it was compiled with; absent for processors.
    pub cuda: Option<String>,
    /// Oldest driver series that can load it; absent for processors.
    pub driver: Option<String>,
    /// x86-64 level its host code needs.
    pub cpu_level: u32,
    /// ABI version.
    pub abi: String,
    /// Git revision, or empty.
    pub git: String,
    /// Oldest glibc it runs with.
    pub glibc: String,
    /// Shared libraries it needs to load.
    pub needed: Vec<String>,
    /// Devices on which this very build passed `gpu-check`; empty: none, however well it was inspected.
    pub hardware_runs: Vec<String>,
}

impl Manifest {
    /// Of an installed file.
    pub fn of(build: &Build, file: &Path, contents: Contents, describer: &Path) -> Result<Self> {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let descriptor = contents.descriptor;
        let gpu = match build {
            Build::Gpu(generation) => Some(generation),
            Build::Cpu(_) => None,
        };
        let mut ptx: Vec<String> = contents.ptx.into_iter().map(|(target, _)| target).collect();
        ptx.dedup();
        let code = (!contents.machine_code.is_empty() || !ptx.is_empty())
            .then(|| (contents.machine_code.into_iter().collect(), ptx));
        let (sass, ptx) = code.unzip();
        Ok(Self {
            format: 1,
            name: descriptor.name,
            version: descriptor.version,
            build: descriptor.build,
            file: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            bytes: bytes.len() as u64,
            sha256: sha256(&bytes),
            architectures: architectures(describer, file)?,
            compute_capabilities: gpu
                .map(|generation| generation.accepts.iter().map(|text| (*text).to_owned()).collect())
                .unwrap_or_default(),
            sass,
            ptx,
            cuda: gpu.map(|_| format!("{}.{}", descriptor.cuda / 1000, descriptor.cuda % 1000 / 10)),
            driver: gpu.map(|_| "580".to_owned()),
            cpu_level: build.cpu_level(),
            abi: descriptor.abi,
            git: descriptor.git,
            glibc: contents.glibc,
            needed: contents.needed.into_iter().collect(),
            hardware_runs: Vec::new(),
        })
    }

    /// One line for people.
    pub fn sentence(&self) -> String {
        let mut text =
            format!("{} {} ({}): {:.1} MB", self.name, self.version, self.build, self.bytes as f64 / 1e6);
        match (&self.cuda, &self.sass, &self.ptx) {
            (Some(_), Some(sass), Some(ptx)) => {
                text.push_str(&format!(", machine code {}, PTX {}", sass.join(" and "), ptx.join(" and ")));
            }
            (Some(_), ..) => text.push_str(", no GPU code"),
            (None, ..) => {}
        }
        text + &format!(", glibc {}", self.glibc)
    }

    /// Writes it as JSON.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The program that opens a plugin and says what is in it, built if need be.
pub fn describer() -> Result<PathBuf> {
    process::run(process::cargo().args(["build", "--quiet", "--package", "gpu-check"]))?;
    Ok(target().join("debug/gpu-check"))
}

/// The architectures a plugin offers when it is opened, in a process of its own: `neuron` and `gpu-check` both have
/// the hidden command for it. A build for a better processor than this one cannot be opened here.
fn architectures(describer: &Path, file: &Path) -> Result<Vec<String>> {
    const ILLEGAL_INSTRUCTION: i32 = 4;
    let output = Command::new(describer)
        .arg("plugin-probe")
        .arg(file)
        .output()
        .with_context(|| format!("cannot start {}", describer.display()))?;
    if output.status.signal() == Some(ILLEGAL_INSTRUCTION) {
        println!("  note: this processor cannot open {}; its architectures are not listed", file.display());
        return Ok(Vec::new());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().rev().find(|line| line.starts_with('{')).unwrap_or_default();
    let answer: Value = serde_json::from_str(line).with_context(|| {
        format!("{} does not open: its process ended with {}", file.display(), output.status)
    })?;
    let Some(list) = answer["result"]["Ok"]["architectures"].as_array() else {
        bail!("{} does not open: {}", file.display(), answer["result"]["Err"]);
    };
    Ok(list.iter().filter_map(|one| one["name"].as_str().map(str::to_owned)).collect())
}

/// Writes the sums of all builds, as `sha256sum` prints and checks them and as the host's allow-list wants them.
pub fn write_sums(plugins: &Path) -> Result<()> {
    let mut lines = Vec::new();
    for build in Build::all() {
        let Ok(entries) = std::fs::read_dir(plugins.join(build.name())) else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "so") {
                let bytes =
                    std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                lines.push((build.name(), name.into_owned(), sha256(&bytes)));
            }
        }
    }
    lines.sort();
    let text: String = lines.iter().map(|(build, name, sum)| format!("{sum}  {build}/{name}\n")).collect();
    let list = plugins.join(SUMS);
    std::fs::write(&list, text).with_context(|| format!("cannot write {}", list.display()))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
