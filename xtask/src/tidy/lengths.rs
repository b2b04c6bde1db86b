//! The ten longest files and functions: a place to look, not a verdict.

use std::path::PathBuf;

use anyhow::Result;

use super::sources::is_rust;
use crate::root;

/// Prints both lists.
pub fn print(files: &[PathBuf]) -> Result<()> {
    let mut by_lines = Vec::new();
    let mut functions = Vec::new();
    for file in files.iter().filter(|file| is_rust(file)) {
        let text = std::fs::read_to_string(root().join(file))?;
        by_lines.push((text.lines().count(), file.display().to_string()));
        functions.extend(
            function_lengths(&text).map(|(name, lines)| (lines, format!("{} {name}", file.display()))),
        );
    }
    top("longest files", by_lines);
    top("longest functions", functions);
    Ok(())
}

fn top(title: &str, mut list: Vec<(usize, String)>) {
    list.sort_by(|a, b| b.cmp(a));
    println!("{title}:");
    for (lines, name) in list.iter().take(10) {
        println!("  {lines:5} {name}");
    }
}

/// Functions and their lines, found by indentation: rustfmt puts the closing brace under the `fn`.
fn function_lengths(text: &str) -> impl Iterator<Item = (String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let Some(name) = function_name(code) else { continue };
        let indent = line.len() - code.len();
        let closing = format!("{}}}", " ".repeat(indent));
        if let Some(length) = lines[start..].iter().position(|line| *line == closing) {
            found.push((name.to_owned(), length + 1));
        }
    }
    found.into_iter()
}

fn function_name(code: &str) -> Option<&str> {
    let words = ["pub ", "pub(crate) ", "pub(super) ", "const ", "async ", "unsafe ", "extern \"C\" "];
    let mut rest = code;
    while let Some(shorter) = words.iter().find_map(|word| rest.strip_prefix(word)) {
        rest = shorter;
    }
    rest.strip_prefix("fn ")?.split(['(', '<']).next()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_function_ends_at_its_own_brace() {
        let text = "impl A {\n    pub fn long(&self) {\n        if x {\n        }\n    }\n}\nfn short() {}\n";
        let found: Vec<_> = super::function_lengths(text).collect();
        assert_eq!(found, [("long".to_owned(), 4)]);
    }
}
