//! Which plugin files there are, and what they claim to be. Nothing is executed.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::descriptor::{Descriptor, descriptor};
use crate::identity::FileIdentity;
use crate::refusal::{Cause, Refusal};

/// One `.so` in a plugin directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// The file.
    pub path: PathBuf,
    /// Which version of the file this is; `None` when it cannot be read.
    pub identity: Option<FileIdentity>,
    /// What it claims to be, or why it is out already.
    pub descriptor: Result<Descriptor, Refusal>,
}

/// Lists `<dir>/<name>.so` and `<dir>/<build>/<name>.so` of each directory, in the directories' order and then
/// by path. A directory that does not exist holds nothing; a file below `<build>` that claims another build is
/// refused.
pub fn scan<P: AsRef<Path>>(directories: impl IntoIterator<Item = P>) -> Vec<Found> {
    let mut found = Vec::new();
    for directory in directories {
        for path in entries(directory.as_ref()) {
            if path.is_dir() {
                let build = path.file_name().map(|name| name.to_string_lossy().into_owned());
                found.extend(libraries(&path).into_iter().map(|path| look(path, build.as_deref())));
            } else if is_library(&path) {
                found.push(look(path, None));
            }
        }
    }
    found
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    paths.sort();
    paths
}

fn libraries(directory: &Path) -> Vec<PathBuf> {
    entries(directory).into_iter().filter(|path| is_library(path)).collect()
}

/// Hidden files are half-copied ones, waiting to be renamed.
fn is_library(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    path.extension().is_some_and(|extension| extension == "so") && !hidden && !path.is_dir()
}

fn look(path: PathBuf, build: Option<&str>) -> Found {
    let identity = fs::metadata(&path).ok().map(|metadata| FileIdentity::of(&metadata));
    let descriptor = descriptor(&path).and_then(|descriptor| {
        descriptor.check().map_err(|cause| Refusal::new(&path, cause))?;
        match build {
            Some(build) if build != descriptor.build => Err(Refusal::new(
                &path,
                Cause::Mismatch {
                    field: "build".into(),
                    claimed: descriptor.build,
                    found: format!("directory {build}"),
                },
            )),
            _ => Ok(descriptor),
        }
    });
    Found { path, identity, descriptor }
}
