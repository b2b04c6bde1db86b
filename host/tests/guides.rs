//! What the guides tell people to type is what neuron understands.

use std::path::{Path, PathBuf};

use clap::{CommandFactory, error::ErrorKind};
use neuron::cli::Arguments;
use neuron::config::Config;

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut pages = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
    for folder in ["docs", "docs/guides"] {
        let entries = std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        pages.extend(entries.filter(|path| path.extension().is_some_and(|kind| kind == "md")));
    }
    pages
}

/// Lines of fenced blocks that are not Rust.
fn typed(text: &str) -> Vec<&str> {
    let (mut lines, mut fence) = (Vec::new(), None);
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), fence) {
            (Some(kind), None) => fence = Some(kind),
            (Some(_), Some(_)) => fence = None,
            (None, Some("sh" | "text")) => lines.push(line),
            _ => {}
        }
    }
    lines
}

/// The words of a `neuron` command in this line, without what the shell makes of the rest.
fn command(line: &str) -> Option<Vec<&str>> {
    let line = line.split(" #").next()?.split(['|', '&', '>']).next()?.trim();
    let line = line.strip_prefix("sudo ").unwrap_or(line);
    line.starts_with("neuron ").then(|| line.split_whitespace().collect())
}

fn understood(words: &[&str]) -> Result<(), String> {
    match Arguments::command().try_get_matches_from(words) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn every_neuron_command_in_the_guides_is_one() {
    let mut found = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for words in typed(&text).into_iter().filter_map(command) {
            found += 1;
            understood(&words).unwrap_or_else(|error| panic!("{}: {words:?}\n{error}", page.display()));
        }
    }
    assert!(found >= 10, "only {found} commands were found: are the blocks still fenced as sh or text?");
}

#[test]
fn every_piece_of_python_in_the_guides_is_python() {
    let mut found = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for rest in text.split("```python\n").skip(1) {
            found += 1;
            let block = rest.split("```").next().unwrap();
            let parsed = std::process::Command::new("python3")
                .args(["-c", "import ast, sys; ast.parse(sys.argv[1])", block])
                .output()
                .expect("python3 runs");
            assert!(
                parsed.status.success(),
                "{}: {}",
                page.display(),
                String::from_utf8_lossy(&parsed.stderr)
            );
        }
    }
    assert!(found >= 1, "no piece of Python was found");
}

/// Pieces of configuration are told from `cortex.toml`'s by their first line.
#[test]
fn every_piece_of_neuron_toml_in_the_guides_is_read() {
    let mut found = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for rest in text.split("```toml\n").skip(1).filter(|rest| rest.starts_with("# neuron.toml")) {
            found += 1;
            let block = rest.split("```").next().unwrap();
            Config::parse(block, Path::new("neuron.toml"), [])
                .unwrap_or_else(|error| panic!("{}: {error}\n{block}", page.display()));
        }
    }
    assert!(found >= 1, "no piece of neuron.toml was found");
}

#[test]
fn every_example_of_the_help_is_understood() {
    fn examples(command: &clap::Command, found: &mut Vec<String>) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        found.extend(help.lines().map(str::trim).map(str::to_owned));
        command.get_subcommands().for_each(|inner| examples(inner, found));
    }
    let mut lines = Vec::new();
    examples(&Arguments::command(), &mut lines);
    let commands: Vec<String> = lines
        .iter()
        // A remark beside an example stands after several blanks.
        .filter_map(|line| line.split("   ").next())
        .filter(|line| !line.contains(['<', '"', '\'']))
        .map(str::to_owned)
        .collect();
    let mut found = 0;
    for words in commands.iter().filter_map(|line| command(line)) {
        found += 1;
        understood(&words).unwrap_or_else(|error| panic!("{words:?}\n{error}"));
    }
    assert!(found >= 5, "only {found} examples were found");
}
