//! Answers against those the reference implementation gave, for every checkpoint in f32, bf16 and quantized.
//!
//! Everything goes through the ABI, so what is compared is logits: of whole prompts, prompts in pieces, single
//! tokens, prompts with images. Where a stage inside a model differs, the golden tests of the architectures find
//! it on a processor; here the question is whether this device computes the same.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use plugin_loader::{ImageId, ImageSpan, LoadOptions, Model, Source};
use serde_json::Value;

use crate::device::Found;
use crate::fixture::{self, Fixture};
use crate::plugins::Plugins;
use crate::report::Report;
use crate::session::{Session, likeliest};

/// Precisions and quantizations, each checked on every checkpoint.
const WAYS: &[Way] = &[
    Way { name: "f32", dtype: "f32", quantize: "", steps: 0.0 },
    Way { name: "bf16", dtype: "bf16", quantize: "", steps: 0.0 },
    Way { name: "q8_0", dtype: "auto", quantize: "q8_0", steps: 8.0 },
    Way { name: "q4k", dtype: "auto", quantize: "q4k", steps: 24.0 },
];

/// The architecture without weights, and the folder of its configuration.
const ECHO: &str = "echo";

/// A way to compute.
struct Way {
    name: &'static str,
    dtype: &'static str,
    quantize: &'static str,
    /// Allowed loss of a quantization, in what the reference itself loses in bf16.
    steps: f64,
}

/// Runs every checkpoint that a plugin serves.
pub fn run(folder: &Path, plugins: &Plugins, device: &Found, only: &str, report: &mut Report) -> Result<()> {
    for fixture in fixture::all(folder)?.iter().filter(|fixture| fixture.name.contains(only)) {
        let Some((plugin, architecture)) = plugins.serving(&fixture.model_type) else {
            report.skipped(&fixture.name, &format!("no plugin here serves {}", fixture.model_type));
            continue;
        };
        for way in WAYS {
            let subject = format!("{} in {}", fixture.name, way.name);
            let options = LoadOptions {
                device: device.info,
                dtype: way.dtype.into(),
                quantize: way.quantize.into(),
                max_context: 512,
                max_sequences: 8,
                ..LoadOptions::default()
            };
            let loaded = plugin.load(architecture, &fixture.source, &options, &mut |_, _, _| true);
            let mut comparisons = Comparisons::default();
            let outcome = loaded
                .context("the model does not load")
                .and_then(|mut model| check(fixture, way, &mut model, &mut comparisons));
            report.check(&subject, comparisons.conclude(outcome));
        }
    }
    if ECHO.contains(only) {
        check_echo(folder, plugins, device, report);
    }
    Ok(())
}

/// The architecture without weights has no reference; a prompt in pieces must say what the whole one says.
fn check_echo(folder: &Path, plugins: &Plugins, device: &Found, report: &mut Report) {
    let config = std::fs::read_to_string(folder.join(ECHO).join("config.json"));
    let (Ok(config), Some((plugin, architecture))) = (config, plugins.serving(ECHO)) else {
        report.skipped(ECHO, "it has no configuration here, or no plugin serves it");
        return;
    };
    let source = Source { config, ..Source::default() };
    let options = LoadOptions { device: device.info, ..LoadOptions::default() };
    let roads = || -> Result<Comparisons> {
        let mut model = plugin.load(architecture, &source, &options, &mut |_, _, _| true)?;
        let mut whole = Session::new(&mut model)?;
        let expected = whole.last(&[72, 101, 108, 108, 111], &[])?;
        whole.end();
        let mut pieces = Session::new(&mut model)?;
        pieces.last(&[72, 101], &[])?;
        let got = pieces.last(&[108, 108, 111], &[])?;
        pieces.end();
        let mut comparisons = Comparisons::default();
        comparisons.largest("in pieces", &got, &expected, f64::from(f32::EPSILON));
        Ok(comparisons)
    };
    let outcome = roads().map_err(|error| format!("{error:#}"));
    report.check(ECHO, outcome.and_then(|comparisons| comparisons.conclude(Ok(()))));
}

