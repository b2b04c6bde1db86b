//! `keys.toml`: the keys there are, as digests, with their limits.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{KeyDigest, digest};
use crate::config::ConfigError;

/// Characters of a new key.
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Length of a new key after its prefix: 40 characters of 62 are 238 bits.
const LENGTH: usize = 40;

/// A key as the file has it.
#[derive(Debug, Clone)]
pub struct KeyEntry {
    /// Its name.
    pub name: String,
    /// SHA-256 of it.
    pub digest: KeyDigest,
    /// It may change the fleet.
    pub admin: bool,
    /// Models it may use, `org/*` for all of `org`; all when empty.
    pub models: Vec<String>,
    /// Most requests per minute.
    pub requests_per_minute: Option<u64>,
    /// Most tokens per minute.
    pub tokens_per_minute: Option<u64>,
    /// Most requests at once.
    pub max_concurrent: Option<u32>,
    /// Most it may cost within `budget_days`.
    pub budget: Option<f64>,
    /// The window of the budget, in days.
    pub budget_days: u32,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    keys: Vec<Written>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    sha256: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    admin: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    models: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requests_per_minute: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tokens_per_minute: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_concurrent: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    budget: Option<f64>,
    #[serde(default = "month")]
    budget_days: u32,
}

fn month() -> u32 {
    30
}

/// Reads the keys.
///
/// # Errors
/// [`ConfigError`] naming what is wrong; a file that everybody may read is refused.
pub fn load(path: &Path) -> Result<Vec<KeyEntry>, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(read)?.permissions().mode();
    if mode & 0o006 != 0 {
        let message = format!(
            "{} may be read or written by everybody (mode {:o}); run 'chmod 600' on it",
            path.display(),
            mode & 0o777
        );
        return Err(ConfigError::value("keys.file", message));
    }
    parse(&fs::read_to_string(path).map_err(read)?, path)
}

/// Reads the keys from text.
///
/// # Errors
/// [`ConfigError`] naming key and entry.
pub fn parse(text: &str, source: &Path) -> Result<Vec<KeyEntry>, ConfigError> {
    let file: File = toml::from_str(text).map_err(|error| ConfigError::parse(source, error))?;
    let mut names = std::collections::BTreeSet::new();
    let mut entries = Vec::new();
    for key in file.keys {
        if key.name.is_empty() || !names.insert(key.name.clone()) {
            return Err(ConfigError::value("keys.name", format!("{:?} is empty or used twice", key.name)));
        }
        let digest = unhex(&key.sha256).ok_or_else(|| {
            ConfigError::value("keys.sha256", format!("of '{}' must be 64 hexadecimal digits", key.name))
        })?;
        entries.push(KeyEntry {
            name: key.name,
            digest,
            admin: key.admin,
            models: key.models,
            requests_per_minute: key.requests_per_minute,
            tokens_per_minute: key.tokens_per_minute,
            max_concurrent: key.max_concurrent,
            budget: key.budget,
            budget_days: key.budget_days,
        });
    }
    Ok(entries)
}

/// Makes a key, writes its digest to the file, and gives the key, which is kept nowhere.
///
/// # Errors
/// [`ConfigError`] when the file cannot be read or written, or has the name already.
pub fn create(path: &Path, name: &str, admin: bool) -> Result<String, ConfigError> {
    create_with(path, name, admin, Limits::default())
}

/// What a new key may do.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
pub struct Limits {
    /// Models it may use, separated by commas; `org/*` for all of `org`. All by default.
    #[arg(long, value_delimiter = ',')]
    pub models: Vec<String>,
    /// Most requests per minute.
    #[arg(long)]
    pub requests_per_minute: Option<u64>,
    /// Most tokens per minute.
    #[arg(long)]
    pub tokens_per_minute: Option<u64>,
    /// Most requests at once.
    #[arg(long)]
    pub max_concurrent: Option<u32>,
    /// Most it may cost within the window.
    #[arg(long)]
    pub budget: Option<f64>,
    /// The window of the budget, in days; 30 by default.
    #[arg(long)]
    pub budget_days: Option<u32>,
}

