//! Putting a plugin file where hosts look for it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::descriptor::read_descriptor;
use crate::manifest::Manifest;
use crate::refusal::{Cause, Refusal};

/// Copies the plugin file at `file` to `<directory>/<build>/<name>.so`, by the name and build it gives itself,
/// and returns where it lies. An earlier version is replaced by rename: a process that has it mapped goes on
/// with it, and no host ever sees half a file. The manifest beside the file goes with it, if it is one of this very
/// file; that of an earlier version does not stay.
///
/// # Errors
/// A [`Refusal`]: the file is no plugin for this host, or the directory cannot be written.
pub fn install(file: &Path, directory: &Path) -> Result<PathBuf, Refusal> {
    let refuse = |cause| Refusal::new(file, cause);
    let source = File::open(file).map_err(|error| refuse(Cause::Unreadable(error.to_string())))?;
    let descriptor = read_descriptor(&source).map_err(refuse)?;
    descriptor.check().map_err(refuse)?;
    if !names_a_file(&descriptor.name) || !names_a_file(&descriptor.build) {
        return Err(refuse(Cause::NotAPlugin(format!(
            "it calls itself {:?}, build {:?}, which cannot be the name of a file",
            descriptor.name, descriptor.build
        ))));
    }
    let folder = directory.join(&descriptor.build);
    let place = folder.join(format!("{}.so", descriptor.name));
    let half = folder.join(format!(".{}.{}.so", descriptor.name, std::process::id()));
    copy(file, &folder, &half, &place).map_err(|error| {
        // The half copy may not even have been begun.
        let _ = fs::remove_file(&half);
        refuse(Cause::Install(format!("{}: {error}", place.display())))
    })?;
    let moved = carry_manifest(file, &place);
    moved.map_err(|error| refuse(Cause::Install(format!("{}: {error}", manifest_of(&place).display()))))?;
    Ok(place)
}

fn manifest_of(plugin: &Path) -> PathBuf {
    plugin.with_extension("json")
}

fn carry_manifest(file: &Path, place: &Path) -> io::Result<()> {
    let target = manifest_of(place);
    if let Ok(Some(_)) = Manifest::beside(file) {
        let half = place.with_extension(format!("json.{}", std::process::id()));
        fs::copy(manifest_of(file), &half)?;
        fs::set_permissions(&half, fs::Permissions::from_mode(0o644))?;
        return fs::rename(half, target);
    }
    match fs::remove_file(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn names_a_file(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    !name.is_empty() && name.bytes().all(plain)
}

fn copy(file: &Path, folder: &Path, half: &Path, place: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::copy(file, half)?;
    fs::set_permissions(half, fs::Permissions::from_mode(0o644))?;
    File::open(half)?.sync_all()?;
    fs::rename(half, place)
}
