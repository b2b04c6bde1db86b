//! Every mistake other implementations are known to have made, made here on purpose: a golden must fail for each.
//!
//! Most mistakes are a misreading of the checkpoint, so the checkpoint is misread: its weights or what it says are changed
//! before loading. The rest are arithmetic and are switched on inside the layers. One test, because a switch holds
//! for the whole process.

mod support;

use arch_qwen3_5::checkpoint::Checkpoint;
use arch_qwen3_5::config::Gelu;
use golden::{Fixture, Report, check_logits, check_stages, fixtures};
use layers::Tensor;
use layers::gated_delta_net::{Form, KeyHeads};
use layers::mistake::{self, Mistake};
use layers::norm::Scale;
use layers::placement::Placement;
use layers::rotary::Scaling;
use layers::weights::Weights;
use serde_json::Value;
use support::{MODEL_TYPES, Subject, check_images, check_prompts};

type Named = (String, Tensor);

/// Where a mistake is made.
enum Way {
    /// In the layers.
    Switch(Mistake),
    /// In what the checkpoint says.
    Says(fn(&mut Checkpoint)),
    /// In its weights; `&Value` is its configuration.
    Reads(fn(Named, &Value) -> Named),
}
use Way::{Reads, Says, Switch};

/// Checkpoints on which a mistake shows.
#[derive(Clone, Copy, PartialEq)]
enum On {
    All,
    Vision,
    Mixture,
}
use On::{All, Mixture, Vision};

fn mistakes() -> Vec<(&'static str, On, Way)> {
    vec![
        ("position table read sequentially", Vision, Switch(Mistake::SequentialPositions)),
        ("half-pixel instead of aligned corners", Vision, Switch(Mistake::HalfPixelPositions)),
        ("positions in raster order", Vision, Switch(Mistake::RasterPositions)),
        ("no vision rotary", Vision, Switch(Mistake::NoVisionRotary)),
        ("plain norm instead of 1 + w", All, Says(|c| c.conventions.norm = Scale::Plain)),
        (
            "plain norm in q_norm and k_norm",
            All,
            Reads(|t, _| less_one(t, &["q_norm.weight", "k_norm.weight"])),
        ),
        ("1 + w in linear_attn.norm", All, Reads(|t, _| more_one(t, "linear_attn.norm.weight"))),
        ("query and gate in two blocks", All, Reads(|t, c| q_rows(t, c, two_blocks))),
        ("gate before query", All, Reads(|t, c| q_rows(t, c, gate_first))),
        ("no gate", All, Reads(no_gate)),
        ("silu gate", All, Switch(Mistake::SiluGate)),
        (
            "rotary over all dims",
            All,
            Says(|c| {
                let attention = &mut c.config.text.attention;
                attention.rotary.rotary_dim = attention.head_dim;
            }),
        ),
        ("rotary over adjacent pairs", All, Reads(adjacent_pairs)),
        ("b and a swapped", All, Reads(|t, _| swapped(t, "in_proj_b", "in_proj_a"))),
        ("key heads tiled", All, Says(|c| c.conventions.value_heads = KeyHeads::Tiled)),
        ("no unit length", All, Switch(Mistake::NoUnitLength)),
        ("no 1/sqrt(dk)", All, Switch(Mistake::NoQueryScale)),
        ("gate before norm", All, Switch(Mistake::GateBeforeNorm)),
        ("norm over all heads", All, Switch(Mistake::NormOverAllHeads)),
        ("convolution reversed", All, Reads(reversed_taps)),
        ("convolution without SiLU", All, Switch(Mistake::NoConvSilu)),
        ("convolution state forgotten at decode", All, Switch(Mistake::ForgottenConv)),
        ("M-RoPE sections contiguous", Vision, Switch(Mistake::ContiguousAxes)),
        ("M-RoPE time only", Vision, Says(|c| c.config.text.attention.mrope_section = [usize::MAX, 0, 0])),
        ("positions advance by token count", Vision, Switch(Mistake::AdvanceByTokens)),
        ("plain 1-D positions", Vision, Switch(Mistake::PlainPositions)),
        ("tanh GELU in the merger", Vision, Switch(Mistake::MergerTanh)),
        (
            "erf GELU in the blocks",
            Vision,
            Says(|c| {
                if let Some(vision) = &mut c.config.vision {
                    vision.activation = Gelu::Erf;
                }
            }),
        ),
        ("top-k not renormalised", Mixture, Switch(Mistake::NotRenormalised)),
        ("up before gate", Mixture, Reads(up_first)),
        ("shared expert ungated", Mixture, Switch(Mistake::SharedUngated)),
        (
            "positions scaled",
            All,
            Says(|c| c.config.text.attention.rotary.scaling = Scaling::Linear { factor: 2.0 }),
        ),
    ]
}

