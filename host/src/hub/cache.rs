//! The hub's cache folder, in the layout all its tools share.
//!
//! ```text
//! models--org--name/refs/main                     the commit a revision stood for
//! models--org--name/blobs/<etag>                  contents, once each
//! models--org--name/snapshots/<commit>/<file>     links to them
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{HubError, HubId};

/// Where the cache is when nobody says.
pub(super) fn default_folder() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HUGGINGFACE_HUB_CACHE"))
        .unwrap_or_else(|| home().join("hub"))
}

fn home() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("HF_HOME")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
        .unwrap_or_else(|| variable("HOME").unwrap_or_else(|| "/tmp".into()).join(".cache/huggingface"))
}

/// The access token of the environment or of the token file.
pub(super) fn token() -> Option<String> {
    let said = std::env::var("HF_TOKEN").ok();
    let path = std::env::var_os("HF_TOKEN_PATH").map_or_else(|| home().join("token"), PathBuf::from);
    said.or_else(|| fs::read_to_string(path).ok())
        .map(|token| token.trim().to_owned())
        .filter(|token| !token.is_empty())
}

/// One model's part of the cache.
#[derive(Debug, Clone)]
pub(super) struct Repository {
    folder: PathBuf,
    locks: PathBuf,
    revision: String,
    file: Option<String>,
}

impl Repository {
    pub fn new(cache: &Path, id: &HubId) -> Self {
        let name = format!("models--{}--{}", id.owner, id.name);
        Self {
            locks: cache.join(".locks").join(&name),
            folder: cache.join(name),
            revision: id.revision.clone(),
            file: id.file.clone(),
        }
    }

    /// The folder or file that was asked for, if everything needed of it is there.
    pub fn complete(&self) -> Option<PathBuf> {
        let snapshot = self.snapshot(&self.known_commit()?);
        match &self.file {
            Some(file) => Some(snapshot.join(file)).filter(|path| path.exists() && all_parts(path)),
            None => is_complete(&snapshot).then_some(snapshot),
        }
    }

    /// The commit the revision stood for when it was last fetched.
    fn known_commit(&self) -> Option<String> {
        if is_commit(&self.revision) {
            return Some(self.revision.clone());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(&self.revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The contents that go by `etag`.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Where the contents grow until they are complete.
    pub fn growing(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Keeps other processes from fetching the same contents at the same time. Blocks.
    pub fn lock(&self, etag: &str) -> Result<fs::File, HubError> {
        let path = self.locks.join(format!("{etag}.lock"));
        fs::create_dir_all(&self.locks).map_err(HubError::disk(&self.locks))?;
        let file = fs::File::create(&path).map_err(HubError::disk(&path))?;
        file.lock().map_err(HubError::disk(&path))?;
        Ok(file)
    }

    /// Gives the contents `etag` their name in a snapshot.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let link = self.snapshot(commit).join(file);
        let folder = link.parent().expect("a file of a snapshot is in a folder");
        fs::create_dir_all(folder).map_err(HubError::disk(folder))?;
        let up = "../".repeat(2 + file.matches('/').count());
        let target = format!("{up}blobs/{etag}");
        if fs::read_link(&link).is_ok_and(|now| now == Path::new(&target)) {
            return Ok(());
        }
        // Made aside and moved into place: whoever reads sees the old link or the new one.
        let aside = folder.join(format!(".{etag}.link"));
        let _ = fs::remove_file(&aside); // left over from a process that was killed
        std::os::unix::fs::symlink(&target, &aside).map_err(HubError::disk(&aside))?;
        fs::rename(&aside, &link).map_err(HubError::disk(&link))
    }

    /// Remembers what the revision stands for now.
    pub fn remember(&self, commit: &str) -> Result<(), HubError> {
        if is_commit(&self.revision) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(&self.revision);
        let folder = path.parent().expect("a reference is in a folder");
        fs::create_dir_all(folder).map_err(HubError::disk(folder))?;
        let aside = path.with_extension("new");
        fs::write(&aside, commit).map_err(HubError::disk(&aside))?;
        fs::rename(&aside, &path).map_err(HubError::disk(&path))
    }
}

/// Whether a revision is a commit's full name.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a snapshot holds everything a model needs. Files are linked in an order that makes this sound: a
/// snapshot gets its config.json last.
fn is_complete(snapshot: &Path) -> bool {
    if !snapshot.join("config.json").exists() {
        let ggufs = files_with(snapshot, "gguf");
        return ggufs.len() == 1 && all_parts(&snapshot.join(&ggufs[0])) || are_parts(&ggufs);
    }
    let Ok(index) = fs::read_to_string(snapshot.join("model.safetensors.index.json")) else {
        return !files_with(snapshot, "safetensors").is_empty();
    };
    let Ok(index) = serde_json::from_str::<Value>(&index) else { return false };
    let shards = index["weight_map"].as_object();
    shards
        .is_some_and(|map| map.values().filter_map(Value::as_str).all(|shard| snapshot.join(shard).exists()))
}

fn files_with(folder: &Path, extension: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let names = entries
        .filter(|entry| entry.path().exists())
        .filter_map(|entry| entry.file_name().into_string().ok());
    let suffix = format!(".{extension}");
    let mut names: Vec<String> = names.filter(|name| name.ends_with(&suffix)).collect();
    names.sort();
    names
}

fn are_parts(names: &[String]) -> bool {
    names.first().is_some_and(|first| {
        let parts = super::wanted::parts(first);
        parts.len() > 1 && parts.iter().all(|part| names.contains(part)) && parts.len() == names.len()
    })
}

/// Whether all parts of a split GGUF are beside this one.
fn all_parts(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    super::wanted::parts(name).iter().all(|part| path.with_file_name(part).exists())
}
