//! What is really inside a compiled plugin, read from the file itself.
//!
//! A plugin for the wrong card computes garbage without an error, and one that needs a CUDA library to load cannot
//! even say that it is missing. So what was built is looked at before it is installed: nothing here trusts a
//! build's settings, a section's claim or a tool that may not be there.

mod fatbin;
mod ptx;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use object::elf::DT_NEEDED;
use object::read::elf::{ElfFile64, FileHeader};
use object::{Endianness, Object, ObjectSection};
use serde::{Deserialize, Serialize};

/// The ELF section of a plugin's own description (`plugin_abi::DESCRIPTOR_SECTION`).
const DESCRIPTOR_SECTION: &str = ".neuron.plugin";

/// What was found in a plugin file.
#[derive(Debug, Default)]
pub struct Contents {
    /// What the file claims to be.
    pub descriptor: Descriptor,
    /// Targets of the GPU machine code inside, e.g. `sm_90a`.
    pub machine_code: BTreeSet<String>,
    /// PTX inside: target, then language version, e.g. `sm_80`, `9.0`.
    pub ptx: BTreeSet<(String, String)>,
    /// Libraries without which the file does not load.
    pub needed: BTreeSet<String>,
    /// Oldest glibc it runs with, as `major.minor`; empty when it needs none.
    pub glibc: String,
}

/// What a plugin claims to be; the fields this tool compares.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Descriptor {
    /// ABI version.
    pub abi: String,
    /// Name of the plugin.
    pub name: String,
    /// Version of the plugin.
    pub version: String,
    /// Build.
    pub build: String,
    /// Git revision, or empty.
    #[serde(default)]
    pub git: String,
    /// Compute capabilities with machine code, `major * 10 + minor`.
    #[serde(default)]
    pub machine_code: Vec<u16>,
    /// Lowest capability the PTX can be compiled for; 0 when it is bound to one card, or there is none.
    #[serde(default)]
    pub ptx: u16,
    /// CUDA version, `major * 1000 + minor * 10`.
    #[serde(default)]
    pub cuda: u16,
}

/// Reads a plugin file.
pub fn read(path: &Path) -> Result<Contents> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    contents(&bytes).with_context(|| format!("{} is not a plugin", path.display()))
}

fn contents(bytes: &[u8]) -> Result<Contents> {
    let elf = ElfFile64::<Endianness>::parse(bytes).context("it is not a 64-bit ELF file")?;
    let descriptor = elf.section_by_name(DESCRIPTOR_SECTION).context("it describes itself nowhere")?;
    let text = descriptor.data()?.split(|byte| *byte == 0).next().unwrap_or_default();
    let mut contents = Contents {
        descriptor: serde_json::from_slice(text).context("its description is not understood")?,
        ptx: ptx::scan(bytes),
        needed: needed(&elf)?,
        glibc: glibc(&elf, bytes)?,
        ..Contents::default()
    };
    for section in elf.sections() {
        // The linker keeps this section's name; relocatable device code has one of its own.
        if matches!(section.name(), Ok(".nv_fatbin" | "__nv_relfatbin")) {
            let code = fatbin::read(section.data()?)?;
            contents.machine_code.extend(code.machine_code);
            contents.ptx.extend(code.ptx.into_iter().map(|target| (target, String::new())));
        }
    }
    Ok(contents)
}

fn needed(elf: &ElfFile64<'_>) -> Result<BTreeSet<String>> {
    let table = elf.elf_dynamic_table()?;
    let entries = table.iter().filter(|entry| entry.tag == DT_NEEDED);
    entries.map(|entry| Ok(String::from_utf8_lossy(table.string(entry)?).into_owned())).collect()
}

/// The newest `GLIBC_x.y` that a symbol is wanted from.
fn glibc(elf: &ElfFile64<'_>, bytes: &[u8]) -> Result<String> {
    let endian = elf.elf_header().endian()?;
    let sections = elf.elf_section_table();
    let Some((mut libraries, strings)) = sections.gnu_verneed(endian, bytes)? else {
        return Ok(String::new());
    };
    let strings = sections.strings(endian, bytes, strings)?;
    let mut newest = (0, 0);
    while let Some((_, mut versions)) = libraries.next()? {
        while let Some(version) = versions.next()? {
            let name = String::from_utf8_lossy(version.name(endian, strings)?).into_owned();
            newest = newest.max(glibc_version(&name).unwrap_or_default());
        }
    }
    Ok(if newest == (0, 0) { String::new() } else { format!("{}.{}", newest.0, newest.1) })
}

fn glibc_version(name: &str) -> Option<(u32, u32)> {
    let mut parts = name.strip_prefix("GLIBC_")?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(glibc_version("GLIBC_2.34") > glibc_version("GLIBC_2.4"));
        assert_eq!(glibc_version("GLIBC_2.2.5"), Some((2, 2)));
        assert_eq!(glibc_version("GLIBC_PRIVATE"), None);
        assert_eq!(glibc_version("CXXABI_1.3"), None);
    }

    #[test]
    fn what_is_no_plugin_is_refused_with_a_reason() {
        let this = std::env::current_exe().and_then(std::fs::read).expect("a test reads itself");
        let cases: [(&[u8], &str); 3] =
            [(b"", "ELF"), (b"#!/bin/sh\n", "ELF"), (&this, "describes itself nowhere")];
        for (bytes, reason) in cases {
            let refusal = contents(bytes).expect_err("no plugin").to_string();
            assert!(refusal.contains(reason), "{refusal}");
        }
    }

    /// A library with everything in it that is looked for, made by a C compiler.
    #[test]
    fn everything_in_a_library_is_found() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let source = r#"
            #include <math.h>
            #include <stdio.h>
            __attribute__((section(".neuron.plugin"), used)) static const char description[] =
                "{\"abi\":\"1.0.0\",\"name\":\"toy\",\"version\":\"2.0.0\",\"build\":\"hopper\",\"machine_code\":[90],\"cuda\":13000}";
            const char *ptx(void) { return "//\n.version 9.0\n.target sm_90a\n.address_size 64\n"; }
            double root(double x) { puts("root"); return sqrt(x) + pow(x, 0.3); }
        "#;
        let path = folder.path().join("toy.c");
        std::fs::write(&path, source).expect("written");
        let library = folder.path().join("toy.so");
        let compiled = std::process::Command::new("gcc")
            .args(["-shared", "-fPIC", "-o"])
            .args([&library, &path])
            .arg("-lm")
            .status();
        assert!(compiled.is_ok_and(|status| status.success()), "gcc compiles it");
        let found = read(&library).expect("it is read");
        assert_eq!(
            (found.descriptor.name.as_str(), found.descriptor.machine_code.as_slice()),
            ("toy", &[90][..])
        );
        assert_eq!(found.ptx.into_iter().collect::<Vec<_>>(), [("sm_90a".into(), "9.0".into())]);
        assert!(
            found.needed.contains("libm.so.6") && found.needed.contains("libc.so.6"),
            "{:?}",
            found.needed
        );
        assert!(found.glibc.starts_with("2."), "{}", found.glibc);
        assert!(found.machine_code.is_empty());
    }
}
