//! `neuron bench`: how fast a model runs here, through the real worker.
//!
//! Generating a token reads every weight once, so no machine is faster than its memory: the share of the memory
//! bandwidth that is reached says how much is left to gain. The bandwidth is measured here, in the same run.

use std::time::Instant;

use anyhow::bail;
use serde::Serialize;

use super::load::{LoadBar, Settings, absolute};
use super::node::Node;
use super::{ConfigFile, log, table};
use crate::discovery;
use crate::lifecycle::{LoadedModel, ModelInfo, bytes};
use crate::worker::message::{Sampling, SequenceEvent, Submission, Timings};

/// The command's arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  neuron bench --model ./SmolLM2-135M-Instruct
  neuron bench --model ./SmolLM2-135M-Instruct --prompt-tokens 512 --generate-tokens 128 --threads 2 --json

One sequence alone; the prompt is made of arbitrary tokens and differs from run to run, so that nothing comes
from the prefix cache. The median of the runs is shown.")]
pub struct Options {
    /// A path, or org/name[@revision][:file.gguf] of the hub.
    #[arg(long)]
    model: String,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Tokens to generate.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..))]
    generate_tokens: u32,
    /// Threads; the physical cores this process may use if left out.
    #[arg(long)]
    threads: Option<u32>,
    /// Runs, after one that warms up.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    file: ConfigFile,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Figures {
    model: String,
    plugin: String,
    build: String,
    threads: u32,
    prompt_tokens: u32,
    generate_tokens: u32,
    runs: u32,
    weight_bytes: u64,
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: f64,
    /// Bytes per second all threads together read from memory.
    memory_bytes_per_second: f64,
    /// Share of it that generating reaches, 0 to 1, if every weight is read once for a token.
    memory_share: f64,
    debug_build: bool,
}

/// Measures.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    log::start_quietly();
    let mut config = options.file.load()?.config;
    let threads = options.threads.unwrap_or_else(|| discovery::cpu::look().threads as u32).max(1);
    config.engine.threads = Some(threads);
    config.engine.prefix_cache_share = 0.0;
    config.log.filter = log::quiet_filter();
    config.models.clear();
    // Before the model is loaded, so that nothing else uses the memory.
    let memory = tokio::task::spawn_blocking(move || memory_bytes_per_second(threads as usize)).await?;

    let node = Node::assemble(&config)?;
    let mut request = options.settings.request(&absolute(&options.model, super::ask::DEFAULT_ENDPOINT));
    request.slots = request.slots.or(Some(1));
    let job = node.models.load(request)?;
    let name = job.model.0.clone();
    let progress = tokio::spawn(show(node.models.clone(), name.clone()));
    let waited = job.wait().await;
    // The bar goes with the task, before anything else is printed.
    let _ = progress.await;
    waited?;
    let model = node.models.acquire(&name).await?;
    let mut timed = Vec::new();
    for run in 0..=options.runs {
        let timings = measure(&model, options, run).await?;
        if run > 0 {
            timed.push(timings);
        }
    }
    let figures = figures(options, model.info(), threads, memory, &timed);
    node.models.shutdown(std::time::Duration::ZERO).await;
    if options.json {
        println!("{}", serde_json::to_string(&figures)?);
    } else {
        print!("{}", picture(&figures));
    }
    Ok(())
}

async fn show(models: crate::lifecycle::Models, name: String) {
    use futures_util::StreamExt;
    let Some(events) = models.events(&name) else { return };
    let mut events = std::pin::pin!(events);
    let bar = LoadBar::new();
    while let Some(event) = events.next().await {
        bar.show(&event.progress);
    }
}

/// One prompt and its answer.
async fn measure(model: &LoadedModel, options: &Options, run: u32) -> anyhow::Result<Timings> {
    let facts = &model.info().facts;
    let wanted = u64::from(options.prompt_tokens) + u64::from(options.generate_tokens);
    if wanted > u64::from(facts.max_context) {
        bail!(
            "{wanted} tokens do not fit into the context of {}; ask for fewer, or load with --context",
            facts.max_context
        );
    }
    let mut stream = model.submit(Submission {
        prompt: arbitrary(options.prompt_tokens, facts.vocab_size, facts.image_token, run),
        images: Vec::new(),
        sampling: Sampling::greedy(),
        max_tokens: options.generate_tokens,
        stop_tokens: Vec::new(),
        top_logprobs: None,
        emitted: Vec::new(),
        boundaries: Vec::new(),
    });
    while let Some(event) = stream.next_event().await {
        match event {
            SequenceEvent::Finished { timings, completion_tokens, .. } => {
                if completion_tokens < options.generate_tokens {
                    bail!("the model stopped after {completion_tokens} tokens");
                }
                return Ok(timings);
            }
            SequenceEvent::Failed { message, .. } => bail!("the model failed: {message}"),
            _ => {}
        }
    }
    bail!("the model went away")
}