#[test]
fn every_known_mistake_fails_a_golden() {
    let fixtures = fixtures(&MODEL_TYPES);
    for fixture in &fixtures {
        let right = report(fixture, &load(fixture, &Says(|_| {})).expect("loads"));
        assert!(right.failures.is_empty(), "{} without a mistake\n{right}", fixture.name());
    }
    for (name, on, way) in mistakes() {
        let affected: Vec<&Fixture> = fixtures.iter().filter(|fixture| shows_on(fixture, on)).collect();
        let mut noticed = affected.is_empty();
        for fixture in affected {
            if let Switch(mistake) = way {
                mistake::make(Some(mistake));
            }
            let outcome = load(fixture, &way).map(|subject| report(fixture, &subject));
            mistake::make(None);
            let report = outcome.unwrap_or_else(|e| panic!("{name} on {}: {e}", fixture.name()));
            noticed = !report.failures.is_empty();
            if noticed {
                break;
            }
        }
        assert!(noticed, "{name} goes unnoticed");
    }
    factored_decay_overflows(&fixtures);
    a_wrong_prefix_does_not_load(&fixtures);
}

/// The mistake concerns the chunked form alone.
fn factored_decay_overflows(fixtures: &[Fixture]) {
    for fixture in fixtures {
        let subject = Subject::chunked(fixture);
        mistake::make(Some(Mistake::FactoredDecay));
        let report = check_logits(fixture, &subject.model);
        mistake::make(None);
        assert!(!report.failures.is_empty(), "factored decay goes unnoticed on {}\n{report}", fixture.name());
    }
}

/// A text core looked for below `model.` finds nothing and says what it misses.
fn a_wrong_prefix_does_not_load(fixtures: &[Fixture]) {
    for fixture in fixtures {
        let renamed = fixture.weights().into_iter().map(|(name, tensor)| {
            let wrong = name.replace("model.language_model.", "model.language_model.model.");
            (wrong, tensor)
        });
        let weights = Weights::from_tensors(renamed.collect(), Placement::cpu()).expect("weights");
        let error = Subject::of(fixture, &fixture.config, &weights, |_| {}).err().expect("must not load");
        assert!(error.to_string().contains("is missing"), "{error}");
    }
}

fn shows_on(fixture: &Fixture, on: On) -> bool {
    let config: Value = serde_json::from_str(&fixture.config).expect("JSON");
    match on {
        All => true,
        Vision => !config["vision_config"].is_null() && config["language_model_only"] != true,
        Mixture => config["model_type"].as_str().is_some_and(|name| name.contains("moe")),
    }
}

fn load(fixture: &Fixture, way: &Way) -> layers::Result<Subject> {
    let config: Value = serde_json::from_str(&fixture.config).expect("JSON");
    let core = if config["text_config"].is_null() { config.clone() } else { config["text_config"].clone() };
    let read = |tensor: Named| match way {
        Reads(misread) => misread(tensor, &core),
        _ => tensor,
    };
    let weights = fixture.weights().into_iter().map(read).collect();
    let weights = Weights::from_tensors(weights, Placement::cpu())?;
    let change = |checkpoint: &mut Checkpoint| {
        checkpoint.config.text.linear.prefill = Form::Recurrent;
        if let Says(misunderstand) = way {
            misunderstand(checkpoint);
        }
    };
    Subject::of(fixture, &fixture.config, &weights, change)
}

fn report(fixture: &Fixture, subject: &Subject) -> Report {
    let mut report = check_logits(fixture, &subject.model);
    report.extend(check_stages(fixture, &subject.model));
    report.extend(check_images(fixture, subject));
    report.extend(check_prompts(fixture, subject));
    report
}

fn size(config: &Value, key: &str) -> usize {
    config[key].as_u64().unwrap_or_else(|| panic!("the configuration has {key}")) as usize
}

fn less_one((name, tensor): Named, ends: &[&str]) -> Named {
    let hit = name.contains("self_attn") && ends.iter().any(|end| name.ends_with(end));
    let tensor = if hit { (to_f32(&tensor) - 1.0).expect("subtracts") } else { tensor };
    (name, tensor)
}

fn more_one((name, tensor): Named, end: &str) -> Named {
    let tensor = if name.ends_with(end) { (to_f32(&tensor) + 1.0).expect("adds") } else { tensor };
    (name, tensor)
}

