//! Mistakes that Qwen3 invites, made here on purpose: a golden must fail for each.

mod support;

use arch_qwen3::checkpoint::Checkpoint;
use golden::{Fixture, Report, check_logits, check_stages, fixtures};
use layers::Tensor;
use layers::placement::Placement;
use layers::weights::Weights;
use serde_json::Value;
use support::MODEL_TYPES;

type Named = (String, Tensor);

/// Misreads what a checkpoint says, or one of its tensors; `false` when there is nothing to misread.
type Says = fn(&mut Checkpoint) -> bool;
type Reads = fn(Named, &Value) -> Named;

fn mistakes() -> Vec<(&'static str, Says, Reads)> {
    let nothing: Says = |_| true;
    let as_it_is: Reads = |tensor, _| tensor;
    vec![
        ("norms of 1 + w", nothing, |(name, tensor), _| {
            let tensor =
                if name.ends_with("norm.weight") { (f32_of(&tensor) + 1.0).expect("adds") } else { tensor };
            (name, tensor)
        }),
        ("head norms without their weight", nothing, |(name, tensor), _| {
            let hit = name.ends_with("q_norm.weight") || name.ends_with("k_norm.weight");
            (name, if hit { f32_of(&tensor).ones_like().expect("ones") } else { tensor })
        }),
        ("rotary over adjacent pairs", nothing, adjacent_pairs),
        (
            "the default base",
            |c| {
                c.config.rotary.theta = 10_000.0;
                true
            },
            as_it_is,
        ),
        (
            "half of the head rotated",
            |c| {
                c.config.rotary.rotary_dim /= 2;
                true
            },
            as_it_is,
        ),
        (
            "a wider epsilon",
            |c| {
                c.config.rms_norm_eps = 1e-2;
                true
            },
            as_it_is,
        ),
        (
            "a sliding window nobody asked for",
            |c| {
                c.config.window = Some((16, vec![true; c.config.layers]));
                true
            },
            as_it_is,
        ),
        ("up before gate", nothing, |(name, tensor), _| {
            let name = if name.contains("gate_proj") {
                name.replace("gate_proj", "up_proj")
            } else {
                name.replace("up_proj", "gate_proj")
            };
            (name, tensor)
        }),
        (
            "the other rule of renormalising",
            |c| {
                let Some(mixture) = &mut c.config.mixture else { return false };
                mixture.renormalise = !mixture.renormalise;
                true
            },
            as_it_is,
        ),
        (
            "one expert fewer",
            |c| {
                let Some(mixture) = &mut c.config.mixture else { return false };
                mixture.experts_per_token -= 1;
                mixture.experts_per_token > 0
            },
            as_it_is,
        ),
    ]
}

#[test]
fn every_mistake_fails_a_golden() {
    for fixture in fixtures(&MODEL_TYPES) {
        for (name, says, reads) in mistakes() {
            let Some(report) = report(&fixture, says, reads) else { continue };
            assert!(!report.failures.is_empty(), "{name} goes unnoticed on {}\n{report}", fixture.name());
        }
    }
}

fn report(fixture: &Fixture, says: Says, reads: Reads) -> Option<Report> {
    let config: Value = serde_json::from_str(&fixture.config).expect("JSON");
    let weights = fixture.weights().into_iter().map(|tensor| reads(tensor, &config)).collect();
    let weights = Weights::from_tensors(weights, Placement::cpu()).expect("weights");
    let mut checkpoint = Checkpoint::new(&fixture.config, &weights).expect("the configuration is served");
    if !says(&mut checkpoint) {
        return None;
    }
    let decoder = checkpoint.load(&weights).expect("the model loads");
    let mut report = check_logits(fixture, &decoder);
    report.extend(check_stages(fixture, &decoder));
    Some(report)
}

fn f32_of(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(layers::DType::F32).expect("f32")
}

/// Rotating adjacent pairs is rotating halves after the dimensions of a head changed places.
fn adjacent_pairs((name, tensor): Named, config: &Value) -> Named {
    let hd = config["head_dim"].as_u64().expect("a head_dim") as usize;
    let rotated = ["q_proj.weight", "k_proj.weight", "q_norm.weight", "k_norm.weight"];
    if !rotated.iter().any(|end| name.ends_with(end)) {
        return (name, tensor);
    }
    let place = |d: usize| 2 * (d % (hd / 2)) + d / (hd / 2);
    let rows = 0..tensor.dim(0).expect("rows");
    let order: Vec<u32> = rows.map(|row| (row - row % hd + place(row % hd)) as u32).collect();
    let order = Tensor::new(order, &layers::Device::Cpu).expect("an index");
    (name, f32_of(&tensor).index_select(&order, 0).expect("rows"))
}
