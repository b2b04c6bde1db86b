//! Links in Markdown that lead to files of the checkout must lead somewhere.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::root;

/// One line per dead link.
pub fn check(files: &[PathBuf]) -> Result<Vec<String>> {
    let mut violations = Vec::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == "md")) {
        let text = std::fs::read_to_string(root().join(file))?;
        let folder = file.parent().unwrap_or(Path::new(""));
        for target in targets(&text) {
            if !root().join(folder).join(target).exists() && !root().join(target).exists() {
                violations.push(format!("{}: dead link {target}", file.display()));
            }
        }
    }
    Ok(violations)
}

/// The local targets of `[text](target)`.
fn targets(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| {
        let target = rest.split(')').next()?.split('#').next()?;
        let local = !target.is_empty() && !target.contains("://") && !target.contains(' ');
        (local && !target.starts_with("mailto:")).then_some(target)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_local_targets_count() {
        let text = "[a](docs/x.md#part) [b](https://example.org) [c](#here) [d](LICENSE)";
        assert_eq!(super::targets(text).collect::<Vec<_>>(), ["docs/x.md", "LICENSE"]);
    }
}
