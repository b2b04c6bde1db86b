//! What a model's name says: a place on this machine, or a model of the hub.

use std::path::{Path, PathBuf};

use super::HubError;

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A folder or file.
    Local(PathBuf),
    /// A model of the hub.
    Hub(HubId),
}

/// `org/name[@revision][:file.gguf]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// Whose model.
    pub owner: String,
    /// Its name.
    pub name: String,
    /// Branch, tag or commit; `main` if not said.
    pub revision: String,
    /// The one file that is meant.
    pub file: Option<String>,
}

impl ModelSource {
    /// Reads a name. What exists on this machine, or is written as a path, is a path.
    pub fn parse(text: &str) -> Result<Self, HubError> {
        let path = Path::new(text);
        let as_path = text.starts_with(['/', '.', '~']) || path.exists();
        if as_path {
            return Ok(Self::Local(home(text)));
        }
        HubId::parse(text).map(Self::Hub)
    }
}

/// `~/` is the home folder; shells do not expand it in configuration files.
fn home(text: &str) -> PathBuf {
    match (text.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => text.into(),
    }
}

impl HubId {
    fn parse(text: &str) -> Result<Self, HubError> {
        let wrong = |why: &str| {
            HubError::BadId(format!(
                "'{text}' is neither a path on this machine nor org/name[@revision][:file.gguf]: {why}"
            ))
        };
        let (rest, file) = match text.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (text, None),
        };
        let (repository, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let (owner, name) = repository.split_once('/').ok_or_else(|| wrong("there is no slash in it"))?;
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with(['.', '-'])
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        if !plain(owner) || !plain(name) {
            return Err(wrong("names are letters, digits, '-', '_' and '.'"));
        }
        let inside = |part: &str| {
            !part.is_empty()
                && part.split('/').all(|step| !step.is_empty() && step != "." && step != "..")
                && !part.contains('\\')
        };
        if !inside(revision) || file.is_some_and(|file| !inside(file)) {
            return Err(wrong("revision and file must stay inside the model"));
        }
        if file.is_some_and(|file| !file.ends_with(".gguf")) {
            return Err(wrong("the file after ':' must be a .gguf"));
        }
        Ok(Self {
            owner: owner.to_owned(),
            name: name.to_owned(),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }

    /// `org/name`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Option<(String, String, Option<String>)> {
        match ModelSource::parse(text) {
            Ok(ModelSource::Hub(id)) => Some((id.repository(), id.revision, id.file)),
            _ => None,
        }
    }

    #[test]
    fn names_of_the_hub() {
        let parsed = |repository: &str, revision: &str, file: Option<&str>| {
            Some((repository.to_owned(), revision.to_owned(), file.map(str::to_owned)))
        };
        assert_eq!(id("Qwen/Qwen3-0.6B"), parsed("Qwen/Qwen3-0.6B", "main", None));
        assert_eq!(id("a/b@v1.0"), parsed("a/b", "v1.0", None));
        assert_eq!(id("a/b:c.gguf"), parsed("a/b", "main", Some("c.gguf")));
        assert_eq!(id("a/b@refs/pr/1:sub/c.gguf"), parsed("a/b", "refs/pr/1", Some("sub/c.gguf")));
        for wrong in [
            "smol",
            "a/b/c",
            "a/b:c.bin",
            "a/b:../c.gguf",
            "a/b@../x",
            "../a",
            "a b/c",
            "a/.b",
            "",
            "a/",
            "a/b:/x.gguf",
        ] {
            assert_eq!(id(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn paths() {
        for path in ["/models/x", "./x", "../x", "~/x"] {
            assert!(matches!(ModelSource::parse(path), Ok(ModelSource::Local(_))), "{path}");
        }
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().to_str().unwrap();
        assert_eq!(ModelSource::parse(text).unwrap(), ModelSource::Local(folder.path().to_owned()));
    }
}