/// The same with limits.
///
/// # Errors
/// As [`create`].
pub fn create_with(path: &Path, name: &str, admin: bool, limits: Limits) -> Result<String, ConfigError> {
    let wrong = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut file = read_or_new(path)?;
    if name.is_empty() || file.keys.iter().any(|key| key.name == name) {
        return Err(ConfigError::value("keys.name", format!("{name:?} is empty or there already")));
    }
    let key = generate().map_err(wrong)?;
    file.keys.push(Written {
        name: name.to_owned(),
        sha256: hex(&digest(&key)),
        admin,
        models: limits.models,
        requests_per_minute: limits.requests_per_minute,
        tokens_per_minute: limits.tokens_per_minute,
        max_concurrent: limits.max_concurrent,
        budget: limits.budget,
        budget_days: limits.budget_days.unwrap_or_else(month),
    });
    write(path, &file).map_err(wrong)?;
    Ok(key)
}

/// Takes a key out of the file. False when it was not there.
///
/// # Errors
/// [`ConfigError`] when the file cannot be read or written.
pub fn remove(path: &Path, name: &str) -> Result<bool, ConfigError> {
    let mut file = read_or_new(path)?;
    let before = file.keys.len();
    file.keys.retain(|key| key.name != name);
    let found = file.keys.len() < before;
    if found {
        write(path, &file).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    }
    Ok(found)
}

fn read_or_new(path: &Path) -> Result<File, ConfigError> {
    match fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text).map_err(|error| ConfigError::parse(path, error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(File::default()),
        Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
    }
}

/// Written beside and renamed: nobody ever reads half a file.
fn write(path: &Path, file: &File) -> std::io::Result<()> {
    let text = toml::to_string(file).map_err(std::io::Error::other)?;
    let beside = path.with_extension("toml.new");
    let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    out.write_all(text.as_bytes())?;
    out.sync_all()?;
    fs::rename(&beside, path)
}

fn generate() -> std::io::Result<String> {
    let mut source = fs::File::open("/dev/urandom")?;
    let mut key = String::from("sk-cortex-");
    let mut byte = [0u8; 1];
    while key.len() < "sk-cortex-".len() + LENGTH {
        source.read_exact(&mut byte)?;
        // 248 is the largest multiple of 62: beyond it some characters would be likelier.
        if byte[0] < 248 {
            key.push(ALPHABET[usize::from(byte[0] % 62)] as char);
        }
    }
    Ok(key)
}

/// A digest as text.
pub fn hex(digest: &KeyDigest) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<KeyDigest> {
    let mut digest = [0u8; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_kept_as_a_digest_and_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys.toml");
        let key = create(&path, "alice", false).expect("a key");
        assert!(key.starts_with("sk-cortex-") && key.len() == 50, "{key}");
        assert!(create(&path, "alice", false).is_err(), "names are unique");
        create(&path, "root", true).expect("another");
        let limits = Limits { models: vec!["m".into()], budget: Some(2.5), ..Limits::default() };
        create_with(&path, "bob", false, limits).expect("a third");
        let text = fs::read_to_string(&path).expect("written");
        assert!(!text.contains(&key), "the key itself is kept nowhere");
        let entries = load(&path).expect("readable");
        assert_eq!(entries[0].digest, digest(&key));
        assert!(entries[1].admin && !entries[0].admin);
        assert!(remove(&path, "alice").expect("writable") && !remove(&path, "alice").expect("readable"));
        let left = load(&path).expect("readable");
        assert_eq!(left.len(), 2);
        assert_eq!(
            (left[1].models.clone(), left[1].budget, left[1].budget_days),
            (vec!["m".into()], Some(2.5), 30)
        );
    }

    #[test]
    fn a_file_everybody_may_read_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys.toml");
        create(&path, "alice", false).expect("a key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        let error = load(&path).expect_err("world-readable").to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("[[keys]]\nname = \"a\"\nsha256 = \"12\"", "64 hexadecimal"),
            ("[[keys]]\nname = \"a\"\nsha265 = \"12\"", "did you mean 'sha256'?"),
        ] {
            let error = parse(text, Path::new("keys.toml")).expect_err(text).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
