//! What stands beside a plugin file: `<name>.json`, written by whoever built it.
//!
//! The descriptor inside the file says what it claims to be; the manifest says what was found in it after it was
//! built, and what it has run on. It is never needed: a plugin without one is as good. One that was written for
//! another file is worse than none, so it is compared by SHA-256 first.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::trust::sha256;

/// Largest manifest that is read, in bytes.
const LARGEST: u64 = 256 * 1024;

/// A plugin's manifest. Absent fields are empty; fields nobody knows are ignored.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Manifest {
    /// Architectures inside.
    pub architectures: Vec<String>,
    /// `cpu-v3`, `hopper`.
    pub build: String,
    /// Compute capabilities it is meant for, as `major.minor`.
    #[serde(deserialize_with = "capabilities")]
    pub compute_capabilities: Vec<String>,
    /// Machine code found inside, as `sm_90a`; `None` when the manifest does not say.
    #[serde(deserialize_with = "some_targets")]
    pub sass: Option<Vec<String>>,
    /// PTX found inside, as `sm_80`; `None` when the manifest does not say.
    #[serde(deserialize_with = "some_targets")]
    pub ptx: Option<Vec<String>>,
    /// CUDA toolkit, as `13.0`; empty for CPU builds.
    #[serde(deserialize_with = "version")]
    pub cuda: String,
    /// x86-64 level it needs; 0 when the manifest does not say.
    #[serde(deserialize_with = "level")]
    pub cpu_level: u32,
    /// ABI version.
    pub abi: String,
    /// Git revision.
    pub git: String,
    /// SHA-256 of the plugin file, in hex.
    pub sha256: String,
    /// What it has run on, one entry per run: the card's name, or whatever the manifest writes.
    #[serde(deserialize_with = "runs")]
    pub hardware_runs: Vec<String>,
}

impl Manifest {
    /// Reads the manifest of the plugin at `plugin`. `Ok(None)` without one.
    ///
    /// # Errors
    /// One sentence: it cannot be read, is not understood, or belongs to another file.
    pub fn beside(plugin: &Path) -> Result<Option<Self>, String> {
        let path = place(plugin);
        let fail = |why: String| Err(format!("the manifest {} {why}", path.display()));
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return fail(format!("cannot be read: {error}")),
            Ok(metadata) if metadata.len() > LARGEST => {
                return fail(format!("has {} bytes and is not read", metadata.len()));
            }
            Ok(_) => {}
        }
        let manifest: Self = match std::fs::read(&path).map(|text| serde_json::from_slice(&text)) {
            Ok(Ok(manifest)) => manifest,
            Ok(Err(error)) => return fail(format!("is not understood: {error}")),
            Err(error) => return fail(format!("cannot be read: {error}")),
        };
        if !manifest.sha256.is_empty() {
            let found =
                sum(plugin).map_err(|error| format!("{} cannot be read: {error}", plugin.display()))?;
            if !manifest.sha256.eq_ignore_ascii_case(&found) {
                return fail("was written for another file; build the plugin again, or remove it".into());
            }
        }
        Ok(Some(manifest))
    }

    /// Compute capabilities with machine code inside, as `major * 10 + minor`, with whether each is bound to that
    /// very card; `None` when the manifest does not say.
    pub(crate) fn machine_code(&self) -> Option<Vec<(u32, bool)>> {
        let sass = self.sass.as_ref()?;
        Some(sass.iter().filter_map(|target| number(target)).collect())
    }

    /// Lowest compute capability the PTX inside can be compiled for, 0 without any; `None` when the manifest does
    /// not say.
    pub(crate) fn lowest_ptx(&self) -> Option<u32> {
        let ptx = self.ptx.as_ref()?;
        // PTX of an architecture-specific target loads on one card, where there is machine code as well.
        let portable = ptx.iter().filter_map(|target| number(target)).filter(|(_, bound)| !bound);
        Some(portable.map(|(target, _)| target).min().unwrap_or(0))
    }
}

/// Where the manifest of a plugin lies.
fn place(plugin: &Path) -> PathBuf {
    plugin.with_extension("json")
}

fn sum(path: &Path) -> std::io::Result<String> {
    sha256(&File::open(path)?)
}

/// `sm_90a` is 90, bound to that card; `sm_100f`, `compute_80`, `8.6` and `86` are not bound.
fn number(target: &str) -> Option<(u32, bool)> {
    let text = target.trim_start_matches("sm_").trim_start_matches("compute_");
    let bound = text.ends_with('a');
    let digits: String = text.trim_end_matches(['a', 'f']).chars().filter(|c| *c != '.').collect();
    Some((digits.parse().ok()?, bound))
}

