//! Plugin files for tests: built by cargo when a test first asks, and copied to be made faulty.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the checkout is there")
}

/// Builds a leaf crate in the workspace and returns its library. `arguments` go to `cargo rustc`.
pub fn library(package: &str, arguments: &[&str]) -> PathBuf {
    library_in(&root(), package, arguments)
}

/// As [`library`], in another workspace.
pub fn library_in(workspace: &Path, package: &str, arguments: &[&str]) -> PathBuf {
    cargo(workspace, package, "cdylib", arguments)
}

/// Builds a binary in another workspace.
pub fn program_in(workspace: &Path, package: &str, arguments: &[&str]) -> PathBuf {
    cargo(workspace, package, "bin", arguments)
}

fn cargo(workspace: &Path, package: &str, kind: &str, arguments: &[&str]) -> PathBuf {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR"));
    // cargo writes every variant of a package to one place: build and copy in one go, one test at a time.
    let lock = File::create(kept.join("building.lock")).expect("cargo's folder for tests can be written");
    lock.lock().expect("a file lock");
    let output = Command::new(env!("CARGO"))
        .args(["rustc", "--quiet", "--message-format=json-render-diagnostics", "-p", package])
        .args(arguments)
        .current_dir(workspace)
        .output()
        .expect("cargo runs");
    let messages = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{package} does not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let built = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["kind"][0] == kind)
        .filter_map(|message| Some(PathBuf::from(message["filenames"][0].as_str()?)))
        .next_back()
        .unwrap_or_else(|| panic!("cargo built no {kind} of {package}"));
    let variant: String = workspace
        .file_name()
        .iter()
        .map(|name| name.to_string_lossy())
        .chain(arguments.iter().map(|argument| (*argument).into()))
        .flat_map(|text| text.chars().filter(char::is_ascii_alphanumeric).collect::<Vec<_>>())
        .collect();
    let copy = kept.join(format!("{package}-{variant}.{kind}"));
    let bytes = std::fs::read(&built).expect("it was just built");
    if std::fs::read(&copy).ok().as_ref() != Some(&bytes) {
        let fresh = copy.with_extension("fresh"); // a running test may have the old one mapped
        std::fs::copy(&built, &fresh).expect("copied");
        std::fs::rename(&fresh, &copy).expect("renamed");
    }
    copy
}

/// A folder for one test, removed with it.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Copies the faulty plugin into `folder` and gives the copy the named fault.
pub fn faulty(folder: &Path, fault: &str) -> PathBuf {
    faulty_copy(&library("faulty-plugin", &[]), folder, fault)
}

/// As [`faulty`], from a library that was built already.
pub fn faulty_copy(library: &Path, folder: &Path, fault: &str) -> PathBuf {
    let marker = format!("FAULT={fault:.<34}");
    assert_eq!(marker.len(), 40, "{fault} is too long a name");
    patched(
        library,
        folder,
        &format!("{fault}.so"),
        b"FAULT=none..............................",
        marker.as_bytes(),
    )
}

/// Copies a library and replaces bytes that occur in it. Both must be equally long.
pub fn patched(library: &Path, folder: &Path, name: &str, from: &[u8], to: &[u8]) -> PathBuf {
    assert_eq!(from.len(), to.len(), "a patch must not move anything");
    let mut bytes = std::fs::read(library).expect("the library was built");
    let places: Vec<usize> = bytes
        .windows(from.len())
        .enumerate()
        .filter(|(_, window)| *window == from)
        .map(|(at, _)| at)
        .collect();
    assert!(!places.is_empty(), "{} does not contain {:?}", library.display(), String::from_utf8_lossy(from));
    for place in places {
        bytes[place..place + to.len()].copy_from_slice(to);
    }
    let path = folder.join(name);
    std::fs::write(&path, bytes).expect("the folder can be written");
    path
}
