//! `cortex usage`: the books.

use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::config::Config;
use crate::fleet::identity::unix_ms;
use crate::usage::export::{Format, export};
use crate::usage::{Filter, Source};

const DAY_MS: f64 = 86_400_000.0;

/// Which books, which rows, and how they are printed.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The SQLite file; by default what the configuration says.
    #[arg(long, conflicts_with = "postgres")]
    database: Option<PathBuf>,
    /// The PostgreSQL database; by default what the configuration says.
    #[arg(long)]
    postgres: Option<String>,
    /// The configuration.
    #[arg(long, env = "CORTEX_CONFIG")]
    config: Option<PathBuf>,
    /// How rows are printed.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Rows of this key alone.
    #[arg(long)]
    key: Option<String>,
    /// Rows of so many days; all by default.
    #[arg(long)]
    days: Option<f64>,
}

/// Prints them.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let source = source(options)?;
    if let Source::File(path) = &source
        && !path.exists()
    {
        bail!("there is no usage database {}", path.display());
    }
    let since_unix_ms =
        options.days.map_or(0, |days| unix_ms().saturating_sub((days.max(0.0) * DAY_MS) as u64));
    let filter = Filter { key: options.key.clone(), since_unix_ms };
    Ok(export(&source, &filter, options.format, &mut std::io::stdout())?)
}

fn source(options: &Options) -> anyhow::Result<Source> {
    if let Some(path) = &options.database {
        return Ok(Source::File(path.clone()));
    }
    if let Some(address) = &options.postgres {
        return Ok(Source::Postgres(address.clone()));
    }
    let config = Config::load(options.config.as_deref())?.config;
    config
        .usage
        .source()?
        .context("nothing says where the books are; name --config, --database or --postgres")
}