fn swapped((name, tensor): Named, a: &str, b: &str) -> Named {
    let name = if name.contains(a) { name.replace(a, b) } else { name.replace(b, a) };
    (name, tensor)
}

fn to_f32(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(layers::DType::F32).expect("f32")
}

/// The tensor's rows in another order: row `i` of the result is row `order(i)` of the tensor.
fn reordered(tensor: &Tensor, order: impl Fn(usize) -> usize) -> Tensor {
    let rows: Vec<u32> = (0..tensor.dim(0).expect("rows")).map(|row| order(row) as u32).collect();
    let index = Tensor::new(rows, &layers::Device::Cpu).expect("an index");
    to_f32(tensor).index_select(&index, 0).expect("rows")
}

fn q_rows((name, tensor): Named, config: &Value, order: fn(usize, usize, usize) -> usize) -> Named {
    if !name.contains("self_attn.q_proj.weight") {
        return (name, tensor);
    }
    let (heads, hd) = (size(config, "num_attention_heads"), size(config, "head_dim"));
    let tensor = reordered(&tensor, |row| order(row, heads, hd));
    (name, tensor)
}

/// Row `row` of a model that believes all queries come first, then all gates.
fn two_blocks(row: usize, heads: usize, hd: usize) -> usize {
    let (head, within) = (row / (2 * hd), row % (2 * hd));
    if within < hd { head * hd + within } else { heads * hd + head * hd + within - hd }
}

fn gate_first(row: usize, _heads: usize, hd: usize) -> usize {
    let (head, within) = (row / (2 * hd), row % (2 * hd));
    head * 2 * hd + (within + hd) % (2 * hd)
}

/// A gate of zero is one half everywhere; an output projection of twice the size makes it one.
fn no_gate((name, tensor): Named, config: &Value) -> Named {
    let hd = size(config, "head_dim");
    if name.contains("self_attn.o_proj.weight") {
        return (name, (to_f32(&tensor) * 2.0).expect("doubles"));
    }
    if !name.contains("self_attn.q_proj.weight") {
        return (name, tensor);
    }
    let (rows, columns) = tensor.dims2().expect("a matrix");
    let mask: Vec<f32> =
        (0..rows * columns).map(|i| f32::from(u8::from(i / columns % (2 * hd) < hd))).collect();
    let mask = Tensor::from_vec(mask, (rows, columns), &layers::Device::Cpu).expect("a mask");
    (name, (to_f32(&tensor) * mask).expect("masks"))
}

/// Rotating adjacent pairs is rotating halves after the dimensions of a head changed places; queries, keys and their
/// norms change alike.
fn adjacent_pairs((name, tensor): Named, config: &Value) -> Named {
    let hd = size(config, "head_dim");
    let factor = config["rope_parameters"]["partial_rotary_factor"].as_f64().expect("a factor");
    let half = (hd as f64 * factor) as usize / 2;
    let place = move |d: usize| if d >= 2 * half { d } else { 2 * (d % half) + d / half };
    let tensor = if name.contains("self_attn.q_proj.weight") {
        let within =
            move |row: usize| if row % (2 * hd) < hd { row - row % hd + place(row % hd) } else { row };
        reordered(&tensor, within)
    } else if name.contains("self_attn.k_proj.weight") {
        reordered(&tensor, move |row| row - row % hd + place(row % hd))
    } else if name.contains("self_attn.q_norm.weight") || name.contains("self_attn.k_norm.weight") {
        reordered(&tensor, place)
    } else {
        tensor
    };
    (name, tensor)
}

fn reversed_taps((name, tensor): Named, _: &Value) -> Named {
    if !name.contains("conv1d.weight") {
        return (name, tensor);
    }
    let taps = tensor.dim(2).expect("taps") as u32;
    let index = Tensor::new((0..taps).rev().collect::<Vec<u32>>(), &layers::Device::Cpu).expect("an index");
    (name, to_f32(&tensor).index_select(&index, 2).expect("taps"))
}

fn up_first((name, tensor): Named, _: &Value) -> Named {
    if name.contains("experts.") && !name.contains("shared") {
        if name.ends_with("gate_up_proj") {
            let halves = to_f32(&tensor).chunk(2, 1).expect("halves");
            return (name, Tensor::cat(&[&halves[1], &halves[0]], 1).expect("swapped"));
        }
        return swapped((name, tensor), "gate_proj", "up_proj");
    }
    (name, tensor)
}
