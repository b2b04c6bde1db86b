//! The CUDA tool chain under the project's target folder: compiler, headers, link shims.
//!
//! It comes as pinned, hashed Python wheels; nothing outside its folder is touched. It is put together beside the
//! place it belongs to and moved there when complete, with a stamp of everything it was made from, so that an
//! interrupted run leaves nothing half done and a second one does nothing.

use std::ffi::OsString;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{nvcc, shims};
use crate::generation::Generation;
use crate::{process, target};

/// What is installed, with hashes.
const REQUIREMENTS: &str = include_str!("requirements.txt");

/// The toolkit's version as the bindings want it.
pub const CUDA_VERSION: &str = "13000";

/// Tells the layers that what they link with can say which libraries were found.
pub const LINK_SHIMS: &str = "NEURON_LINK_SHIMS";

/// Where wheels put the toolkit.
const WHEELS: &str = "wheels/nvidia/cu13";

/// `bin/nvcc`: this tool decides what the compiler is asked for, if it is the one that builds.
const FRONT: &str = "#!/bin/sh\n\
    # Adds what a build for several GPUs needs to the compiler's arguments; see xtask/src/cuda/nvcc.rs.\n\
    here=$(CDPATH= cd -- \"$(dirname -- \"$0\")\" && pwd)\n\
    real=$here/../wheels/nvidia/cu13/bin/nvcc\n\
    if [ -n \"$NEURON_NVCC\" ]; then NEURON_NVCC_REAL=$real exec \"$NEURON_NVCC\" nvcc \"$@\"; fi\n\
    exec \"$real\" \"$@\"\n";

/// A tool chain that is in place.
pub struct Toolchain {
    root: PathBuf,
}

impl Toolchain {
    /// The tool chain, put together first if it is missing or was made from something else.
    pub fn provide() -> Result<Self> {
        let root = target().join("cuda");
        let bindings = bindings()?;
        let stamp = stamp(&bindings);
        let stamped = root.join("stamp");
        if std::fs::read_to_string(&stamped).is_ok_and(|found| found == stamp) {
            println!("CUDA tool chain up to date: {}", root.display());
            return Ok(Self { root });
        }
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            bail!("the CUDA tool chain is only packaged for x86-64 Linux");
        }
        let fresh = target().join("cuda.new");
        if fresh.exists() {
            std::fs::remove_dir_all(&fresh).with_context(|| format!("cannot remove {}", fresh.display()))?;
        }
        std::fs::create_dir_all(&fresh).with_context(|| format!("cannot create {}", fresh.display()))?;
        println!(
            "putting the CUDA 13.0 tool chain together in {} (about 110 MB to download) …",
            root.display()
        );
        install(&fresh)?;
        arrange(&fresh)?;
        println!("link shims from {}:", bindings.display());
        shims::make(&bindings, &fresh.join("lib"))?;
        let version = compiler_version(&fresh.join("bin/nvcc"))?;
        std::fs::write(fresh.join("stamp"), stamp)?;
        if root.exists() {
            std::fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
        }
        std::fs::rename(&fresh, &root).with_context(|| format!("cannot create {}", root.display()))?;
        println!("CUDA tool chain ready: {} ({version})", root.display());
        Ok(Self { root })
    }

    /// What a build for a generation needs in its environment. `folder` is the build's own.
    pub fn environment(
        &self,
        generation: &Generation,
        folder: &Path,
    ) -> Result<Vec<(&'static str, OsString)>> {
        let mut path = self.root.join("bin").into_os_string();
        if let Some(rest) = std::env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        let mut environment: Vec<(&'static str, OsString)> = vec![
            ("CUDA_HOME", self.root.clone().into()),
            ("CUDA_PATH", self.root.clone().into()),
            ("PATH", path),
            ("NVCC", self.root.join("bin/nvcc").into()),
            ("CUDA_COMPUTE_CAP", generation.compute_cap.into()),
            ("CUDARC_CUDA_VERSION", CUDA_VERSION.into()),
            (LINK_SHIMS, "1".into()),
        ];
        environment.extend(nvcc::environment(generation));
        if generation.fat {
            // A copy: this tool may be compiled anew while the kernels are.
            let front = folder.join("nvcc-front");
            let this = std::env::current_exe().context("this tool does not know where it lies")?;
            std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
            std::fs::copy(&this, &front).with_context(|| format!("cannot write {}", front.display()))?;
            environment.push((nvcc::FRONT, front.into()));
        }
        Ok(environment)
    }
}

