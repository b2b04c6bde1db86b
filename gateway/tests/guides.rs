//! What the guides tell people to type and to write into `cortex.toml` is what cortex understands.

use std::path::{Path, PathBuf};

use clap::{CommandFactory, error::ErrorKind};
use cortex::cli::Arguments;
use cortex::config::Config;

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut pages = vec![root.join("README.md")];
    let entries = std::fs::read_dir(root.join("docs/guides")).unwrap().map(|entry| entry.unwrap().path());
    pages.extend(entries.filter(|path| path.extension().is_some_and(|kind| kind == "md")));
    pages
}

/// Fenced blocks, each with what its fence says it is.
fn blocks(text: &str) -> Vec<(&str, String)> {
    let (mut blocks, mut open) = (Vec::new(), None::<(&str, String)>);
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(kind), None) => open = Some((kind, String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some((_, block))) => {
                block.push_str(line);
                block.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
}

#[test]
fn every_cortex_command_in_the_guides_is_one() {
    let mut found = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for (_, block) in blocks(&text).into_iter().filter(|(kind, _)| ["sh", "text"].contains(kind)) {
            for line in block.lines().filter(|line| line.starts_with("cortex ")) {
                let line = line.split(" #").next().unwrap_or(line);
                found += 1;
                if let Err(error) = Arguments::command().try_get_matches_from(line.split_whitespace()) {
                    let shown = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
                    assert!(shown, "{}: {line}\n{error}", page.display());
                }
            }
        }
    }
    assert!(found >= 3, "only {found} commands were found: are the blocks still fenced as sh or text?");
}

#[test]
fn every_piece_of_cortex_toml_in_the_guides_is_read() {
    let mut found = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for (_, block) in blocks(&text).into_iter().filter(|(kind, _)| *kind == "toml") {
            // Pieces of neuron.toml are told by their first line.
            if block.starts_with("# neuron.toml") {
                continue;
            }
            found += 1;
            Config::parse(&block, Path::new("cortex.toml"), [])
                .unwrap_or_else(|error| panic!("{}: {error}\n{block}", page.display()));
        }
    }
    assert!(found >= 1, "no piece of cortex.toml was found");
}
