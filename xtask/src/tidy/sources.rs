//! The files of the checkout, and what must not stand in them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::root;

/// Folders whose code may be `unsafe`.
const UNSAFE_ROOMS: &[&str] = &[
    "plugin-api/abi/",
    "plugin-api/sdk/",
    "plugin-api/loader/",
    "plugin-api/conformance/fixtures/",
    "arch-plugins/layers/",
];

/// File stems that name nothing.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "manager", "misc"];

/// Every file git knows or would add, relative to the root.
pub fn tracked() -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(root())
        .output()
        .context("git is needed to list the files of the checkout")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut files: Vec<PathBuf> =
        text.split('\0').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
    files.retain(|path| root().join(path).is_file());
    files.sort();
    files.dedup();
    Ok(files)
}

/// One line per file that breaks a rule.
pub fn check(files: &[PathBuf]) -> Result<Vec<String>> {
    let mut violations = Vec::new();
    for file in files.iter().filter(|file| is_rust(file)) {
        let text = std::fs::read_to_string(root().join(file))?;
        let shown = file.display();
        if let Some(stem) = file.file_stem().and_then(|stem| stem.to_str())
            && EMPTY_NAMES.contains(&stem)
        {
            violations.push(format!("{shown}: `{stem}` names nothing; say what lives there"));
        }
        let allowed = UNSAFE_ROOMS.iter().any(|room| file.starts_with(room.trim_end_matches('/')));
        if !allowed && let Some(line) = unsafe_line(&text) {
            violations.push(format!("{shown}:{line}: unsafe outside abi, sdk, loader and layers"));
        }
        if is_module(file) && !text.trim_start().starts_with("//!") {
            violations.push(format!("{shown}: a module opens with a sentence on what it is (//!)"));
        }
    }
    Ok(violations)
}

pub fn is_rust(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "rs")
}

fn is_module(file: &Path) -> bool {
    file.components().any(|part| part.as_os_str() == "src")
}

/// The first line that uses the keyword as code.
fn unsafe_line(text: &str) -> Option<usize> {
    text.lines()
        .position(|line| {
            let code = line.split("//").next().unwrap_or_default();
            ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "#[unsafe("]
                .iter()
                .any(|form| code.contains(form))
                && !code.contains('"')
        })
        .map(|index| index + 1)
}
