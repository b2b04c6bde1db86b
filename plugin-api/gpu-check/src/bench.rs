//! Prompts and single tokens per second, on made-up checkpoints of real shape.
//!
//! Single tokens are bound by memory: each reads all weights once. So their speed is given as a fraction of the
//! bandwidth that was measured; prompts are bound by arithmetic, and given in operations per second.

use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use plugin_loader::{LoadOptions, Model, Row, SequenceId, StepOutput, Want};

use crate::checkpoint::Checkpoint;
use crate::device::Found;
use crate::plugins::Plugins;
use crate::report::{Decode, Measured, Report};
use crate::shape::Shape;

/// Prompts that are timed, the median of which counts.
const PROMPTS: usize = 5;

/// Measures one shape, or says why not.
pub fn run(
    shape: &Shape,
    plugins: &Plugins,
    device: &Found,
    scratch: &Path,
    threads: u32,
    report: &mut Report,
) -> Result<()> {
    let subject = format!("speed of {}", shape.name);
    let model_type = shape.config["model_type"].as_str().unwrap_or_default();
    let Some((plugin, architecture)) = plugins.serving(model_type) else {
        report.skipped(&subject, &format!("no plugin here serves {model_type}"));
        return Ok(());
    };
    println!("{}: writing {:.1} GB …", shape.name, shape.bytes() as f64 / 1e9);
    let checkpoint = match Checkpoint::write(shape, scratch) {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            report.skipped(&subject, &format!("{error:#}"));
            return Ok(());
        }
    };
    let source = checkpoint.source();
    let most = shape.batches.iter().copied().max().unwrap_or(1);
    let options = LoadOptions {
        device: device.info,
        dtype: "auto".into(),
        quantize: shape.quantize.into(),
        max_context: shape.prompt + shape.decode + 16,
        max_sequences: most + 1,
        max_step_tokens: shape.prompt,
        threads,
        ..LoadOptions::default()
    };
    let plan = plugin.plan(architecture, &source, &options)?;
    let wanted = plan.weight_bytes
        + u64::from(most + 1) * u64::from(options.max_context) * plan.kv_bytes_per_token
        + plan.activation_bytes_per_token * u64::from(shape.prompt)
        + plan.fixed_bytes;
    if wanted > device.info.free_bytes {
        let reason = format!(
            "it takes {:.1} GB and {:.1} GB are free",
            wanted as f64 / 1e9,
            device.info.free_bytes as f64 / 1e9
        );
        report.skipped(&subject, &reason);
        return Ok(());
    }
    let before = device.used_bytes();
    let start = Instant::now();
    let measured = plugin
        .load(architecture, &source, &options, &mut |_, _, _| true)
        .map_err(anyhow::Error::from)
        .and_then(|mut model| {
            let load_s = start.elapsed().as_secs_f64();
            measure(shape, &mut model, &plan, load_s, device.used_bytes().saturating_sub(before))
        });
    match measured {
        Ok(measured) => {
            let first = measured.decode.first().map_or(0.0, |decode| decode.tokens_per_s);
            let said = format!("{:.0} prompt tokens/s, {first:.1} tokens/s", measured.prefill_tokens_per_s);
            report.measured.push(measured);
            report.check(&subject, Ok(said));
        }
        Err(error) => report.check::<String>(&subject, Err(format!("{error:#}"))),
    }
    Ok(())
}

fn measure(
    shape: &Shape,
    model: &mut Model,
    plan: &plugin_loader::Plan,
    load_s: f64,
    held_bytes: u64,
) -> Result<Measured> {
    let prefill_s = prefill(shape, model)?;
    let weights = model.info().weight_bytes;
    // A token reads one row of the embedding table, not all of it.
    let table = shape.tensors.iter().find(|tensor| tensor.name.ends_with("embed_tokens.weight"));
    let read = weights.saturating_sub(table.map_or(0, |table| table.bytes()));
    let mut decode = Vec::new();
    for &batch in shape.batches {
        let step_s = decode_steps(shape, model, batch)?;
        let state = u64::from(shape.prompt) * plan.kv_bytes_per_token + plan.state_bytes_per_sequence;
        decode.push(Decode {
            batch,
            step_ms: step_s * 1e3,
            tokens_per_s: f64::from(batch) / step_s,
            bytes_per_s: (read + u64::from(batch) * state) as f64 / step_s,
        });
    }
    Ok(Measured {
        model: shape.name.clone(),
        quantize: shape.quantize.into(),
        load_s,
        weight_bytes: weights,
        held_bytes,
        prompt_tokens: shape.prompt,
        prefill_tokens_per_s: f64::from(shape.prompt) / prefill_s,
        prefill_flops_per_s: 2.0 * shape.multiplied as f64 * f64::from(shape.prompt) / prefill_s,
        decode,
    })
}

/// Seconds for one prompt, the median of several.
fn prefill(shape: &Shape, model: &mut Model) -> Result<f64> {
    let tokens: Vec<u32> = (0..shape.prompt).map(|place| place * 7 % 500).collect();
    let mut seconds = Vec::new();
    for round in 0..=PROMPTS {
        let sequence = model.sequence_new()?;
        let start = Instant::now();
        step(model, &[(sequence, 0)], &tokens, shape.prompt, Want::LAST)?;
        if round > 0 {
            seconds.push(start.elapsed().as_secs_f64()); // the first one warms up
        }
        model.sequence_free(sequence);
    }
    median(seconds)
}

/// Seconds for one step of `batch` sequences, the median of several, each sequence with a prompt before it.
fn decode_steps(shape: &Shape, model: &mut Model, batch: u32) -> Result<f64> {
    let prompt: Vec<u32> = (0..shape.prompt).map(|place| place * 11 % 500).collect();
    let mut sequences = Vec::new();
    for _ in 0..batch {
        let sequence = model.sequence_new()?;
        step(model, &[(sequence, 0)], &prompt, shape.prompt, Want::NOTHING)?;
        sequences.push(sequence);
    }
    let mut tokens = vec![1; batch as usize];
    let mut seconds = Vec::new();
    for place in 0..shape.decode {
        let position = shape.prompt + place;
        let rows: Vec<_> = sequences.iter().map(|sequence| (*sequence, position)).collect();
        let start = Instant::now();
        tokens = step(model, &rows, &tokens, 1, Want::TOKEN)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    sequences.into_iter().for_each(|sequence| model.sequence_free(sequence));
    median(seconds.split_off(seconds.len().min(2)))
}

/// One step of rows of equal length; the likeliest tokens if they are wanted.
fn step(
    model: &mut Model,
    rows: &[(SequenceId, u32)],
    tokens: &[u32],
    each: u32,
    want: Want,
) -> Result<Vec<u32>> {
    let row = |(number, &(sequence, position)): (usize, &(SequenceId, u32))| {
        let start = number as u32 * each;
        Row { sequence, position, tokens: start..start + each, want, images: 0..0 }
    };
    let asked: Vec<Row> = rows.iter().enumerate().map(row).collect();
    let mut output = StepOutput::default();
    model.step(&asked, tokens, &[], &AtomicU32::new(0), &mut output)?;
    for number in 0..asked.len() {
        if let Some(error) = output.error(number) {
            bail!("a row failed: {error}");
        }
    }
    Ok((0..asked.len()).filter_map(|number| output.token(number)).collect())
}

fn median(mut seconds: Vec<f64>) -> Result<f64> {
    ensure!(!seconds.is_empty(), "nothing was timed");
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}
