//! `neuron pull`: a model from the hub into its cache.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::bail;
use wire_api::node::events::LoadProgress;

use super::load::LoadBar;
use super::{ConfigFile, log, node};

/// The command's arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  neuron pull HuggingFaceTB/SmolLM2-135M-Instruct
  neuron pull Qwen/Qwen3-0.6B@main
  neuron pull bartowski/SmolLM2-135M-Instruct-GGUF:SmolLM2-135M-Instruct-Q4_K_M.gguf

Downloads go into the hub's own cache (HF_HUB_CACHE or HF_HOME), are resumed and verified; HF_ENDPOINT, HF_TOKEN
and HF_HUB_OFFLINE are obeyed. Prints the folder or file the model is in.")]
pub struct Options {
    /// org/name[@revision][:file.gguf].
    #[arg(required = true)]
    models: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    file: ConfigFile,
}

/// Fetches.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    log::start_quietly();
    let config = options.file.load()?.config;
    let resolver = node::resolver(&config, true)?;
    for model in &options.models {
        let bar = Arc::new(Mutex::new(LoadBar::new()));
        let shown = Arc::clone(&bar);
        let began = Instant::now();
        let progress = Arc::new(move |phase, bytes_done, bytes_total, detail| {
            let elapsed_ms = began.elapsed().as_millis() as u64;
            let progress = LoadProgress { phase, bytes_done, bytes_total, eta_ms: None, elapsed_ms, detail };
            shown.lock().unwrap_or_else(PoisonError::into_inner).show(&progress);
        });
        let resolved = resolver.resolve(model.clone(), progress).await;
        drop(bar);
        match resolved {
            Ok(path) if options.json => {
                println!("{}", serde_json::json!({"model": model, "path": path}));
            }
            Ok(path) => println!("{}", path.display()),
            Err(failure) => bail!("{model}: {}", failure.message),
        }
    }
    Ok(())
}
