//! From a model's id to its files.
//!
//! Finding and fetching files is the business of a [`Resolver`], so that a hub can be plugged in; what the
//! files say about the model is read here, once, for every way they may have come.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;
use wire_api::node::events::LoadPhase;
use wire_api::node::models::Failure;

use super::error::{code, failure};
use crate::catalogue::ArchitectureKey;
use crate::prompt::GgufMetadata;
use crate::worker::protocol::WeightFormat;

/// Hears how far a resolver has come: phase, bytes done, bytes in all, what is being worked on.
pub type ResolveProgress = Arc<dyn Fn(LoadPhase, u64, u64, Option<String>) + Send + Sync>;

/// Finds a model's files, fetching them if it must.
pub trait Resolver: Send + Sync + 'static {
    /// The folder or GGUF file `model` stands for, complete and on this machine. Dropping the future gives up.
    fn resolve(
        &self,
        model: String,
        progress: ResolveProgress,
    ) -> BoxFuture<'static, Result<PathBuf, Failure>>;
}

/// Resolves local paths only.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalPaths;

impl Resolver for LocalPaths {
    fn resolve(&self, model: String, _: ResolveProgress) -> BoxFuture<'static, Result<PathBuf, Failure>> {
        Box::pin(async move {
            std::fs::canonicalize(&model)
                .map_err(|error| failure(code::NOT_RESOLVED, format!("{model}: {error}"), false))
        })
    }
}

/// What a model's files say.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelFiles {
    /// The folder or GGUF file, for the text side.
    pub path: PathBuf,
    /// Which architecture it is.
    pub architecture: ArchitectureKey,
    /// Container of the weights.
    pub format: WeightFormat,
    /// Text of `config.json`; empty for a GGUF.
    pub config: String,
    /// Text of `preprocessor_config.json`; empty without one.
    pub preprocessor: String,
    /// Weight files, in shard order.
    pub weights: Vec<PathBuf>,
    /// Their size.
    pub weight_file_bytes: u64,
}

impl ModelFiles {
    /// Reads the model at `path`: a folder in HuggingFace layout, a folder with one GGUF, or a GGUF file.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let wrong = |message: String| failure(code::INVALID, format!("{}: {message}", path.display()), false);
        if path.is_file() {
            return Self::read_gguf(path, vec![path.to_owned()]);
        }
        let names = list(path).map_err(|error| wrong(error.to_string()))?;
        let config = path.join("config.json");
        let safetensors = safetensors(path, &names).map_err(wrong)?;
        let ggufs: Vec<PathBuf> = with_extension(path, &names, "gguf");
        if config.is_file() && (ggufs.is_empty() || !safetensors.is_empty()) {
            return Self::read_folder(path, &config, safetensors);
        }
        match ggufs.as_slice() {
            [] => Err(wrong("there is neither a config.json nor a .gguf file".into())),
            [first, ..] if ggufs.len() == 1 || are_shards(&ggufs) => Self::read_gguf(first, ggufs.clone()),
            _ => Err(wrong(format!("there are {} .gguf files; name the one that is meant", ggufs.len()))),
        }
    }

    fn read_folder(path: &Path, config: &Path, weights: Vec<PathBuf>) -> Result<Self, Failure> {
        let wrong =
            |message: String| failure(code::INVALID, format!("{}: {message}", config.display()), false);
        let text = std::fs::read_to_string(config).map_err(|error| wrong(error.to_string()))?;
        let value: Value = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        let model_type =
            value["model_type"].as_str().ok_or_else(|| wrong("it names no model_type".into()))?.to_owned();
        let preprocessor = ["preprocessor_config.json", "video_preprocessor_config.json"]
            .iter()
            .find_map(|name| std::fs::read_to_string(path.join(name)).ok());
        Ok(Self {
            path: path.to_owned(),
            architecture: ArchitectureKey::ModelType(model_type),
            format: if weights.is_empty() { WeightFormat::None } else { WeightFormat::Safetensors },
            config: text,
            preprocessor: preprocessor.unwrap_or_default(),
            weight_file_bytes: size(&weights),
            weights,
        })
    }

    fn read_gguf(path: &Path, weights: Vec<PathBuf>) -> Result<Self, Failure> {
        let wrong = |message: String| failure(code::INVALID, format!("{}: {message}", path.display()), false);
        let metadata = GgufMetadata::open(path).map_err(|error| wrong(error.to_string()))?;
        let architecture = metadata
            .architecture()
            .ok_or_else(|| wrong("it names no general.architecture".into()))?
            .to_owned();
        Ok(Self {
            path: path.to_owned(),
            architecture: ArchitectureKey::Gguf(architecture),
            format: WeightFormat::Gguf,
            config: String::new(),
            preprocessor: String::new(),
            weight_file_bytes: size(&weights),
            weights,
        })
    }
}

