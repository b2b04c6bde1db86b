//! Many clients that come and go: does a running neuron or cortex forget them all?
//!
//! Clients stream answers and hang up at random points. Afterwards nothing may be left: no request in flight,
//! none queued, and the memory of the daemon and its workers back near where it was, the prefix cache left out:
//! it is meant to fill up to its budget and says in the metrics how much it holds.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

/// Options of `cargo xtask soak`.
#[derive(Args)]
pub struct Options {
    /// Where to send requests: a neuron or a cortex.
    #[arg(long, default_value = "http://127.0.0.1:13131")]
    endpoint: String,
    /// The neuron whose counters are checked afterwards.
    #[arg(long, default_value = "http://127.0.0.1:13131")]
    node: String,
    /// Process id of that neuron; its memory and its workers' are compared before and after.
    #[arg(long)]
    pid: Option<u32>,
    /// The model to ask; the first one offered by default.
    #[arg(long)]
    model: Option<String>,
    #[arg(long, default_value_t = 16)]
    clients: u32,
    /// How long, in seconds.
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// Seed of the clients' behaviour; printed, so that a run can be repeated.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Default)]
struct Tally {
    completed: AtomicU64,
    hung_up: AtomicU64,
    refused: AtomicU64,
    bytes: AtomicU64,
}

/// Runs the soak; fails if anything is left behind.
pub fn run(options: &Options) -> Result<()> {
    let model = match &options.model {
        Some(model) => model.clone(),
        None => first_model(&options.endpoint)?,
    };
    // A first round brings caches and thread pools to their working size, so that the comparison is fair.
    round(options, &model, Duration::from_secs(options.seconds.min(20)))?;
    settle(&options.node)?;
    let before = options.pid.map(|pid| own_kib(pid, &options.node)).transpose()?;
    println!("seed {}, {} clients, {} s, model {model}", options.seed, options.clients, options.seconds);
    let tally = round(options, &model, Duration::from_secs(options.seconds))?;
    let left = settle(&options.node);
    println!(
        "completed {}, hung up {}, refused {}, {} MiB received",
        tally.completed.load(Ordering::Relaxed),
        tally.hung_up.load(Ordering::Relaxed),
        tally.refused.load(Ordering::Relaxed),
        tally.bytes.load(Ordering::Relaxed) >> 20,
    );
    left?;
    if let (Some(pid), Some(before)) = (options.pid, before) {
        let after = own_kib(pid, &options.node)?;
        println!("memory without cached state: {} MiB before, {} MiB after", before >> 10, after >> 10);
        if after > before + before / 10 + 32 * 1024 {
            bail!("memory grew by {} MiB", (after - before) >> 10);
        }
    }
    println!("nothing is left behind");
    Ok(())
}

fn first_model(endpoint: &str) -> Result<String> {
    let models: Value = ureq::get(format!("{endpoint}/v1/models")).call()?.body_mut().read_json()?;
    models["data"][0]["id"].as_str().map(str::to_owned).context("no model is offered")
}

fn round(options: &Options, model: &str, length: Duration) -> Result<Tally> {
    let tally = Tally::default();
    let end = Instant::now() + length;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..options.clients)
            .map(|client| {
                let (tally, endpoint) = (&tally, &options.endpoint);
                let mut dice = Dice(options.seed.wrapping_mul(1_000_003) + u64::from(client));
                scope.spawn(move || -> Result<()> {
                    while Instant::now() < end {
                        visit(endpoint, model, &mut dice, tally)?;
                    }
                    Ok(())
                })
            })
            .collect();
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(tally)
}

/// One client's visit: a prompt of some length, an answer read to the end or abandoned.
fn visit(endpoint: &str, model: &str, dice: &mut Dice, tally: &Tally) -> Result<()> {
    let words = 3 + dice.below(120);
    let prompt: String =
        (0..words).map(|_| ["sea ", "tide ", "moon ", "river "][dice.below(4) as usize]).collect();
    let body = json!({
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "stream": true,
        "max_tokens": 1 + dice.below(64),
        "seed": dice.below(1 << 30),
        "ignore_eos": true,
    });
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let response = agent.post(format!("{endpoint}/v1/chat/completions")).send_json(&body)?;
    if response.status() != 200 {
        tally.refused.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(50));
        return Ok(());
    }
    let patience = if dice.below(2) == 0 { u64::MAX } else { dice.below(6000) };
    let mut reader = response.into_body().into_reader();
    let (mut buffer, mut received, mut text) = ([0u8; 4096], 0, Vec::new());
    loop {
        let count = reader.read(&mut buffer)?;
        received += count as u64;
        if count == 0 {
            break;
        }
        text.extend_from_slice(&buffer[..count]);
        if received >= patience {
            tally.hung_up.fetch_add(1, Ordering::Relaxed);
            tally.bytes.fetch_add(received, Ordering::Relaxed);
            return Ok(()); // dropping the reader closes the connection
        }
    }
    tally.bytes.fetch_add(received, Ordering::Relaxed);
    let text = String::from_utf8_lossy(&text);
    if !text.contains("[DONE]") {
        bail!(
            "a stream ended without [DONE]: …{}",
            text.chars().rev().take(300).collect::<String>().chars().rev().collect::<String>()
        );
    }
    tally.completed.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Waits until no model has anything in flight or queued; an error after ten seconds.
fn settle(node: &str) -> Result<()> {
    let mut last = Value::Null;
    for _ in 0..100 {
        last = ureq::get(format!("{node}/models")).call()?.body_mut().read_json()?;
        let busy = last["models"].as_array().into_iter().flatten().any(|model| {
            ["inflight", "queued", "running"].iter().any(|counter| model["activity"][counter] != 0)
        });
        if !busy {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("requests are left behind: {last:#}")
}

/// Memory of neuron and its workers without the sequence state the workers account for, in KiB.
fn own_kib(pid: u32, node: &str) -> Result<u64> {
    let metrics = ureq::get(format!("{node}/metrics")).call()?.body_mut().read_to_string()?;
    let state: f64 = metrics
        .lines()
        .filter(|line| line.starts_with("neuron_state_bytes{kind=\"used\""))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    Ok(resident_kib(pid)?.saturating_sub(state as u64 / 1024))
}

/// Resident memory of a process and its children, in KiB.
fn resident_kib(pid: u32) -> Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir("/proc")? {
        let Some(process) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(status) = std::fs::read_to_string(format!("/proc/{process}/status")) else { continue };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        if process == pid || field("PPid:") == Some(u64::from(pid)) {
            total += field("RssAnon:").unwrap_or(0);
        }
    }
    if total == 0 {
        bail!("process {pid} is not there");
    }
    Ok(total)
}

/// A small generator (SplitMix64), so that a run can be repeated from its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}
