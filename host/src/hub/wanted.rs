//! Which files of a repository a model needs.

use super::{HubError, HubId};

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub path: String,
    pub bytes: u64,
}

/// Small files that describe a model; those that exist are wanted.
const DESCRIPTIONS: [&str; 12] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "config.json",
];

/// The files to fetch, in the order to fetch them: descriptions are small and tell early what is wrong, weights
/// are large, and `config.json` comes last, because a snapshot that has it counts as complete.
pub(super) fn choose(id: &HubId, listed: &[Listed]) -> Result<Vec<Listed>, HubError> {
    let find = |path: &str| listed.iter().find(|file| file.path == path).cloned();
    if let Some(file) = &id.file {
        let (folder, name) =
            file.rsplit_once('/').map_or(("", file.as_str()), |(folder, name)| (folder, name));
        let place = |name: &String| if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        let parts: Vec<String> = parts(name).iter().map(place).collect();
        let wanted: Option<Vec<Listed>> = parts.iter().map(|part| find(part)).collect();
        return wanted.ok_or_else(|| {
            HubError::NotFound(format!("{} has no file {file}; {}", id.repository(), offer(listed)))
        });
    }
    let weights = safetensors(listed);
    if weights.is_empty() {
        return one_gguf(id, listed);
    }
    let index = find("model.safetensors.index.json");
    let (config, descriptions): (Vec<Listed>, Vec<Listed>) =
        DESCRIPTIONS.iter().filter_map(|name| find(name)).partition(|file| file.path == "config.json");
    if config.is_empty() {
        return Err(HubError::Unusable(format!("{} has weights but no config.json", id.repository())));
    }
    Ok(descriptions.into_iter().chain(index).chain(weights).chain(config).collect())
}

/// Weights at the top of the repository, in order. Consolidated copies of the same weights are left out.
fn safetensors(listed: &[Listed]) -> Vec<Listed> {
    let mut found: Vec<Listed> = listed
        .iter()
        .filter(|file| file.path.ends_with(".safetensors") && !file.path.contains('/'))
        .filter(|file| !file.path.starts_with("consolidated") && !file.path.starts_with("adapter"))
        .cloned()
        .collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    // A repository may hold one whole file and its shards.
    let whole = found.iter().position(|file| file.path == "model.safetensors");
    match whole {
        Some(at)
            if found.len() > 1 && !listed.iter().any(|file| file.path == "model.safetensors.index.json") =>
        {
            vec![found.swap_remove(at)]
        }
        _ => found,
    }
}

fn one_gguf(id: &HubId, listed: &[Listed]) -> Result<Vec<Listed>, HubError> {
    let ggufs: Vec<&Listed> = listed.iter().filter(|file| file.path.ends_with(".gguf")).collect();
    let first = ggufs.first();
    let same = |first: &&&Listed| {
        let parts = parts(&first.path);
        ggufs.iter().all(|file| parts.contains(&file.path))
    };
    match first.filter(same) {
        Some(_) => Ok(ggufs.into_iter().cloned().collect()),
        None => Err(HubError::Unusable(format!("{} needs a choice: {}", id.repository(), offer(listed)))),
    }
}

fn offer(listed: &[Listed]) -> String {
    let ggufs: Vec<&str> =
        listed.iter().map(|file| file.path.as_str()).filter(|path| path.ends_with(".gguf")).collect();
    if ggufs.is_empty() {
        return "there is neither .safetensors nor .gguf in it".to_owned();
    }
    format!("name one of its files after a colon: {}", ggufs.join(", "))
}

/// All parts of the GGUF that `name` is a part of: `x-00001-of-00003.gguf` has three, others are one.
pub(super) fn parts(name: &str) -> Vec<String> {
    let split = || {
        let stem = name.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        let count = Some(count).filter(|text| digits(text) && digits(number))?.parse::<u32>().ok()?;
        Some((1..=count).map(|part| format!("{stem}-{part:05}-of-{count:05}.gguf")).collect::<Vec<_>>())
    };
    split().filter(|parts| parts.iter().any(|part| part == name)).unwrap_or_else(|| vec![name.to_owned()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(file: Option<&str>, names: &[&str]) -> Result<Vec<String>, String> {
        let id = HubId {
            owner: "o".into(),
            name: "n".into(),
            revision: "main".into(),
            file: file.map(str::to_owned),
        };
        let listed: Vec<Listed> =
            names.iter().map(|name| Listed { path: (*name).to_owned(), bytes: 1 }).collect();
        choose(&id, &listed)
            .map(|files| files.into_iter().map(|file| file.path).collect())
            .map_err(|e| e.to_string())
    }

    #[test]
    fn what_a_model_needs() {
        let sharded = [
            "README.md",
            "config.json",
            "model-00002-of-00002.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "consolidated.safetensors",
        ];
        assert_eq!(
            chosen(None, &sharded).unwrap(),
            [
                "tokenizer.json",
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "config.json",
            ]
        );
        assert_eq!(chosen(None, &["a.gguf", "README.md"]).unwrap(), ["a.gguf"]);
        assert_eq!(chosen(Some("b.gguf"), &["a.gguf", "b.gguf"]).unwrap(), ["b.gguf"]);
        let split = ["q/a-00001-of-00002.gguf", "q/a-00002-of-00002.gguf", "b.gguf"];
        assert_eq!(chosen(Some("q/a-00001-of-00002.gguf"), &split).unwrap(), &split[..2]);
        assert!(chosen(None, &["a.gguf", "b.gguf"]).unwrap_err().contains("a.gguf, b.gguf"));
        assert!(chosen(Some("c.gguf"), &["a.gguf"]).unwrap_err().contains("no file c.gguf"));
        assert!(chosen(None, &["README.md"]).unwrap_err().contains("neither"));
        assert!(chosen(None, &["model.safetensors"]).unwrap_err().contains("config.json"));
    }
}
