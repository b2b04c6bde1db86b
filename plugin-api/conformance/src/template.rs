//! A new plugin's crate: one that builds, passes its own tests and keeps every promise before its author has
//! written a line.
//!
//! The files lie in `template/` as they are, with `my-plugin` for a name; tests build and check them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What a new plugin is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A model architecture.
    Architecture,
    /// A routing strategy.
    Router,
    /// An eviction strategy.
    Evictor,
}

impl Kind {
    /// The command that puts the library where its daemon finds it.
    fn install(self) -> &'static str {
        match self {
            Self::Architecture => {
                "neuron plugin install target/release/libmy_plugin.so   # into the plugin directory; served without a restart"
            }
            Self::Router | Self::Evictor => {
                "neuron plugin install target/release/libmy_plugin.so --to /usr/lib/cortex/plugins   # prints where it lies"
            }
        }
    }

    /// How a person sees it work.
    fn usage(self) -> &'static str {
        match self {
            Self::Architecture => {
                "`neuron plugins` shows which build serves which device, and why others do not."
            }
            Self::Router => {
                "Name the installed file under `[plugins] files` of `cortex.toml` and `my-plugin` as `[routing] strategy`; \
                 `cortex explain REQUEST` then shows what it chose, and why."
            }
            Self::Evictor => {
                "Name the installed file under `[plugins] files` of `cortex.toml` and `my-plugin` as `[eviction] strategy`; \
                 `cortex explain REQUEST` then shows what it chose, and why."
            }
        }
    }
}

/// Where the new crate finds `plugin-sdk`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sdk {
    /// In a folder, e.g. of a checkout.
    Path(PathBuf),
    /// In a registry, by version.
    Version(String),
    /// In a git repository.
    Git(String),
}

impl Sdk {
    /// As the value of a dependency in Cargo.toml.
    fn dependency(&self) -> String {
        match self {
            Self::Path(path) => format!("{{ path = {:?} }}", path.display().to_string()),
            Self::Version(version) => format!("{version:?}"),
            Self::Git(address) => format!("{{ git = {address:?} }}"),
        }
    }
}

/// Why no crate was written.
#[derive(Debug)]
pub enum TemplateError {
    /// The name is none a plugin can have; the sentence says why.
    Name(String),
    /// The folder exists already.
    Exists(PathBuf),
    /// A file could not be written.
    Write(PathBuf, io::Error),
}

impl std::fmt::Display for TemplateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(why) => f.write_str(why),
            Self::Exists(path) => write!(f, "{} exists already; choose another folder", path.display()),
            Self::Write(path, error) => write!(f, "{} cannot be written: {error}", path.display()),
        }
    }
}

impl std::error::Error for TemplateError {}

/// The files of a new plugin's crate, as paths below its folder and their text.
///
/// # Errors
/// [`TemplateError::Name`] for a name with anything but lower case letters, digits, `-` and `_`.
pub fn files(name: &str, kind: Kind, sdk: &Sdk) -> Result<Vec<(PathBuf, String)>, TemplateError> {
    check_name(name)?;
    let (library, behaviour, summary) = match kind {
        Kind::Architecture => (
            include_str!("../template/arch/lib.rs"),
            include_str!("../template/arch/behaviour.rs"),
            "A model architecture for neuron.",
        ),
        Kind::Router => (
            include_str!("../template/router/lib.rs"),
            include_str!("../template/router/behaviour.rs"),
            "A routing strategy for cortex.",
        ),
        Kind::Evictor => (
            include_str!("../template/evictor/lib.rs"),
            include_str!("../template/evictor/behaviour.rs"),
            "An eviction strategy for cortex.",
        ),
    };
    let files = [
        ("Cargo.toml", include_str!("../template/Cargo.toml.in")),
        ("README.md", include_str!("../template/README.md")),
        ("build.rs", include_str!("../template/build.rs")),
        (".gitignore", "/target\n"),
        ("src/lib.rs", library),
        ("tests/behaviour.rs", behaviour),
    ];
    let named = |text: &str| {
        text.replace("MY_SDK", &sdk.dependency())
            .replace("MY_SUMMARY", summary)
            .replace("MY_INSTALL", kind.install())
            .replace("MY_USE", kind.usage())
            .replace("my-plugin", name)
            .replace("my_plugin", &name.replace('-', "_"))
            .replace("MyPlugin", &camel(name, ""))
            .replace("MyModel", &camel(name, "Model"))
    };
    Ok(files.into_iter().map(|(path, text)| (PathBuf::from(path), named(text))).collect())
}

/// Writes the crate of a new plugin into `folder`, which must not exist yet.
///
/// # Errors
/// [`TemplateError`].
pub fn write(folder: &Path, name: &str, kind: Kind, sdk: &Sdk) -> Result<(), TemplateError> {
    let files = files(name, kind, sdk)?;
    if folder.exists() {
        return Err(TemplateError::Exists(folder.to_owned()));
    }
    for (path, text) in files {
        let path = folder.join(path);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, text))
            .map_err(|error| TemplateError::Write(path.clone(), error))?;
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), TemplateError> {
    let simple =
        name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte));
    if simple && name.starts_with(|first: char| first.is_ascii_lowercase()) {
        return Ok(());
    }
    Err(TemplateError::Name(format!(
        "{name:?} is no name for a plugin: it begins with a lower case letter and goes on with those, digits, - and _"
    )))
}

/// `most-free` as `MostFree`.
fn camel(name: &str, ending: &str) -> String {
    let words = name.split(['-', '_']).map(|word| {
        let (first, rest) = word.split_at(word.len().min(1));
        first.to_ascii_uppercase() + rest
    });
    words.chain([ending.to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_carried_through() {
        let sdk = Sdk::Version("1.0".into());
        for bad in ["", "Llama", "my plugin", "7b", "../x", "ü"] {
            assert!(matches!(files(bad, Kind::Router, &sdk), Err(TemplateError::Name(_))), "{bad}");
        }
        for kind in [Kind::Architecture, Kind::Router, Kind::Evictor] {
            let files = files("most-free", kind, &sdk).expect("a good name");
            let all: String = files.iter().map(|(_, text)| text.as_str()).collect();
            assert!(
                all.contains("plugin-sdk = \"1.0\"") && all.contains("most_free") && all.contains("MostFree")
            );
            for left_over in ["my-plugin", "my_plugin", "MyPlugin", "MY_"] {
                assert!(!all.contains(left_over), "{left_over}");
            }
        }
    }
}
