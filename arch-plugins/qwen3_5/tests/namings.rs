//! The same checkpoint under every naming it is published in is the same model.

mod support;

use golden::{Fixture, check_logits, fixtures};
use layers::Tensor;
use layers::placement::Placement;
use layers::weights::Weights;
use serde_json::Value;
use support::{MODEL_TYPES, Subject};

type Named = (String, Tensor);

fn check(fixture: &Fixture, config: &Value, weights: Vec<Named>, what: &str) {
    let weights = Weights::from_tensors(weights, Placement::cpu()).expect("weights");
    let subject = Subject::of(fixture, &config.to_string(), &weights, |_| {});
    let subject = subject.unwrap_or_else(|e| panic!("{} {what}: {e}", fixture.name()));
    check_logits(fixture, &subject.model).assert_clean(&format!("{} {what}", fixture.name()));
}

/// The configuration of the text core alone, as a text checkpoint has it.
fn flat(fixture: &Fixture) -> Value {
    let config: Value = serde_json::from_str(&fixture.config).expect("JSON");
    let Some(core) = config["text_config"].as_object() else { return config };
    let mut flat = core.clone();
    flat.insert("tie_word_embeddings".into(), config["tie_word_embeddings"].clone());
    let text = format!("{}_text", config["model_type"].as_str().expect("a model type"));
    flat.insert("model_type".into(), text.into());
    Value::Object(flat)
}

fn without_eyes(fixture: &Fixture) -> Vec<Named> {
    fixture.weights().into_iter().filter(|(name, _)| !name.starts_with("model.visual.")).collect()
}

#[test]
fn golden_flat_text_checkpoint() {
    for fixture in fixtures(&MODEL_TYPES) {
        check(&fixture, &flat(&fixture), without_eyes(&fixture), "flat");
        let renamed = without_eyes(&fixture)
            .into_iter()
            .map(|(name, tensor)| (name.replace("model.language_model.", "model."), tensor));
        check(&fixture, &flat(&fixture), renamed.collect(), "flat, below model.");
    }
}

#[test]
fn golden_tower_left_out() {
    for fixture in fixtures(&MODEL_TYPES) {
        let mut config: Value = serde_json::from_str(&fixture.config).expect("JSON");
        config["language_model_only"] = true.into();
        check(&fixture, &config, fixture.weights(), "with its tower left out");
    }
}

#[test]
fn golden_one_tensor_per_expert() {
    for fixture in fixtures(&MODEL_TYPES) {
        let config: Value = serde_json::from_str(&fixture.config).expect("JSON");
        let separate = fixture.weights().into_iter().flat_map(separate_experts);
        check(&fixture, &config, separate.collect(), "with a tensor per expert");
    }
}

fn separate_experts((name, tensor): Named) -> Vec<Named> {
    let experts = || tensor.dim(0).expect("a stack");
    let of = |e: usize| tensor.get(e).expect("an expert");
    if let Some(scope) = name.strip_suffix(".gate_up_proj") {
        let halves = |e: usize| of(e).chunk(2, 0).expect("halves");
        let part =
            |e: usize, i: usize, part: &str| (format!("{scope}.{e}.{part}.weight"), halves(e)[i].clone());
        return (0..experts()).flat_map(|e| [part(e, 0, "gate_proj"), part(e, 1, "up_proj")]).collect();
    }
    if let Some(scope) = name.strip_suffix("experts.down_proj") {
        return (0..experts()).map(|e| (format!("{scope}experts.{e}.down_proj.weight"), of(e))).collect();
    }
    vec![(name, tensor)]
}

#[test]
fn a_tensor_without_a_place_is_refused_by_name() {
    for fixture in fixtures(&MODEL_TYPES) {
        let mut weights = fixture.weights();
        weights.push(("model.language_model.layers.0.surprise.weight".into(), weights[0].1.clone()));
        let weights = Weights::from_tensors(weights, Placement::cpu()).expect("weights");
        let error = Subject::of(&fixture, &fixture.config, &weights, |_| {}).err().expect("refused");
        assert!(error.to_string().contains("surprise"), "{error}");
    }
}
