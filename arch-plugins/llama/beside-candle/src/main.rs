//! `neuron bench` and candle's own quantized llama, in turns in one run on the same GGUF.
//!
//! Machines are noisy, so only the ratio of figures of one run means anything:
//!
//! ```text
//! RUSTFLAGS="-C target-cpu=native" cargo run --release -- ../../../target/release/neuron model.gguf
//! ```
//!
//! Plugins are found as neuron finds them (`NEURON_PLUGINS`, or beside its binary).

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, IndexOp, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;

const PROMPT: usize = 128;
const GENERATED: usize = 64;
const ROUNDS: usize = 3;
const THREADS: &str = "2";

/// Tokens per second.
#[derive(Clone, Copy)]
struct Speed {
    prefill: f64,
    decode: f64,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [neuron, model] = arguments.as_slice() else { bail!("usage: beside-candle NEURON MODEL.gguf") };
    if std::env::var_os("RAYON_NUM_THREADS").is_none() {
        // Both get the same threads; candle reads its number once, at the start.
        let status = Command::new(std::env::current_exe()?)
            .args(&arguments)
            .env("RAYON_NUM_THREADS", THREADS)
            .env("CANDLE_NUM_THREADS", THREADS)
            .status()?;
        std::process::exit(status.code().unwrap_or(1));
    }
    let mut candle = Candle::load(Path::new(model))?;
    println!("{:>6} {:>28} {:>28}", "round", "neuron prefill / decode", "candle prefill / decode");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let (one, other) = (bench(neuron, model)?, candle.bench()?);
        println!(
            "{round:>6} {:>17.0} / {:>8.1} {:>17.0} / {:>8.1}",
            one.prefill, one.decode, other.prefill, other.decode
        );
        ours.push(one);
        theirs.push(other);
    }
    let ratio = |of: fn(&Speed) -> f64| median(ours.iter().map(of)) / median(theirs.iter().map(of));
    println!("neuron / candle: prefill {:.2}, decode {:.2}", ratio(|s| s.prefill), ratio(|s| s.decode));
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn bench(neuron: &str, model: &str) -> Result<Speed> {
    let output = Command::new(neuron)
        .args(["bench", "--json", "--runs", "1", "--threads", THREADS, "--model", model])
        .args(["--prompt-tokens", &PROMPT.to_string(), "--generate-tokens", &GENERATED.to_string()])
        .output()
        .with_context(|| format!("cannot start {neuron}"))?;
    if !output.status.success() {
        bail!("neuron bench: {}", String::from_utf8_lossy(&output.stderr));
    }
    let figures: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let figure = |name: &str| figures[name].as_f64().with_context(|| format!("neuron bench gives no {name}"));
    Ok(Speed { prefill: figure("prefill_tokens_per_second")?, decode: figure("decode_tokens_per_second")? })
}

struct Candle {
    weights: ModelWeights,
}

impl Candle {
    fn load(model: &Path) -> Result<Self> {
        let mut file = File::open(model).with_context(|| format!("cannot open {}", model.display()))?;
        let content = Content::read(&mut file)?;
        Ok(Self { weights: ModelWeights::from_gguf(content, &mut file, &Device::Cpu)? })
    }

    /// A prompt in one piece, then one token after the other; each token is the likeliest.
    fn bench(&mut self) -> Result<Speed> {
        let prompt: Vec<u32> = (0..PROMPT as u32).map(|i| 100 + i * 7 % 1000).collect();
        let begin = Instant::now();
        let logits = self.weights.forward(&Tensor::new(&prompt[..], &Device::Cpu)?.unsqueeze(0)?, 0)?;
        let mut token = likeliest(&logits)?;
        let prefill = PROMPT as f64 / begin.elapsed().as_secs_f64();
        let begin = Instant::now();
        for step in 0..GENERATED {
            let input = Tensor::new(&[token], &Device::Cpu)?.unsqueeze(0)?;
            token = likeliest(&self.weights.forward(&input, PROMPT + step)?)?;
        }
        Ok(Speed { prefill, decode: GENERATED as f64 / begin.elapsed().as_secs_f64() })
    }
}

fn likeliest(logits: &Tensor) -> Result<u32> {
    Ok(logits.i(0)?.argmax(0)?.to_scalar::<u32>()?)
}