/// A list, a single value, or nothing, whose items are texts or numbers.
fn items(value: Value) -> Vec<String> {
    match value {
        Value::Null | Value::Bool(false) => Vec::new(),
        Value::Array(list) => list.into_iter().flat_map(items).collect(),
        Value::String(text) if text.is_empty() => Vec::new(),
        Value::String(text) => vec![text],
        Value::Number(number) if number.as_u64() == Some(0) => Vec::new(),
        other => vec![other.to_string()],
    }
}

fn some_targets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok((!value.is_null()).then(|| items(value)))
}

fn capabilities<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let text = |item: String| match number(&item) {
        Some((number, _)) if number >= 10 => format!("{}.{}", number / 10, number % 10),
        _ => item,
    };
    Ok(items(Value::deserialize(deserializer)?).into_iter().map(text).collect())
}

/// `"13.0"`, or 13000 as the descriptor writes it.
fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(match value.as_u64() {
        Some(0) => String::new(),
        Some(number) if number >= 1000 => format!("{}.{}", number / 1000, number % 1000 / 10),
        _ => items(value).into_iter().next().unwrap_or_default(),
    })
}

/// `3` and `"v3"` are 3.
fn level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let text = items(Value::deserialize(deserializer)?).into_iter().next().unwrap_or_default();
    Ok(text.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0))
}

/// Texts, or objects, of which the device's name is shown.
fn runs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let entry = |value: Value| match &value {
        Value::Object(fields) => ["device", "name", "gpu", "card"]
            .iter()
            .find_map(|key| fields.get(*key)?.as_str().map(str::to_owned))
            .unwrap_or_else(|| value.to_string()),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Ok(match Value::deserialize(deserializer)? {
        Value::Array(list) => list.into_iter().map(entry).collect(),
        Value::Null => Vec::new(),
        other => vec![entry(other)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Manifest {
        serde_json::from_str(text).expect("understood")
    }

    #[test]
    fn several_spellings_are_understood() {
        let first = parse(
            r#"{"architectures":["llama"],"build":"hopper","compute_capabilities":["9.0"],"sass":["sm_90a"],
                "ptx":["sm_90a"],"cuda":"13.0","cpu_level":3,"abi":"1.0.0","later":{},
                "hardware_runs":[{"device":"NVIDIA H200","date":"2026-11-21"}]}"#,
        );
        let second = parse(
            r#"{"compute_capabilities":[90],"sass":"90a","ptx":[],"cuda":13000,"cpu_level":"v3",
                "hardware_runs":["NVIDIA H200"]}"#,
        );
        for manifest in [&first, &second] {
            assert_eq!(manifest.compute_capabilities, ["9.0"]);
            assert_eq!(manifest.machine_code(), Some(vec![(90, true)]));
            assert_eq!((manifest.lowest_ptx(), manifest.cuda.as_str()), (Some(0), "13.0"));
            assert_eq!(
                (manifest.cpu_level, &manifest.hardware_runs[..]),
                (3, &["NVIDIA H200".to_owned()][..])
            );
        }
        let blackwell = parse(r#"{"sass":["sm_100f","sm_120f"],"ptx":["sm_100"]}"#);
        assert_eq!(blackwell.machine_code(), Some(vec![(100, false), (120, false)]));
        assert_eq!(blackwell.lowest_ptx(), Some(100));
        let silent = parse("{}");
        assert_eq!((silent.machine_code(), silent.lowest_ptx()), (None, None));
    }

    #[test]
    fn one_of_another_file_is_not_believed() {
        let folder = tempfile::tempdir().expect("a folder");
        let plugin = folder.path().join("x.so");
        std::fs::write(&plugin, b"code").expect("written");
        assert_eq!(Manifest::beside(&plugin), Ok(None));
        let write = |text: &str| std::fs::write(folder.path().join("x.json"), text).expect("written");
        write(&format!(r#"{{"build":"hopper","sha256":"{}"}}"#, sum(&plugin).expect("read")));
        let manifest = Manifest::beside(&plugin).expect("of this file").expect("there");
        assert_eq!(manifest.build, "hopper");
        std::fs::write(&plugin, b"other code").expect("written");
        let wrong = Manifest::beside(&plugin).expect_err("of another file");
        assert!(wrong.contains("x.json was written for another file"), "{wrong}");
        write("{");
        assert!(Manifest::beside(&plugin).expect_err("half of it").contains("is not understood"));
    }
}
