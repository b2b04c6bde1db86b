//! The comparisons every decoder of text has in common.

use candle_core::{DType, Tensor};
use layers::batch::Decoder;
use layers::placement::Placement;
use layers::quant::Scheme;

use crate::fixture::Fixture;
use crate::report::{Distance, Report};
use crate::session::Session;

/// Logits after prompts of several lengths, while decoding, and after a prompt in pieces, all in f32.
pub fn check_logits<D: Decoder>(fixture: &Fixture, decoder: &D) -> Report {
    let mut report = Report::default();
    let ids = fixture.ids("/text/ids");
    let limit = fixture.limit("f32_logits_abs");
    for key in fixture.keys() {
        let parts: Vec<&str> = key.split('/').collect();
        let expected = || fixture.tensor(&key).expect("a listed key exists").values;
        match parts[..] {
            ["f32", "prefill", length, "last"] => {
                let got = Session::new(decoder).last(&ids[..number(length)]);
                report.tensors(&key, &got, &expected(), limit);
            }
            ["f32", "prefill", length, "all"] => {
                let got = Session::new(decoder).all(&ids[..number(length)]);
                report.tensors(&key, &got.concat(), &expected(), limit);
            }
            ["f32", "decode", from, "logits"] => {
                let from = number(from.trim_start_matches("from"));
                let steps = fixture.tensor(&key).expect("a listed key exists").shape[0];
                let mut session = Session::new(decoder);
                session.last(&ids[..from]);
                let rows: Vec<Vec<f32>> =
                    ids[from..from + steps].iter().map(|id| session.last(&[*id][..])).collect();
                report.tensors(&key, &rows.concat(), &expected(), limit);
            }
            ["f32", "chunked", pieces, "last"] => {
                let mut session = Session::new(decoder);
                let (mut at, mut got) = (0, Vec::new());
                for piece in pieces.split('-').map(number) {
                    got = session.last(&ids[at..at + piece]);
                    at += piece;
                }
                report.tensors(&key, &got, &expected(), limit);
            }
            _ => {}
        }
    }
    report
}

/// Every recorded intermediate of one prompt, in f32.
pub fn check_stages<D: Decoder>(fixture: &Fixture, decoder: &D) -> Report {
    let mut report = Report::default();
    let length = fixture.number("/text/detail_len") as usize;
    let taps = Session::new(decoder).traced(&fixture.ids("/text/ids")[..length]);
    for key in fixture.keys() {
        let Some(limit) = stage_limit(fixture, &key) else { continue };
        let stage = key.trim_start_matches("f32/");
        let expected = fixture.tensor(&key).expect("a listed key exists");
        let tap = taps.iter().find(|(name, _)| name == stage);
        report.holds(&key, tap.is_some(), || "the model does not show this stage".into());
        let Some((_, tap)) = tap else { continue };
        let got = values(tap);
        if stage.ends_with("moe/router_logits") && sums_to_one(&expected.rows()) {
            let shares: Vec<f32> = softmax_rows(&got, *expected.shape.last().expect("a matrix"));
            report.tensors(&key, &shares, &expected.values, limit);
        } else {
            report.tensors(&key, &got, &expected.values, limit);
        }
    }
    report
}

/// The limit of an intermediate of the decoder; `None` for what is not one.
fn stage_limit(fixture: &Fixture, key: &str) -> Option<f64> {
    let parts: Vec<&str> = key.split('/').collect();
    match parts[..] {
        ["f32", "hidden", _] => Some(fixture.limit("f32_hidden_abs")),
        ["f32", "rope", _] => Some(fixture.limit("f32_rope_abs")),
        ["f32", _, "linear", "recurrent_state"] => Some(fixture.limit("f32_recurrent_state_abs")),
        ["f32", _, "moe", "experts"] => Some(0.5),
        ["f32", layer, "linear" | "attn" | "moe", _] if layer.starts_with("layer") => {
            Some(fixture.limit("f32_layer_abs"))
        }
        _ => None,
    }
}

/// The greedy continuation, token for token.
pub fn check_greedy<D: Decoder>(fixture: &Fixture, decoder: &D) -> Report {
    let mut report = Report::default();
    let prompt = fixture.ids("/greedy/prompt_ids");
    let expected = fixture.ids("/greedy/f32_tokens");
    let mut session = Session::new(decoder);
    let mut token = likeliest(&session.last(&prompt));
    let mut got = vec![token];
    while got.len() < expected.len() {
        token = likeliest(&session.last(&[token][..]));
        got.push(token);
    }
    report.holds("greedy", got == expected, || format!("got {got:?}, expected {expected:?}"));
    report
}

