//! Loading a checkpoint of the family.
#![allow(dead_code, reason = "each test binary uses a part of this")]

use arch_llama::checkpoint::Checkpoint;
use golden::{Fixture, Report, fixtures};
use layers::DType;
use layers::decoder::PreNormDecoder;
use layers::placement::Placement;
use layers::weights::{Container, Weights};

pub const MODEL_TYPES: [&str; 2] = ["llama", "mistral"];

pub fn placed(fixture: &Fixture, placement: Placement) -> layers::Result<PreNormDecoder> {
    let weights = Weights::open(&fixture.weight_files(), Container::Safetensors, placement)?;
    of(&fixture.config, &weights)
}

/// From any weights and configuration.
pub fn of(config: &str, weights: &Weights) -> layers::Result<PreNormDecoder> {
    Checkpoint::new(config, weights)?.load(weights)
}

pub fn load(fixture: &Fixture, dtype: DType) -> PreNormDecoder {
    placed(fixture, golden::placement(dtype)).expect("the model loads")
}

/// Runs a check on every checkpoint of the family.
pub fn each(dtype: DType, check: impl Fn(&Fixture, &PreNormDecoder) -> Report) {
    for fixture in fixtures(&MODEL_TYPES) {
        check(&fixture, &load(&fixture, dtype)).assert_clean(&fixture.name());
    }
}