fn check(fixture: &Fixture, way: &Way, model: &mut Model, comparisons: &mut Comparisons) -> Result<()> {
    match way.name {
        "f32" => {
            check_recorded(fixture, model, comparisons)?;
            check_greedy(fixture, model, comparisons)?;
            check_images(fixture, model, comparisons, fixture.number("/tolerance/f32_logits_abs")?, true)
        }
        "bf16" => {
            check_rounded(fixture, model, comparisons)?;
            let limit = fixture.number("/tolerance/bf16_vs_f32_oracle/last_rows_max_abs")?;
            check_images(fixture, model, comparisons, limit, false)
        }
        _ => check_quantized(fixture, way, model, comparisons),
    }
}

/// Every recorded row of logits of text, in f32.
fn check_recorded(fixture: &Fixture, model: &mut Model, comparisons: &mut Comparisons) -> Result<()> {
    let ids = fixture.ids("/text/ids")?;
    let limit = fixture.number("/tolerance/f32_logits_abs")?;
    for key in fixture.keys()? {
        let parts: Vec<&str> = key.split('/').collect();
        let mut session = Session::new(model)?;
        let got = match parts[..] {
            ["f32", "prefill", length, "last"] => session.last(part(&ids, 0, number(length)?)?, &[])?,
            ["f32", "prefill", length, "all"] => session.all(part(&ids, 0, number(length)?)?, &[])?,
            ["f32", "decode", from, "logits"] => {
                let from = number(from.trim_start_matches("from"))?;
                let steps = fixture.tensor(&key)?.shape[0];
                session.last(part(&ids, 0, from)?, &[])?;
                let mut rows = Vec::new();
                for id in part(&ids, from, from + steps)? {
                    rows.extend(session.last(&[*id], &[])?);
                }
                rows
            }
            ["f32", "chunked", pieces, "last"] => {
                let (mut at, mut last) = (0, Vec::new());
                for piece in pieces.split('-') {
                    let end = at + number(piece)?;
                    last = session.last(part(&ids, at, end)?, &[])?;
                    at = end;
                }
                last
            }
            _ => {
                session.end();
                continue;
            }
        };
        session.end();
        comparisons.largest(&key, &got, &fixture.tensor(&key)?.values, limit);
    }
    Ok(())
}

/// The greedy continuation, token for token.
fn check_greedy(fixture: &Fixture, model: &mut Model, comparisons: &mut Comparisons) -> Result<()> {
    let expected = fixture.ids("/greedy/f32_tokens")?;
    let mut session = Session::new(model)?;
    let mut got = vec![likeliest(&session.last(&fixture.ids("/greedy/prompt_ids")?, &[])?)];
    while got.len() < expected.len() {
        let token = got[got.len() - 1];
        got.push(likeliest(&session.last(&[token], &[])?));
    }
    session.end();
    comparisons.holds("greedy tokens", got == expected, || format!("{got:?}, where {expected:?} is right"));
    Ok(())
}

/// bf16 against the f32 reference, by the limits recorded for it.
fn check_rounded(fixture: &Fixture, model: &mut Model, comparisons: &mut Comparisons) -> Result<()> {
    let ids = fixture.ids("/text/ids")?;
    let limit = |name: &str| fixture.number(&format!("/tolerance/bf16_vs_f32_oracle/{name}"));
    let (mut last, mut expected) = (Vec::new(), Vec::new());
    for key in fixture.keys()? {
        match key.split('/').collect::<Vec<_>>()[..] {
            ["f32", "prefill", length, "last"] => {
                let mut session = Session::new(model)?;
                last.extend(session.last(part(&ids, 0, number(length)?)?, &[])?);
                session.end();
                expected.extend(fixture.tensor(&key)?.values);
            }
            ["f32", "prefill", length, "all"] => {
                let recorded = fixture.tensor(&key)?;
                let mut session = Session::new(model)?;
                let got = session.all(part(&ids, 0, number(length)?)?, &[])?;
                session.end();
                comparisons.largest(&key, &got, &recorded.values, limit("all_rows_max_abs")?);
                comparisons.mean(&key, &got, &recorded.values, limit("all_rows_rms")?);
                let width = recorded.shape.last().copied().unwrap_or(1).max(1);
                let pairs = got.chunks(width).zip(recorded.values.chunks(width));
                let agree = pairs.filter(|(a, b)| likeliest(a) == likeliest(b)).count();
                let share = agree as f64 / number(length)? as f64;
                let least = limit("top1_agree")?;
                comparisons
                    .holds(&format!("{key}, likeliest"), share >= least, || format!("{share}, not {least}"));
            }
            _ => {}
        }
    }
    comparisons.largest("last rows", &last, &expected, limit("last_rows_max_abs")?);
    comparisons.mean("last rows", &last, &expected, limit("last_rows_rms")?);
    Ok(())
}

