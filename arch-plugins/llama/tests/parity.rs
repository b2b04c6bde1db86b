//! LLaMA against itself: pieces, company, forks, ranks and quantization do not change its answers.

mod support;

use candle_core::{Device, Tensor};
use golden::{
    Distance, Fixture, Session, check_batch, check_fork, check_pieces, check_quantized, check_ranks, fixtures,
};
use layers::decoder::PreNormDecoder;
use layers::placement::Placement;
use layers::weights::{Container, Weights};
use layers::{DType, Error};
use serde_json::Value;
use support::{MODEL_TYPES, each, load, of, placed};

#[test]
fn a_prompt_in_pieces_is_the_prompt() {
    each(DType::F32, |fixture, decoder| check_pieces(decoder, &fixture.ids("/text/ids")));
}

#[test]
fn a_sequence_does_not_notice_its_company() {
    each(DType::F32, |fixture, decoder| check_batch(decoder, &fixture.ids("/text/ids")));
}

#[test]
fn a_fork_goes_on_as_its_original() {
    each(DType::F32, |fixture, decoder| check_fork(decoder, &fixture.ids("/text/ids")));
}

#[test]
fn several_ranks_answer_as_one() {
    each(DType::F32, |fixture, _| {
        let ids = fixture.ids("/text/ids");
        let limit = fixture.limit("f32_logits_abs");
        check_ranks(&[2, 3, 4], |placement| placed(fixture, placement), &ids[..70], limit)
    });
}

#[test]
fn golden_quantized() {
    each(DType::F32, |fixture, plain| {
        check_quantized(fixture, plain, |placement| placed(fixture, placement))
    });
}

/// The fixture's weights with a bias on every projection, and the configuration that says so.
fn biased(fixture: &Fixture) -> (Vec<(String, Tensor)>, String) {
    let mut weights = fixture.weights();
    let projections: Vec<(String, usize)> = weights
        .iter()
        .filter_map(|(name, tensor)| {
            Some((name.strip_suffix("_proj.weight")?.to_string(), tensor.dim(0).expect("a matrix")))
        })
        .collect();
    for (name, outputs) in projections {
        let values = (0..outputs).map(|i| 0.3 * (i as f32 + name.len() as f32).sin()).collect();
        let bias = Tensor::from_vec(values, outputs, &Device::Cpu).expect("a vector");
        weights.push((format!("{name}_proj.bias"), bias));
    }
    let mut config: Value = serde_json::from_str(&fixture.config).expect("config.json is JSON");
    config["attention_bias"] = true.into();
    config["mlp_bias"] = true.into();
    (weights, config.to_string())
}

#[test]
fn biases_are_added_once_whatever_the_ranks() {
    for fixture in fixtures(&MODEL_TYPES) {
        let (weights, config) = biased(&fixture);
        let open = |placement| of(&config, &Weights::from_tensors(weights.clone(), placement)?);
        let ids = &fixture.ids("/text/ids")[..40];
        let mut report = check_ranks(&[2, 4], open, ids, fixture.limit("f32_logits_abs"));
        let with = Session::new(&open(Placement::cpu()).expect("it loads")).last(ids);
        let without = Session::new(&load(&fixture, DType::F32)).last(ids);
        let distance = Distance::between(&with, &without).max;
        report.holds("biases matter", distance > 0.1, || format!("logits move by {distance}"));
        report.assert_clean(&fixture.name());
        // Biases that the configuration does not announce are not ignored.
        let unannounced = Weights::from_tensors(weights, Placement::cpu()).expect("tensors");
        assert!(matches!(of(&fixture.config, &unannounced), Err(Error::Unsupported(_))));
    }
}

#[test]
fn a_window_as_long_as_the_prompt_changes_nothing_and_a_short_one_does() {
    for fixture in fixtures(&MODEL_TYPES) {
        let windowed = |window: usize| {
            let mut config: Value = serde_json::from_str(&fixture.config).expect("config.json is JSON");
            config["sliding_window"] = window.into();
            let weights = Weights::open(&fixture.weight_files(), Container::Safetensors, Placement::cpu())?;
            of(&config.to_string(), &weights)
        };
        let ids = fixture.ids("/text/ids");
        let answer =
            |decoder: layers::Result<PreNormDecoder>| Session::new(&decoder.expect("it loads")).all(&ids);
        let whole = answer(placed(&fixture, Placement::cpu()));
        assert!(answer(windowed(ids.len())) == whole, "bits differ");
        let short = answer(windowed(8));
        assert!(short[..8] == whole[..8] && short[9] != whole[9]);
        check_pieces(&windowed(8).expect("it loads"), &ids).assert_clean(&fixture.name());
    }
}
