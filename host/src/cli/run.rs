//! `neuron run`: a model in the terminal, with nothing else needed.
//!
//! Without an endpoint a whole node is put together in this process, behind a free loopback port, and goes with
//! it. With one, a neuron or a gateway answers; the conversation is the same either way, over HTTP.

use std::io::{IsTerminal, Read};

use anyhow::{Context, bail};
use wire_api::node::load::{LoadRequest, LoadResponse};
use wire_api::node::routes;
use wire_api::node::status::Version;

use super::ask::Client;
use super::chat::{Conversation, Printer};
use super::load::{Settings, absolute, follow};
use super::node::Node;
use super::{ConfigFile, chat, log, serve};
use crate::server;

/// The command's arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  neuron run ./SmolLM2-135M-Instruct
  neuron run HuggingFaceTB/SmolLM2-135M-Instruct \"Why is the sky blue?\"
  git diff | neuron run ./coder --system \"Write a commit message for this change.\"
  neuron run smol --endpoint http://127.0.0.1:13132     a model behind cortex

Settings of the answer are those of the API: --set temperature=0 --set max_tokens=200. In the conversation,
/help lists what can be said beside the model.")]
pub struct Options {
    /// A path, or org/name[@revision][:file.gguf] of the hub; with --endpoint also a name known there.
    model: String,
    /// What to ask; without it, and with a terminal, a conversation begins. Otherwise standard input is asked.
    prompt: Option<String>,
    /// Ask this neuron or cortex instead of starting one for the occasion.
    #[arg(long, env = "NEURON_ENDPOINT", value_name = "URL")]
    endpoint: Option<String>,
    /// What the model is told first.
    #[arg(long)]
    system: Option<String>,
    /// A parameter of the request, like temperature=0.2; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the last answer as JSON, as the API gives it.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    file: ConfigFile,
}

/// Talks.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    log::start_quietly();
    let prompt = prompt(options)?;
    let mut conversation = Conversation::new(options.system.as_deref());
    for setting in &options.set {
        let (key, value) = setting
            .split_once('=')
            .with_context(|| format!("--set {setting}: write it as key=value, like temperature=0.2"))?;
        conversation.set(key, value)?;
    }
    match &options.endpoint {
        Some(endpoint) => {
            let client = Client::new(endpoint)?;
            let model = there(&client, options).await?;
            talk(client, model, conversation, prompt, options.json).await
        }
        None => {
            let here = Here::start(options).await?;
            let client = Client::new(&here.endpoint)?;
            let request = options.settings.request(&absolute(&options.model, &here.endpoint));
            let model = load(&client, &request).await?;
            let outcome = talk(client, model, conversation, prompt, options.json).await;
            here.end().await?;
            outcome
        }
    }
}

fn prompt(options: &Options) -> anyhow::Result<Option<String>> {
    if options.prompt.is_some() || std::io::stdin().is_terminal() {
        return Ok(options.prompt.clone());
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("standard input cannot be read")?;
    if text.trim().is_empty() {
        bail!("standard input is empty; say what to ask, or run this in a terminal");
    }
    Ok(Some(text))
}

async fn talk(
    client: Client,
    model: String,
    mut conversation: Conversation,
    prompt: Option<String>,
    json: bool,
) -> anyhow::Result<()> {
    match prompt {
        None => chat::converse(&client, &model, conversation).await,
        Some(prompt) => {
            let printer = if json { Printer::silent() } else { Printer::new() };
            let answer = conversation.ask(&client, &model, &prompt, printer).await?;
            if json {
                println!("{}", serde_json::to_string(&answer)?);
            }
            Ok(())
        }
    }
}

/// The model at an endpoint: loaded if it is a neuron's. A gateway loads by itself.
async fn there(client: &Client, options: &Options) -> anyhow::Result<String> {
    let version: Version = client.get(routes::VERSION).await?;
    if version.name != "neuron" {
        return Ok(options.model.clone());
    }
    let request = options.settings.request(&absolute(&options.model, client.endpoint()));
    load(client, &request).await
}

async fn load(client: &Client, request: &LoadRequest) -> anyhow::Result<String> {
    let begun: LoadResponse = client.post(routes::LOAD, request).await?;
    follow(client, &begun).await?;
    Ok(begun.model.0)
}

/// A node in this process.
struct Here {
    endpoint: String,
    stop: tokio::sync::oneshot::Sender<()>,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
    _node: Node,
}

impl Here {
    async fn start(options: &Options) -> anyhow::Result<Self> {
        let mut config = options.file.load()?.config;
        // What other models the configuration has is the business of `neuron serve`.
        config.models.retain(|model| model.name() == options.model);
        config.log.filter = log::quiet_filter();
        config.engine.drain_timeout_s = 1;
        let node = Node::assemble(&config)?;
        for model in &config.models {
            node.models.declare(model.request());
        }
        let listener = serve::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let house = node.house(&config)?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let ended = async {
            // Dropped is stopped, too.
            let _ = stopped.await;
        };
        let server = tokio::spawn(server::serve(listener, house, ended));
        Ok(Self { endpoint, stop, server, _node: node })
    }

    async fn end(self) -> anyhow::Result<()> {
        // Already ended: then there is nobody to tell.
        let _ = self.stop.send(());
        self.server.await.context("the server panicked")?.context("the server failed")
    }
}
