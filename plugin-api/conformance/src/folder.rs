//! The model a plugin is checked with: a folder of weights, or nothing but a name.

use std::fs;
use std::path::{Path, PathBuf};

use plugin_loader::{ArchitectureInfo, Source, WeightFormat, capability};

use crate::promise::{End, broken, skipped};

/// The model to check an architecture with: the folder if it holds one of the architecture's models, a bare
/// `model_type` if it needs no weights.
pub(crate) fn source(folder: Option<&Path>, architecture: &ArchitectureInfo) -> Result<Source, End> {
    match folder {
        Some(folder) => read(folder, architecture),
        None if architecture.can(capability::WEIGHTLESS) => {
            let Some(model_type) = architecture.model_types.first() else {
                return broken("it serves no model_type");
            };
            let config = serde_json::json!({ "model_type": model_type }).to_string();
            Ok(Source { config, ..Source::default() })
        }
        None => skipped("it needs weights; give a model with --model DIR"),
    }
}

fn read(folder: &Path, architecture: &ArchitectureInfo) -> Result<Source, End> {
    let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
    let config = text("config.json");
    let model_type = serde_json::from_str::<serde_json::Value>(&config)
        .ok()
        .and_then(|config| Some(config["model_type"].as_str()?.to_owned()));
    let ggufs = files(folder, "gguf");
    let (format, files) = match model_type {
        Some(model_type) if !architecture.model_types.contains(&model_type) => {
            return skipped(format!("{} holds a {model_type} model", folder.display()));
        }
        Some(_) if architecture.can(capability::WEIGHTLESS) => (WeightFormat::NONE, Vec::new()),
        Some(_) => (WeightFormat::SAFETENSORS, shards(folder)),
        None if !ggufs.is_empty() => (WeightFormat::GGUF, ggufs),
        None => return skipped(format!("{} holds neither a config.json nor a GGUF", folder.display())),
    };
    Ok(Source { format, config, preprocessor: text("preprocessor_config.json"), files })
}

/// Safetensors files in the order of their index, or by name without one.
fn shards(folder: &Path) -> Vec<PathBuf> {
    let index = fs::read_to_string(folder.join("model.safetensors.index.json")).unwrap_or_default();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap_or_default();
    let Some(map) = index["weight_map"].as_object() else { return files(folder, "safetensors") };
    let mut names: Vec<&str> = map.values().filter_map(|name| name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(|name| folder.join(name)).collect()
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .filter(|path| path.file_stem().is_none_or(|stem| stem != "expected"))
        .filter_map(|path| path.canonicalize().ok())
        .collect();
    files.sort();
    files
}
