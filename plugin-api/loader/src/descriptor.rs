//! What a file claims to be, read from its ELF section without running any of its code.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use object::{Architecture, Object, ObjectKind, ObjectSection};
use plugin_abi::{ABI_VERSION, DESCRIPTOR_SECTION};
use serde::{Deserialize, Serialize};

use crate::refusal::{Cause, Refusal};

/// Largest descriptor that is read, in bytes.
const LARGEST: u64 = 64 * 1024;

/// The descriptor of a plugin file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// ABI version the plugin was built for.
    pub abi: String,
    /// Plugin name.
    pub name: String,
    /// Plugin version.
    pub version: String,
    /// `cpu-v2`, `cpu-v3`, `cpu-v4`, `ampere`, `ada`, `hopper`, `blackwell`.
    pub build: String,
    /// Git revision, or empty.
    #[serde(default)]
    pub git: String,
    /// `unwind` or `abort`.
    pub panic: String,
    /// Compute capabilities with machine code inside, as `major * 10 + minor`; empty for CPU builds.
    #[serde(default)]
    pub machine_code: Vec<u16>,
    /// Lowest compute capability the contained PTX can be compiled for; 0 when there is none.
    #[serde(default)]
    pub ptx: u16,
    /// CUDA toolkit as `major * 1000 + minor * 10`; 0 for CPU builds.
    #[serde(default)]
    pub cuda: u16,
}

impl Descriptor {
    /// Refuses another ABI major and a panic strategy that nothing could catch.
    pub(crate) fn check(&self) -> Result<(), Cause> {
        let major = |version: &str| version.split('.').next().map(str::to_owned);
        if major(&self.abi) != major(ABI_VERSION) {
            return Err(Cause::AbiVersion { expected: ABI_VERSION.into(), found: self.abi.clone() });
        }
        if self.panic != "unwind" {
            return Err(Cause::PanicStrategy(self.panic.clone()));
        }
        Ok(())
    }
}

/// Reads the descriptor of the plugin at `path`. Nothing of the file is executed.
///
/// # Errors
/// [`Cause::Unreadable`], [`Cause::NotALibrary`] or [`Cause::NotAPlugin`].
pub fn descriptor(path: &Path) -> Result<Descriptor, Refusal> {
    let file = File::open(path).map_err(|error| Refusal::new(path, Cause::Unreadable(error.to_string())))?;
    read_descriptor(&file).map_err(|cause| Refusal::new(path, cause))
}

pub(crate) fn read_descriptor(mut file: &File) -> Result<Descriptor, Cause> {
    let metadata = file.metadata().map_err(|error| Cause::Unreadable(error.to_string()))?;
    if !metadata.is_file() {
        return Err(Cause::Unreadable("it is not a regular file".into()));
    }
    let mut magic = [0u8; 4];
    if file.read_exact(&mut magic).is_err() || magic != *b"\x7fELF" {
        return Err(Cause::NotALibrary("it has no ELF header".into()));
    }
    let cache = object::ReadCache::new(file);
    let elf = object::File::parse(&cache).map_err(|error| Cause::NotALibrary(error.to_string()))?;
    if elf.kind() != ObjectKind::Dynamic {
        return Err(Cause::NotALibrary("it is an ELF file, but not a shared library".into()));
    }
    let expected = if cfg!(target_arch = "aarch64") { Architecture::Aarch64 } else { Architecture::X86_64 };
    if elf.architecture() != expected {
        return Err(Cause::NotALibrary(format!("it is made for {:?}", elf.architecture())));
    }
    let section = elf
        .section_by_name(DESCRIPTOR_SECTION)
        .ok_or_else(|| Cause::NotAPlugin(format!("it has no {DESCRIPTOR_SECTION} section")))?;
    if section.size() > LARGEST {
        return Err(Cause::NotAPlugin(format!("its descriptor has {} bytes", section.size())));
    }
    let bytes = section.data().map_err(|error| Cause::NotAPlugin(error.to_string()))?;
    parse(bytes)
}

fn parse(bytes: &[u8]) -> Result<Descriptor, Cause> {
    let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    serde_json::from_slice(&bytes[..end])
        .map_err(|error| Cause::NotAPlugin(format!("its descriptor is not understood: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(abi: &str, panic: &str) -> Descriptor {
        let text = format!(
            r#"{{"abi":"{abi}","name":"x","version":"1.2.3","build":"cpu-v3","panic":"{panic}","later":1}}"#
        );
        parse(text.as_bytes()).expect("well formed")
    }

    #[test]
    fn another_major_or_an_aborting_panic_is_refused_in_one_sentence() {
        assert_eq!(described("1.0.0", "unwind").check(), Ok(()));
        assert_eq!(described("1.9.0", "unwind").check(), Ok(()));
        let refused = described("2.0.0", "unwind").check().expect_err("another major");
        assert!(refused.to_string().contains("built for plugin ABI 2.0.0"), "{refused}");
        let refused = described("1.0.0", "abort").check().expect_err("abort");
        assert!(refused.to_string().contains("panic=\"abort\""), "{refused}");
    }

    #[test]
    fn hostile_bytes_are_refused_not_believed() {
        let cases: [&[u8]; 5] = [b"", b"\0\0\0", b"{", b"[]", b"{\"abi\":1}"];
        for case in cases {
            assert!(matches!(parse(case), Err(Cause::NotAPlugin(_))), "{case:?}");
        }
        let refused = descriptor(Path::new("/proc/self/cmdline")).expect_err("no library");
        assert!(refused.to_string().starts_with("/proc/self/cmdline: "), "{refused}");
    }
}