/// A decoder that computes in bf16, against the f32 reference.
pub fn check_bf16<D: Decoder>(fixture: &Fixture, decoder: &D) -> Report {
    let mut report = Report::default();
    let ids = fixture.ids("/text/ids");
    let limit = |name: &str| fixture.limit(&format!("bf16_vs_f32_oracle/{name}"));
    let (mut last, mut last_expected) = (Vec::new(), Vec::new());
    for length in fixture.ids("/text/prefill_lengths") {
        let Some(expected) = fixture.tensor(&format!("f32/prefill/{length}/last")) else { continue };
        last.extend(Session::new(decoder).last(&ids[..length as usize]));
        last_expected.extend(expected.values);
    }
    let distance = Distance::between(&last, &last_expected);
    report.at_most("bf16 last rows, max", distance.max, limit("last_rows_max_abs"));
    report.at_most("bf16 last rows, rms", distance.rms, limit("last_rows_rms"));

    let recorded = |key: &String| key.starts_with("f32/prefill/") && key.ends_with("/all");
    for key in fixture.keys().iter().filter(|key| recorded(key)) {
        let expected = fixture.tensor(key).expect("a listed key exists");
        let got = Session::new(decoder).all(&ids[..expected.shape[0]]);
        let distance = Distance::between(&got.concat(), &expected.values);
        report.at_most(&format!("{key} in bf16, max"), distance.max, limit("all_rows_max_abs"));
        report.at_most(&format!("{key} in bf16, rms"), distance.rms, limit("all_rows_rms"));
        let agree = got.iter().zip(expected.rows()).filter(|(x, y)| likeliest(x) == likeliest(y)).count();
        let share = agree as f64 / got.len() as f64;
        let least = limit("top1_agree");
        report.holds(&format!("{key} in bf16, top-1"), share >= least, || {
            format!("{share} of the rows, not {least}")
        });
    }
    report
}

/// Every quantization at load, against the same model without: never further than the format
/// explains.
pub fn check_quantized<D: Decoder>(
    fixture: &Fixture,
    plain: &D,
    load: impl Fn(Placement) -> layers::Result<D>,
) -> Report {
    check_quantized_as(&Scheme::ALL, fixture, plain, load)
}

/// As [`check_quantized`], some schemes only.
pub fn check_quantized_as<D: Decoder>(
    schemes: &[Scheme],
    fixture: &Fixture,
    plain: &D,
    load: impl Fn(Placement) -> layers::Result<D>,
) -> Report {
    let mut report = Report::default();
    let ids = fixture.ids("/text/ids");
    let expected = Session::new(plain).all(&ids).concat();
    let spread = Distance::between(&expected, &vec![0.0; expected.len()]).rms;
    let sensitivity = fixture.number("/measured/bf16 vs f32 logits/rms");
    for &scheme in schemes {
        let placement = Placement { quantize: Some(scheme), ..Placement::cpu() };
        let decoder = load(placement).expect("a quantized model loads");
        let got = Session::new(&decoder).all(&ids).concat();
        // The reference's own loss in bf16 says how much this checkpoint makes of small errors (a router that changes its mind
        // makes much of them); a format's steps are so many times those of bf16.
        let steps = match scheme {
            Scheme::Q8_0 | Scheme::Q6K => 8.0,
            Scheme::Q5K => 20.0,
            Scheme::Q4K => 24.0,
            Scheme::Q4_0 => 32.0,
        };
        let distance = Distance::between(&got, &expected);
        let limit = (steps * sensitivity).min(spread);
        report.at_most(&format!("{} against plain, rms", scheme.name()), distance.rms, limit);
        report.holds(&format!("{} quantizes something", scheme.name()), distance.rms > 0.0, || {
            "same bits".into()
        });
    }
    report
}

/// A tensor's values as f32.
pub fn values(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.to_dtype(DType::F32).and_then(|t| t.flatten_all()).and_then(|t| t.to_vec1());
    flat.expect("a tensor on the CPU")
}

/// Index of the largest logit.
pub fn likeliest(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(index, _)| index as u32)
}

fn sums_to_one(rows: &[Vec<f32>]) -> bool {
    rows.iter().all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-3 && row.iter().all(|x| *x >= 0.0))
}

fn softmax_rows(values: &[f32], width: usize) -> Vec<f32> {
    let softmax = |row: &[f32]| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exps: Vec<f32> = row.iter().map(|x| (x - max).exp()).collect();
        let sum: f32 = exps.iter().sum();
        exps.into_iter().map(move |x| x / sum).collect::<Vec<_>>()
    };
    values.chunks(width).flat_map(softmax).collect()
}

fn number(text: &str) -> usize {
    text.parse().unwrap_or_else(|_| panic!("{text} is not a number in the name of a recorded tensor"))
}
