//! Measures prefill and decode of a llama checkpoint, without host or engine.
//!
//! ```text
//! cargo run --release -p arch-llama --example speed -- MODEL.gguf [repetitions] [quantization] [avx2|portable]
//! ```
//!
//! Prints tokens per second, and the share of decode's weight traffic in bytes per second. Threads are
//! `RAYON_NUM_THREADS`, or all.

use std::path::PathBuf;
use std::time::Instant;

use arch_llama::checkpoint::Checkpoint;
use layers::batch::{Batch, BatchRow, Cancel, Decoder};
use layers::decoder::PreNormDecoder;
use layers::kernel::Isa;
use layers::kv::KvCache;
use layers::placement::Placement;
use layers::quant::Scheme;
use layers::trace::Trace;
use layers::weights::{Container, Weights};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path =
        PathBuf::from(arguments.next().ok_or("which checkpoint? a .gguf, or a folder of safetensors")?);
    let repetitions: usize = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let quantize = Scheme::parse(&arguments.next().unwrap_or_default())?;
    let limited = match arguments.next().as_deref() {
        None => true,
        Some("avx2") => Isa::limit(Isa::Avx2),
        Some("portable") => Isa::limit(Isa::Portable),
        Some(other) => return Err(format!("there is no level {other}").into()),
    };
    assert!(limited, "no kernel has run yet");

    let begin = Instant::now();
    let (files, container, config) = if path.is_dir() {
        let files = vec![path.join("model.safetensors")];
        (files, Container::Safetensors, std::fs::read_to_string(path.join("config.json"))?)
    } else {
        (vec![path], Container::Gguf, String::new())
    };
    let placement = Placement { quantize, ..Placement::cpu() };
    let weights = Weights::open(&files, container, placement)?;
    let bytes = weights.total_bytes() as f64;
    let decoder = Checkpoint::new(&config, &weights)?.load(&weights)?;
    println!("load            {:8.2} s", begin.elapsed().as_secs_f64());
    println!("level           {:>8?}", Isa::best());
    println!("threads         {:8}", layers::kernel::pool::threads());

    for length in [128, 512] {
        report(&format!("prefill {length}"), repetitions, length, || {
            feed(&decoder, &mut [decoder.new_state()], length);
        });
    }
    for sequences in [1, 2, 4, 8, 16] {
        let mut states: Vec<KvCache> = (0..sequences).map(|_| decoder.new_state()).collect();
        feed(&decoder, &mut states, 4);
        let rate = report(&format!("decode x{sequences}"), repetitions, 64 * sequences, || {
            (0..64).for_each(|_| feed(&decoder, &mut states, 1));
        });
        if sequences == 1 {
            println!("                {:8.1} GB/s of weights", rate * bytes / 1e9);
        }
    }
    let mut states = [decoder.new_state()];
    feed(&decoder, &mut states, 512);
    report("decode at 512", repetitions, 32, || (0..32).for_each(|_| feed(&decoder, &mut states, 1)));
    Ok(())
}

/// Median and best of several runs by the clock, and the median by the time this thread was on a processor: on
/// a busy machine, and with one thread, the latter is the one to look at.
fn report(what: &str, repetitions: usize, tokens: usize, mut run: impl FnMut()) -> f64 {
    let (mut rates, mut busy) = (Vec::new(), Vec::new());
    for _ in 0..repetitions {
        let (begin, before) = (Instant::now(), on_processor());
        run();
        rates.push(tokens as f64 / begin.elapsed().as_secs_f64());
        busy.push(tokens as f64 / (on_processor() - before));
    }
    rates.sort_by(f64::total_cmp);
    busy.sort_by(f64::total_cmp);
    let (median, best) = (rates[repetitions / 2], rates[repetitions - 1]);
    println!(
        "{what:15} {median:8.1} tok/s  (best {best:.1}; by processor time {:.1})",
        busy[repetitions / 2]
    );
    median
}

/// Seconds this thread has run.
fn on_processor() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds: f64 = text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0);
    nanoseconds / 1e9
}

/// `length` tokens to every sequence, logits of each last one.
fn feed(decoder: &PreNormDecoder, states: &mut [KvCache], length: usize) {
    let tokens: Vec<u32> = (0..states.len() * length).map(|i| (i * 37 % 1000) as u32 + 5).collect();
    let logits_of = (0..states.len()).map(|i| ((i + 1) * length - 1) as u32).collect();
    let rows = states
        .iter_mut()
        .enumerate()
        .map(|(i, state)| {
            let position = state.len();
            BatchRow { state, offset: i * length, len: length, position, images: Vec::new() }
        })
        .collect();
    let mut batch = Batch { tokens: &tokens, rows, logits_of, cancel: Cancel::never() };
    decoder.forward(&mut batch, &Trace::off()).expect("the step succeeds");
}