/// Tokens without meaning, the same for the same run, different from run to run.
fn arbitrary(count: u32, vocabulary: u32, image: Option<u32>, run: u32) -> Vec<u32> {
    let mut state = u64::from(run) + 1;
    let mut next = || {
        // A step of a linear congruential generator; its high bits are random enough for words.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % u64::from(vocabulary.max(2))) as u32
    };
    (0..count)
        .map(|_| {
            let token = next();
            if Some(token) == image { 1 } else { token }
        })
        .collect()
}

fn figures(options: &Options, info: &ModelInfo, threads: u32, memory: f64, timed: &[Timings]) -> Figures {
    let speed = |tokens: u32, milliseconds: fn(&Timings) -> f32| {
        let all = timed
            .iter()
            .map(|timings| f64::from(tokens) * 1000.0 / f64::from(milliseconds(timings)).max(1e-3));
        median(all.collect())
    };
    // The first token comes out of the prefill.
    let decode = speed(options.generate_tokens - 1, |timings| timings.decode_ms);
    let weight_bytes = info.facts.weight_bytes;
    Figures {
        model: info.id.to_string(),
        plugin: info.plugin.clone(),
        build: info.build.clone(),
        threads,
        prompt_tokens: options.prompt_tokens,
        generate_tokens: options.generate_tokens,
        runs: options.runs,
        weight_bytes,
        prefill_tokens_per_second: speed(options.prompt_tokens, |timings| timings.prefill_ms),
        decode_tokens_per_second: decode,
        memory_bytes_per_second: memory,
        memory_share: decode * weight_bytes as f64 / memory.max(1.0),
        debug_build: cfg!(debug_assertions),
    }
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}

fn picture(figures: &Figures) -> String {
    let rows = [
        table::row(["model", &figures.model]),
        table::row(["plugin", &format!("{} {}, {} threads", figures.plugin, figures.build, figures.threads)]),
        table::row(["weights", &bytes(figures.weight_bytes)]),
        table::row([
            "prefill",
            &format!("{:.1} tokens/s at {} tokens", figures.prefill_tokens_per_second, figures.prompt_tokens),
        ]),
        table::row([
            "decode",
            &format!(
                "{:.1} tokens/s over {} tokens",
                figures.decode_tokens_per_second, figures.generate_tokens
            ),
        ]),
        table::row([
            "memory",
            &format!(
                "{:.1} GB/s read, {:.0}% of it used by decode",
                figures.memory_bytes_per_second / 1e9,
                figures.memory_share * 100.0
            ),
        ]),
    ];
    let mut text = table::columns(&rows);
    if figures.debug_build {
        text.push_str(
            "this is a debug build of neuron; build with --release for figures that mean something\n",
        );
    }
    text
}

/// Bytes per second that `threads` threads together read from memory: the best of a few passes over buffers
/// far larger than any cache.
pub(super) fn memory_bytes_per_second(threads: usize) -> f64 {
    const EACH: usize = 96 << 20;
    const PASSES: usize = 4;
    let buffers: Vec<(Vec<u8>, Vec<u8>)> = (0..threads).map(|_| (vec![1; EACH], vec![1; EACH])).collect();
    let mut best = 0.0_f64;
    for _ in 0..PASSES {
        let began = Instant::now();
        std::thread::scope(|scope| {
            for (left, right) in &buffers {
                // Comparing equal buffers reads both to the end, as fast as the machine's library can.
                scope.spawn(move || std::hint::black_box(left == right));
            }
        });
        let read = (2 * EACH * threads) as f64;
        best = best.max(read / began.elapsed().as_secs_f64());
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_differ_and_stay_in_the_vocabulary() {
        let (first, second) = (arbitrary(64, 100, Some(7), 0), arbitrary(64, 100, Some(7), 1));
        assert_ne!(first, second);
        assert_eq!(first, arbitrary(64, 100, Some(7), 0));
        assert!(first.iter().chain(&second).all(|token| *token < 100 && *token != 7));
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(Vec::new()), 0.0);
    }

    #[test]
    fn memory_is_read_at_some_speed() {
        assert!(memory_bytes_per_second(1) > 0.0);
    }
}