/// A quantized model loses no more than its format explains: so many times what the reference loses in bf16, and
/// never more than logits spread at all.
fn check_quantized(
    fixture: &Fixture,
    way: &Way,
    model: &mut Model,
    comparisons: &mut Comparisons,
) -> Result<()> {
    let ids = fixture.ids("/text/ids")?;
    let sensitivity = fixture.number("/measured/bf16 vs f32 logits/rms")?;
    let (mut got, mut expected) = (Vec::new(), Vec::new());
    for length in fixture.ids("/text/prefill_lengths")? {
        let Ok(recorded) = fixture.tensor(&format!("f32/prefill/{length}/last")) else { continue };
        let mut session = Session::new(model)?;
        got.extend(session.last(part(&ids, 0, length as usize)?, &[])?);
        session.end();
        expected.extend(recorded.values);
    }
    let spread = distance(&expected, &vec![0.0; expected.len()]).1;
    comparisons.mean("last rows", &got, &expected, (way.steps * sensitivity).min(spread));
    Ok(())
}

/// Prompts with images, from the reference's own pixels.
fn check_images(
    fixture: &Fixture,
    model: &mut Model,
    comparisons: &mut Comparisons,
    limit: f64,
    exact: bool,
) -> Result<()> {
    let Some(prompts) = fixture.part("/multimodal").and_then(Value::as_array) else { return Ok(()) };
    for prompt in prompts {
        let name = prompt["name"].as_str().context("a prompt without a name")?;
        let ids = fixture::ids(&prompt["ids"]).context("a prompt without ids")?;
        let spans = encode(fixture, model, prompt)?;
        let key = |stage: &str| format!("f32/mm/{name}/{stage}");
        let mut session = Session::new(model)?;
        let last = session.last(&ids, &spans)?;
        comparisons.largest(&key("last"), &last, &fixture.tensor(&key("last"))?.values, limit);
        if exact {
            let recorded = fixture.tensor(&key("decode"))?;
            let tokens = fixture::ids(&prompt["f32_tokens"]).context("a prompt without tokens")?;
            let mut rows = Vec::new();
            for token in part(&tokens, 0, recorded.shape[0])? {
                rows.extend(session.last(&[*token], &spans)?);
            }
            comparisons.largest(&key("decode"), &rows, &recorded.values, limit);
        }
        session.end();
        spans.iter().for_each(|span| model.image_free(span.image));
    }
    Ok(())
}

/// Encodes a prompt's images and finds their places by the marked tokens.
fn encode(fixture: &Fixture, model: &mut Model, prompt: &Value) -> Result<Vec<ImageSpan>> {
    let kinds = fixture::ids(&prompt["mm_token_type_ids"]).context("a prompt without token kinds")?;
    let names = prompt["images"].as_array().context("a prompt without a list of images")?;
    let (mut spans, mut at): (Vec<ImageSpan>, usize) = (Vec::new(), 0);
    for name in names.iter().filter_map(Value::as_str) {
        let pixels = fixture.tensor(&format!("f32/vis/{name}/resized_u8"))?;
        let rgb: Vec<u8> = pixels.values.iter().map(|&value| value as u8).collect();
        let encoded = model.image_encode(pixels.shape[1] as u32, pixels.shape[0] as u32, &rgb)?;
        let marked = kinds.get(at..).and_then(|rest| rest.iter().position(|&kind| kind == 1));
        at += marked.with_context(|| format!("no place for the image {name}"))?;
        let image: ImageId = encoded.image;
        spans.push(ImageSpan { image, position: at as u32, token_count: encoded.token_count });
        at += encoded.token_count as usize;
    }
    Ok(spans)
}

