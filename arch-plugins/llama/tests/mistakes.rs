//! Mistakes that LLaMA invites, made here on purpose: a golden must fail for each.

mod support;

use golden::{check_logits, fixtures};
use layers::placement::Placement;
use layers::rotary::Scaling;
use layers::weights::{Container, Weights};
use support::MODEL_TYPES;

#[test]
fn frequencies_without_their_scaling_fail_a_golden() {
    let mut scaled = 0;
    for fixture in fixtures(&MODEL_TYPES) {
        let weights = Weights::open(&fixture.weight_files(), Container::Safetensors, Placement::cpu());
        let weights = weights.expect("the weights open");
        let checkpoint = arch_llama::checkpoint::Checkpoint::new(&fixture.config, &weights);
        let mut checkpoint = checkpoint.expect("the configuration is served");
        if !matches!(checkpoint.config.rotary.scaling, Scaling::Llama3 { .. }) {
            continue;
        }
        scaled += 1;
        checkpoint.config.rotary.scaling = Scaling::None;
        let report = check_logits(&fixture, &checkpoint.load(&weights).expect("the model loads"));
        assert!(!report.failures.is_empty(), "unnoticed on {}\n{report}", fixture.name());
    }
    assert!(scaled > 0 || std::env::var_os("GOLDEN_DIR").is_some(), "no checkpoint scales its frequencies");
}