fn list(path: &Path) -> std::io::Result<Vec<String>> {
    let mut names: Vec<String> = std::fs::read_dir(path)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    Ok(names)
}

fn with_extension(path: &Path, names: &[String], extension: &str) -> Vec<PathBuf> {
    let suffix = format!(".{extension}");
    names.iter().filter(|name| name.ends_with(&suffix)).map(|name| path.join(name)).collect()
}

/// The safetensors files of a folder: those its index names, else the one of the usual name, else all of them.
fn safetensors(path: &Path, names: &[String]) -> Result<Vec<PathBuf>, String> {
    let index = path.join("model.safetensors.index.json");
    let Ok(text) = std::fs::read_to_string(&index) else {
        let whole = path.join("model.safetensors");
        return Ok(if whole.is_file() { vec![whole] } else { with_extension(path, names, "safetensors") });
    };
    let value: Value =
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", index.display()))?;
    let map = value["weight_map"].as_object().ok_or_else(|| format!("{}: no weight_map", index.display()))?;
    let mut shards: Vec<&str> = map.values().filter_map(Value::as_str).collect();
    shards.sort_unstable();
    shards.dedup();
    for shard in &shards {
        let inside =
            Path::new(shard).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if !inside || !path.join(shard).is_file() {
            return Err(format!("the index names {shard}, which is not there"));
        }
    }
    Ok(shards.into_iter().map(|shard| path.join(shard)).collect())
}

/// Whether all names are `x-00001-of-0000N.gguf` of one `x`.
fn are_shards(paths: &[PathBuf]) -> bool {
    let stem = |path: &PathBuf| {
        let name = path.file_stem()?.to_str()?;
        let (rest, count) = name.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        (digits(count) && digits(number)).then(|| (stem.to_owned(), count.to_owned()))
    };
    let first = paths.first().and_then(stem);
    first.is_some() && paths.iter().all(|path| stem(path) == first)
}

fn size(paths: &[PathBuf]) -> u64 {
    paths.iter().filter_map(|path| std::fs::metadata(path).ok()).map(|metadata| metadata.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn folders_are_understood() {
        let weightless = folder(&[("config.json", r#"{"model_type": "echo"}"#)]);
        let files = ModelFiles::read(weightless.path()).unwrap();
        assert_eq!(files.architecture, ArchitectureKey::ModelType("echo".into()));
        assert_eq!(files.format, WeightFormat::None);

        let index = r#"{"weight_map": {"a": "b.safetensors", "c": "a.safetensors", "d": "b.safetensors"}}"#;
        let sharded = folder(&[
            ("config.json", r#"{"model_type": "llama"}"#),
            ("model.safetensors.index.json", index),
            ("a.safetensors", "12"),
            ("b.safetensors", "123"),
            ("other.safetensors", ""),
            ("preprocessor_config.json", "{}"),
        ]);
        let files = ModelFiles::read(sharded.path()).unwrap();
        let names: Vec<_> =
            files.weights.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.safetensors", "b.safetensors"]);
        assert_eq!((files.weight_file_bytes, files.preprocessor.as_str()), (5, "{}"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[], "neither a config.json nor a .gguf"),
            (&[("config.json", "{}")], "names no model_type"),
            (&[("config.json", "{")], "config.json"),
            (&[("a.gguf", ""), ("b.gguf", "")], "2 .gguf files"),
            (
                &[
                    ("config.json", r#"{"model_type": "llama"}"#),
                    ("model.safetensors.index.json", r#"{"weight_map": {"a": "gone.safetensors"}}"#),
                ],
                "gone.safetensors",
            ),
        ];
        for (files, expected) in cases {
            let folder = folder(files);
            let error = ModelFiles::read(folder.path()).unwrap_err();
            assert!(error.message.contains(expected), "{}", error.message);
            assert!(!error.retryable);
        }
    }

    #[test]
    fn shards_of_one_gguf_belong_together() {
        assert!(are_shards(&["m-00001-of-00002.gguf".into(), "m-00002-of-00002.gguf".into()]));
        assert!(!are_shards(&["m-00001-of-00002.gguf".into(), "n-00002-of-00002.gguf".into()]));
        assert!(!are_shards(&["m.gguf".into(), "n.gguf".into()]));
    }
}
