//! The whole house on one machine: build, obtain a model, start neuron and cortex, ask, keep serving.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::process::{self, Server};
use crate::{model, plugins, target};

/// Options of `cargo xtask demo`.
#[derive(Args)]
pub struct Options {
    /// A model to serve instead of SmolLM2-135M-Instruct: a path, or `org/name[@revision][:file.gguf]`.
    #[arg(long)]
    model: Option<String>,
    /// The question to ask.
    #[arg(long, default_value = "What is the capital of France, and what is it known for?")]
    question: String,
    /// End after the answer instead of serving until Ctrl-C.
    #[arg(long)]
    once: bool,
}

/// How long a model may take to load before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(300);

struct House {
    folder: PathBuf,
    neuron: String,
    cortex: String,
    metrics: String,
}

/// Runs the demo.
pub fn run(options: &Options) -> Result<()> {
    let folder = target().join("demo");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;

    println!("== 1/4 building neuron, cortex and the plugins (a few minutes the first time)");
    process::run(process::cargo().args([
        "build",
        "--release",
        "--package",
        "neuron",
        "--package",
        "cortex",
    ]))?;
    let plugin_folder = plugins::run(&plugins::Options {
        build: "auto".into(),
        debug: false,
        no_compile: false,
        jobs: None,
        describer: Some(target().join("release/neuron")),
        names: Vec::new(),
    })?;

    println!("== 2/4 obtaining a model");
    let model = match &options.model {
        Some(model) => model.clone(),
        None => model::smollm2(&folder)?.display().to_string(),
    };
    println!("model {model}");

    println!("== 3/4 starting neuron and cortex");
    let house = House {
        neuron: format!("127.0.0.1:{}", free_port(13131)?),
        cortex: format!("127.0.0.1:{}", free_port(13132)?),
        metrics: format!("127.0.0.1:{}", free_port(13133)?),
        folder,
    };
    write_configs(&house, &plugin_folder, &model)?;
    let (mut neuron, mut cortex) = start(&house)?;
    let served = wait_for_model(&house, &mut neuron, &mut cortex)?;

    println!("== 4/4 asking through cortex: {}\n", options.question);
    ask(&house, &served, &options.question)?;
    if options.once {
        return Ok(());
    }
    how_to_go_on(&house, &served);
    wait_for_interrupt(&house, &mut neuron, &mut cortex)
}

/// The usual port, or any free one when something else listens there.
fn free_port(usual: u16) -> Result<u16> {
    let listener =
        TcpListener::bind(("127.0.0.1", usual)).or_else(|_| TcpListener::bind(("127.0.0.1", 0)))?;
    Ok(listener.local_addr()?.port())
}

fn write_configs(house: &House, plugin_folder: &Path, model: &str) -> Result<()> {
    let quote = |text: &str| Value::from(text).to_string(); // a JSON string is a TOML basic string
    // A checkout may lie below folders that others can write to; its plugins were built a moment ago.
    let neuron = format!(
        "listen = {}\n\n[plugins]\ndirectories = [{}]\nallow_unowned = true\n\n[[models]]\nid = \"smollm2\"\nsource = {}\n",
        quote(&house.neuron),
        quote(&plugin_folder.display().to_string()),
        quote(model),
    );
    let cortex = format!(
        "[gateway]\nlisten = {}\nmetrics_listen = {}\n\n[[neurons]]\nname = \"local\"\nendpoint = {}\n",
        quote(&house.cortex),
        quote(&house.metrics),
        quote(&format!("http://{}", house.neuron)),
    );
    std::fs::write(house.folder.join("neuron.toml"), neuron)?;
    std::fs::write(house.folder.join("cortex.toml"), cortex)?;
    Ok(())
}

fn start(house: &House) -> Result<(Server, Server)> {
    let binaries = target().join("release");
    let serve = |name: &'static str| {
        let mut command = Command::new(binaries.join(name));
        command.arg("serve").arg("--config").arg(house.folder.join(format!("{name}.toml")));
        Server::start(name, &mut command, &house.folder.join(format!("{name}.log")))
    };
    Ok((serve("neuron")?, serve("cortex")?))
}

