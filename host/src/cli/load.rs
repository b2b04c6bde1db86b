//! `neuron load`: a model into a running node, with a progress bar.

use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use wire_api::node::events::{LoadEvent, LoadPhase, LoadProgress};
use wire_api::node::load::{LoadRequest, LoadResponse};
use wire_api::node::models::ModelState;
use wire_api::node::{DeviceId, ModelId, routes};

use super::ask::{self, Client};

/// The command's arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  neuron load ./SmolLM2-135M-Instruct --name smol
  neuron load HuggingFaceTB/SmolLM2-135M-Instruct --context 8192 --slots 4
  neuron load bartowski/SmolLM2-135M-Instruct-GGUF:SmolLM2-135M-Instruct-Q4_K_M.gguf --no-wait

A path is one on the machine neuron runs on. Loading what is loaded already does nothing and succeeds.")]
pub struct Options {
    #[command(flatten)]
    ask: ask::Ask,
    /// A path, or org/name[@revision][:file.gguf] of the hub, or a name from the configuration.
    model: String,
    #[command(flatten)]
    settings: Settings,
    /// Come back at once instead of when the model serves.
    #[arg(long)]
    no_wait: bool,
}

/// How to load.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Settings {
    /// What requests shall call it.
    #[arg(long)]
    name: Option<String>,
    /// Device to load onto, like cpu-0 or cuda-1; several split the model over them.
    #[arg(long = "device", value_name = "DEVICE", value_delimiter = ',')]
    devices: Vec<String>,
    /// Type to compute in: f32, bf16, f16.
    #[arg(long)]
    dtype: Option<String>,
    /// Format to hold the weights in, if not the one on disk: q8_0, q6k, q5k, q4k, q4_0.
    #[arg(long)]
    quantize: Option<String>,
    /// Longest prompt and answer together, in tokens.
    #[arg(long, value_name = "TOKENS")]
    context: Option<u64>,
    /// Sequences at once.
    #[arg(long)]
    slots: Option<u32>,
    /// Never evict it.
    #[arg(long)]
    pinned: bool,
    /// Another name it answers to; may be given several times.
    #[arg(long = "alias", value_name = "NAME")]
    aliases: Vec<String>,
}

impl Settings {
    /// The command that loads `model` so.
    pub fn request(&self, model: &str) -> LoadRequest {
        LoadRequest {
            model: model.into(),
            name: self.name.as_deref().map(ModelId::from),
            devices: self.devices.iter().map(|device| DeviceId::from(device.as_str())).collect(),
            dtype: self.dtype.clone(),
            quant: self.quantize.clone(),
            context_tokens: self.context,
            slots: self.slots,
            pinned: self.pinned,
            aliases: self.aliases.clone(),
            ..LoadRequest::default()
        }
    }
}

/// Loads, and shows how it goes.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let client = options.ask.client()?;
    let request = options.settings.request(&absolute(&options.model, client.endpoint()));
    let begun: LoadResponse = client.post(routes::LOAD, &request).await?;
    if options.no_wait {
        return if options.ask.json {
            print_json(&begun)
        } else {
            println!(
                "{} is {}; watch it with `neuron models`",
                begun.model,
                format!("{:?}", begun.state).to_lowercase()
            );
            Ok(())
        };
    }
    let last = follow(&client, &begun).await?;
    if options.ask.json {
        print_json(&last)
    } else {
        println!("{} serves after {:.1} s", last.model, last.progress.elapsed_ms as f64 / 1000.0);
        Ok(())
    }
}

fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

/// A path that exists here means the same to a neuron on this machine, wherever that was started.
pub fn absolute(model: &str, endpoint: &str) -> String {
    let here = ["127.", "localhost", "[::1]"].iter().any(|host| endpoint.contains(&format!("://{host}")));
    match std::fs::canonicalize(model) {
        Ok(path) if here => path.to_string_lossy().into_owned(),
        _ => model.to_owned(),
    }
}

/// Shows how a load goes until it is over.
///
/// # Errors
/// Why it failed.
pub async fn follow(client: &Client, begun: &LoadResponse) -> anyhow::Result<LoadEvent> {
    let mut events = client.watch(&routes::model_events(begun.model.as_str())).await?;
    let bar = LoadBar::new();
    while let Some(data) = events.next_data().await? {
        let event: LoadEvent =
            serde_json::from_str(&data).context("an event of the load is not understood")?;
        bar.show(&event.progress);
        match event.progress.phase {
            LoadPhase::Ready => return Ok(event),
            LoadPhase::Failed => {
                let failure = event.failure.unwrap_or_default();
                bail!("{} could not be loaded: {}", event.model, failure.message);
            }
            LoadPhase::Unloaded => bail!("{} was unloaded while it was loading", event.model),
            _ => {}
        }
    }
    if begun.state == ModelState::Ready {
        // It served before this was asked; there is nothing left to tell.
        return Ok(LoadEvent {
            model: begun.model.clone(),
            progress: begun.progress.clone(),
            ..LoadEvent::default()
        });
    }
    bail!("the neuron went away while {} was loading", begun.model)
}

/// One line on standard error that shows how far a load has come; nothing where that is no terminal.
pub struct LoadBar(ProgressBar);

impl LoadBar {
    /// A bar that shows nothing yet.
    pub fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// Shows how far it is.
    pub fn show(&self, progress: &LoadProgress) {
        let known = progress.bytes_total > 0;
        let template = if known {
            "{spinner} {msg:12} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}"
        } else {
            "{spinner} {msg} {elapsed}"
        };
        // The templates are constants; should one be wrong, a plain bar is good enough.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.0.set_style(style.progress_chars("=> "));
        let detail = progress.detail.as_deref().map(|detail| format!(" {detail}")).unwrap_or_default();
        self.0.set_message(format!("{}{detail}", progress.phase));
        if known {
            self.0.set_length(progress.bytes_total);
            self.0.set_position(progress.bytes_done);
        }
    }
}

impl Drop for LoadBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
