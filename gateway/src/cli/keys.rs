//! `cortex keys`: the key file.

use std::path::PathBuf;

use anyhow::bail;

use crate::keys::file::{self, Limits};

/// What to do with the key file.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a key. It is printed once and kept nowhere; the file gets its digest.
    New {
        /// The key file, made if it is not there.
        #[arg(long, default_value = "keys.toml")]
        file: PathBuf,
        /// It may change the fleet.
        #[arg(long)]
        admin: bool,
        #[command(flatten)]
        limits: Limits,
        /// Its name, for people.
        name: String,
    },
    /// List the keys there are.
    List {
        /// The key file.
        #[arg(long, default_value = "keys.toml")]
        file: PathBuf,
    },
    /// Take a key out.
    Remove {
        /// The key file.
        #[arg(long, default_value = "keys.toml")]
        file: PathBuf,
        /// Its name.
        name: String,
    },
}

/// Does it.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::New { file, admin, limits, name } => {
            println!("{}", file::create_with(&file, &name, admin, limits)?);
        }
        Command::List { file } => {
            for key in file::load(&file)? {
                let kind = if key.admin { "admin" } else { "inference" };
                let models =
                    if key.models.is_empty() { "all models".to_owned() } else { key.models.join(",") };
                println!("{:20} {kind:9} {models}", key.name);
            }
        }
        Command::Remove { file, name } => {
            if !file::remove(&file, &name)? {
                bail!("{} has no key '{name}'", file.display());
            }
        }
    }
    Ok(())
}