/// What was compared and what was out of its limit.
#[derive(Default)]
struct Comparisons {
    made: usize,
    failures: Vec<String>,
    closest: f64,
}

impl Comparisons {
    fn at_most(&mut self, stage: &str, value: f64, limit: f64) {
        self.made += 1;
        if value.is_nan() || value > limit {
            self.failures.push(format!("{stage}: {value:.2e} where {limit:.2e} is allowed"));
        }
        self.closest = self.closest.max(value / limit);
    }

    fn largest(&mut self, stage: &str, got: &[f32], expected: &[f32], limit: f64) {
        self.at_most(&format!("{stage}, largest difference"), distance(got, expected).0, limit);
    }

    fn mean(&mut self, stage: &str, got: &[f32], expected: &[f32], limit: f64) {
        self.at_most(&format!("{stage}, mean difference"), distance(got, expected).1, limit);
    }

    fn holds(&mut self, stage: &str, holds: bool, otherwise: impl FnOnce() -> String) {
        self.made += 1;
        if !holds {
            self.failures.push(format!("{stage}: {}", otherwise()));
        }
    }

    /// A sentence either way. Nothing compared is a failure: a fixture without recordings proves nothing.
    fn conclude(self, outcome: Result<()>) -> Result<String, String> {
        outcome.map_err(|error| format!("{error:#}"))?;
        if self.made == 0 {
            return Err("nothing was compared".into());
        }
        if let Some(first) = self.failures.first() {
            return Err(format!(
                "{} of {} comparisons failed; the first: {first}",
                self.failures.len(),
                self.made
            ));
        }
        Ok(format!("{} comparisons, the closest at {:.0} % of its limit", self.made, self.closest * 100.0))
    }
}

/// Largest and root mean square difference; infinite for anything not finite or of another length.
fn distance(got: &[f32], expected: &[f32]) -> (f64, f64) {
    if got.len() != expected.len() || got.iter().any(|value| !value.is_finite()) {
        return (f64::INFINITY, f64::INFINITY);
    }
    let differences = got.iter().zip(expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    let (largest, squares) = differences.fold((0f64, 0f64), |(max, sum), d| (max.max(d), sum + d * d));
    (largest, (squares / got.len().max(1) as f64).sqrt())
}

fn part(ids: &[u32], from: usize, to: usize) -> Result<&[u32]> {
    ensure!(from < to && to <= ids.len(), "there are no tokens {from} to {to}");
    Ok(&ids[from..to])
}

fn number(text: &str) -> Result<usize> {
    text.parse().with_context(|| format!("{text} is not a number in the name of a recorded tensor"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_number_is_infinitely_far() {
        assert_eq!(distance(&[1.0, 2.0], &[1.0, 2.5]).0, 0.5);
        assert!(distance(&[f32::NAN], &[0.0]).0.is_infinite());
        assert!(distance(&[1.0], &[1.0, 2.0]).1.is_infinite());
    }

    #[test]
    fn nothing_compared_is_no_success() {
        assert!(Comparisons::default().conclude(Ok(())).is_err());
        let mut comparisons = Comparisons::default();
        comparisons.at_most("a", 1.0, 2.0);
        assert_eq!(
            comparisons.conclude(Ok(())).as_deref(),
            Ok("1 comparisons, the closest at 50 % of its limit")
        );
        let mut comparisons = Comparisons::default();
        comparisons.at_most("a", 1.0, 2.0);
        comparisons.at_most("b", f64::NAN, 2.0);
        assert!(
            comparisons.conclude(Ok(())).is_err_and(|said| said.contains("1 of 2") && said.contains("b: "))
        );
    }
}