/// Waits until cortex offers a model that a node has resident; returns its id.
fn wait_for_model(house: &House, neuron: &mut Server, cortex: &mut Server) -> Result<String> {
    let started = Instant::now();
    let bar = indicatif::ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(120));
    bar.set_message("loading the model");
    loop {
        neuron.check(&house.folder.join("neuron.log"))?;
        cortex.check(&house.folder.join("cortex.log"))?;
        if get(&format!("http://{}/ready", house.neuron)).is_ok()
            && let Ok(catalogue) = get(&format!("http://{}/v1/models", house.cortex))
            && let Some(id) = catalogue["data"][0]["id"].as_str()
        {
            bar.finish_and_clear();
            println!("{id} is ready after {:.1} s", started.elapsed().as_secs_f32());
            return Ok(id.to_owned());
        }
        if started.elapsed() > PATIENCE {
            bail!(
                "the model is not ready after {PATIENCE:?}; see {}",
                house.folder.join("neuron.log").display()
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn get(url: &str) -> Result<Value> {
    Ok(ureq::get(url).call()?.body_mut().read_json()?)
}

/// Streams one answer to the terminal.
fn ask(house: &House, model: &str, question: &str) -> Result<()> {
    let body = json!({
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "stream": true,
        "stream_options": {"include_usage": true},
        "temperature": 0,
        "max_tokens": 200,
    });
    let started = Instant::now();
    let response = ureq::post(format!("http://{}/v1/chat/completions", house.cortex)).send_json(&body)?;
    let mut usage = Value::Null;
    let mut said = String::new();
    for line in BufReader::new(response.into_body().into_reader()).lines() {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ").filter(|data| *data != "[DONE]") else { continue };
        let event: Value = serde_json::from_str(data).with_context(|| format!("not JSON: {data}"))?;
        if let Some(error) = event.get("error") {
            bail!("the stream ended with an error: {error}");
        }
        if let Some(text) = event["choices"][0]["delta"]["content"].as_str() {
            print!("{text}");
            std::io::stdout().flush()?;
            said.push_str(text);
        }
        if event["usage"].is_object() {
            usage = event["usage"].clone();
        }
    }
    if said.trim().is_empty() {
        bail!("the answer was empty");
    }
    let tokens = usage["completion_tokens"].as_f64().unwrap_or_default();
    let seconds = started.elapsed().as_secs_f64();
    println!("\n\n{tokens} tokens in {seconds:.2} s ({:.0} tokens/s, prompt included)", tokens / seconds);
    Ok(())
}

fn how_to_go_on(house: &House, model: &str) {
    let (cortex, binaries) = (&house.cortex, target().join("release"));
    println!(
        r#"
neuron and cortex go on serving. From another terminal:

  curl -N http://{cortex}/v1/chat/completions -H 'content-type: application/json' \
    -d '{{"model":"{model}","stream":true,"messages":[{{"role":"user","content":"Hello!"}}]}}'

  # any OpenAI SDK: base_url="http://{cortex}/v1", api_key="unused", model="{model}"

  {neuron} run {model} --endpoint http://{node}     # chat in the terminal
  {gateway} status --endpoint http://{cortex}       # the fleet
  curl http://{metrics}/metrics                     # what happened so far

Logs and configuration are in {folder}. Ctrl-C ends both."#,
        neuron = binaries.join("neuron").display(),
        gateway = binaries.join("cortex").display(),
        node = house.neuron,
        metrics = house.metrics,
        folder = house.folder.display(),
    );
}

fn wait_for_interrupt(house: &House, neuron: &mut Server, cortex: &mut Server) -> Result<()> {
    let interrupted = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, interrupted.clone())?;
    }
    while !interrupted.load(std::sync::atomic::Ordering::Relaxed) {
        neuron.check(&house.folder.join("neuron.log"))?;
        cortex.check(&house.folder.join("cortex.log"))?;
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("\nending cortex and neuron");
    cortex.stop();
    neuron.stop();
    Ok(())
}
