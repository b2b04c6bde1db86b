//! Qwen3 against the reference, stage by stage, on every checkpoint of the family in `GOLDEN_DIR`.

use arch_qwen3::{config::Config, model};
use golden::{Fixture, Report, check_bf16, check_greedy, check_logits, check_stages, fixtures};
use layers::DType;
use layers::decoder::PreNormDecoder;
use layers::placement::Placement;
use layers::weights::{Container, Weights};

const MODEL_TYPES: [&str; 2] = ["qwen3", "qwen3_moe"];

fn load(fixture: &Fixture, dtype: DType) -> PreNormDecoder {
    let config = Config::from_json(&fixture.config).expect("the configuration is served");
    let placement = Placement { dtype, ..Placement::cpu() };
    let weights = Weights::open(&fixture.weight_files(), Container::Safetensors, placement).expect("weights open");
    let decoder = model::load(&weights, &config).expect("the model loads");
    weights.finish(&["lm_head."]).expect("every tensor has a place");
    decoder
}

fn each(dtype: DType, check: impl Fn(&Fixture, &PreNormDecoder) -> Report) {
    for fixture in fixtures(&MODEL_TYPES) {
        check(&fixture, &load(&fixture, dtype)).assert_clean(&fixture.name());
    }
}

#[test]
fn golden_logits() {
    each(DType::F32, check_logits);
}

#[test]
fn golden_stages() {
    each(DType::F32, check_stages);
}

#[test]
fn golden_greedy() {
    each(DType::F32, check_greedy);
}

#[test]
fn golden_bf16() {
    each(DType::BF16, check_bf16);
}