/// A digest of everything the tool chain is made from.
fn stamp(bindings: &Path) -> String {
    let mut hasher = Sha256::new();
    for part in [REQUIREMENTS, shims::SOURCE, include_str!("shims.rs"), FRONT] {
        hasher.update(part);
    }
    hasher.update(bindings.file_name().unwrap_or_default().as_encoded_bytes());
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The source of the CUDA bindings that the plugins are compiled with.
fn bindings() -> Result<PathBuf> {
    let output = process::cargo()
        .args(["metadata", "--format-version", "1", "--features", "layers/cuda"])
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let manifest = packages
        .iter()
        .find(|package| package["name"] == "cudarc")
        .and_then(|package| package["manifest_path"].as_str())
        .context("no package here uses cudarc: there is nothing to make link shims for")?;
    Ok(Path::new(manifest).parent().unwrap_or(Path::new("/")).to_path_buf())
}

/// Downloads and unpacks the wheels, pip's own progress shown.
fn install(folder: &Path) -> Result<()> {
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let asked = Command::new(&python).args(["-m", "pip", "--version"]).output();
    match asked {
        Err(error) => bail!(
            "cannot start {} ({error}): the tool chain comes as Python packages; install Python 3, or name it in PYTHON",
            python.display()
        ),
        Ok(output) if !output.status.success() => bail!(
            "{} has no pip: install it (Debian: apt install python3-pip), or name another Python in PYTHON",
            python.display()
        ),
        Ok(_) => {}
    }
    let requirements = folder.join("requirements.txt");
    std::fs::write(&requirements, REQUIREMENTS)?;
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--root-user-action=ignore"])
        .args(["--no-deps", "--no-compile", "--only-binary=:all:", "--require-hashes", "--target"])
        .arg(folder.join("wheels"))
        .arg("--requirement")
        .arg(&requirements);
    process::run(&mut pip).context(
        "the CUDA compiler could not be installed; it needs a Python package index (see `python3 -m pip config \
         list`) and about 400 MB of disk",
    )
}

/// The folders a toolkit is expected to have, as links into the wheels.
fn arrange(folder: &Path) -> Result<()> {
    let wheels = folder.join(WHEELS);
    for name in ["bin", "lib"] {
        std::fs::create_dir_all(folder.join(name))?;
    }
    for name in ["include", "nvvm"] {
        symlink(Path::new(WHEELS).join(name), folder.join(name))?;
    }
    symlink("lib", folder.join("lib64"))?;
    for entry in std::fs::read_dir(wheels.join("bin")).context("the wheels hold no compiler")? {
        let name = entry?.file_name();
        if name != "nvcc" {
            symlink(Path::new("..").join(WHEELS).join("bin").join(&name), folder.join("bin").join(&name))?;
        }
    }
    let front = folder.join("bin/nvcc");
    std::fs::write(&front, FRONT)?;
    std::fs::set_permissions(&front, std::fs::Permissions::from_mode(0o755))?;
    // `-lcudart` finds this archive, no shared library being beside it: the runtime is linked in.
    for (from, to) in [("libcudart_static.a", "libcudart.a"), ("libcudadevrt.a", "libcudadevrt.a")] {
        std::fs::copy(wheels.join("lib").join(from), folder.join("lib").join(to))
            .with_context(|| format!("the wheels hold no {from}"))?;
    }
    Ok(())
}

fn compiler_version(nvcc: &Path) -> Result<String> {
    let output = Command::new(nvcc).arg("--version").env_remove(nvcc::FRONT).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let release = text.lines().find(|line| line.contains("release")).unwrap_or_default().trim();
    if !output.status.success() || release.is_empty() {
        bail!("{} does not run: {}", nvcc.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(release.to_owned())
}
