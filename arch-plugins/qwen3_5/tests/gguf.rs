//! The text cores of the same checkpoints as GGUF files, converted as llama.cpp's converter does it, held to the same
//! goldens.
//!
//! The converter adds the one to every norm but the gated one, stores `−exp(A_log)`, drops the convolution's dimension of
//! one, and lets the value heads cycle through the key heads.

mod support;

use golden::{Fixture, GgufValue, Report, check_greedy, check_logits, fixtures, write_gguf};
use layers::placement::Placement;
use layers::weights::{Container, Weights};
use layers::{DType, Device, Tensor};
use serde_json::Value;
use support::{MODEL_TYPES, Subject};

#[test]
fn golden_gguf() {
    for fixture in fixtures(&MODEL_TYPES) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = write(&fixture, folder.path());
        let weights = Weights::open(&[path], Container::Gguf, Placement::cpu()).expect("the GGUF opens");
        let subject = Subject::of(&fixture, "", &weights, |_| {}).expect("the GGUF loads");
        let mut report: Report = check_logits(&fixture, &subject.model);
        report.extend(check_greedy(&fixture, &subject.model));
        report.assert_clean(&fixture.name());
    }
}

#[test]
fn a_gguf_on_several_ranks_is_refused_with_the_way_out() {
    for fixture in fixtures(&MODEL_TYPES) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = write(&fixture, folder.path());
        let comm = layers::comm::local(&golden::group_id(), 0, 2).expect("a rank");
        let placement = Placement { comm, ..Placement::cpu() };
        let weights = Weights::open(&[path], Container::Gguf, placement).expect("the GGUF opens");
        let error = Subject::of(&fixture, "", &weights, |_| {}).err().expect("refused");
        assert!(error.to_string().contains("safetensors"), "{error}");
    }
}

/// The parts of the configuration the converter needs.
struct Shape {
    core: Value,
    mixture: bool,
    key_heads: usize,
    value_heads: usize,
    key_dim: usize,
    value_dim: usize,
}

impl Shape {
    fn of(fixture: &Fixture) -> Self {
        let config: Value = serde_json::from_str(&fixture.config).expect("JSON");
        let core =
            if config["text_config"].is_null() { config.clone() } else { config["text_config"].clone() };
        let size = |key: &str| core[key].as_u64().unwrap_or_else(|| panic!("{key}")) as usize;
        Self {
            mixture: config["model_type"].as_str().is_some_and(|name| name.contains("moe")),
            key_heads: size("linear_num_key_heads"),
            value_heads: size("linear_num_value_heads"),
            key_dim: size("linear_key_head_dim"),
            value_dim: size("linear_value_head_dim"),
            core,
        }
    }

    /// Grouped value heads of `width` values each along `axis`, from `start` on, in the cycling order.
    fn cycled(&self, tensor: &Tensor, axis: usize, start: usize, width: usize) -> Tensor {
        let ratio = self.value_heads / self.key_heads;
        let head = |place: usize| place % self.key_heads * ratio + place / self.key_heads;
        let size = tensor.dim(axis).expect("an axis");
        let order: Vec<u32> = (0..size)
            .map(|i| {
                let from = i.checked_sub(start).map_or(i, |i| start + head(i / width) * width + i % width);
                from as u32
            })
            .collect();
        let order = Tensor::new(order, &Device::Cpu).expect("an index");
        tensor.index_select(&order, axis).expect("a reordered tensor")
    }

    fn converted(&self, part: &str, tensor: Tensor) -> Tensor {
        let (keys, width) = (2 * self.key_heads * self.key_dim, self.value_dim);
        match part {
            "linear_attn.in_proj_qkv.weight" => self.cycled(&tensor, 0, keys, width),
            "linear_attn.conv1d.weight" => self.cycled(&tensor.squeeze(1).expect("squeezes"), 0, keys, width),
            "linear_attn.in_proj_z.weight" => self.cycled(&tensor, 0, 0, width),
            "linear_attn.in_proj_b.weight" | "linear_attn.in_proj_a.weight" | "linear_attn.dt_bias" => {
                self.cycled(&tensor, 0, 0, 1)
            }
            "linear_attn.A_log" => self.cycled(&tensor.exp().and_then(|t| t.neg()).expect("a rate"), 0, 0, 1),
            "linear_attn.out_proj.weight" => self.cycled(&tensor, 1, 0, width),
            "mlp.shared_expert_gate.weight" => tensor.squeeze(0).expect("squeezes"),
            _ if part.ends_with("norm.weight") && part != "linear_attn.norm.weight" => {
                (tensor + 1.0).expect("adds")
            }
            _ => tensor,
        }
    }
}

const PARTS: [(&str, &str); 26] = [
    ("input_layernorm.weight", "attn_norm.weight"),
    ("post_attention_layernorm.weight", "post_attention_norm.weight"),
    ("self_attn.q_proj.weight", "attn_q.weight"),
    ("self_attn.k_proj.weight", "attn_k.weight"),
    ("self_attn.v_proj.weight", "attn_v.weight"),
    ("self_attn.o_proj.weight", "attn_output.weight"),
    ("self_attn.q_norm.weight", "attn_q_norm.weight"),
    ("self_attn.k_norm.weight", "attn_k_norm.weight"),
    ("linear_attn.in_proj_qkv.weight", "attn_qkv.weight"),
    ("linear_attn.in_proj_z.weight", "attn_gate.weight"),
    ("linear_attn.in_proj_b.weight", "ssm_beta.weight"),
    ("linear_attn.in_proj_a.weight", "ssm_alpha.weight"),
    ("linear_attn.conv1d.weight", "ssm_conv1d.weight"),
    ("linear_attn.A_log", "ssm_a"),
    ("linear_attn.dt_bias", "ssm_dt.bias"),
    ("linear_attn.norm.weight", "ssm_norm.weight"),
    ("linear_attn.out_proj.weight", "ssm_out.weight"),
    ("mlp.gate_proj.weight", "ffn_gate.weight"),
    ("mlp.up_proj.weight", "ffn_up.weight"),
    ("mlp.down_proj.weight", "ffn_down.weight"),
    ("mlp.gate.weight", "ffn_gate_inp.weight"),
    ("mlp.shared_expert.gate_proj.weight", "ffn_gate_shexp.weight"),
    ("mlp.shared_expert.up_proj.weight", "ffn_up_shexp.weight"),
    ("mlp.shared_expert.down_proj.weight", "ffn_down_shexp.weight"),
    ("mlp.shared_expert_gate.weight", "ffn_gate_inp_shexp.weight"),
    ("mlp.experts.down_proj", "ffn_down_exps.weight"),
];

fn write(fixture: &Fixture, folder: &std::path::Path) -> std::path::PathBuf {
    let shape = Shape::of(fixture);
    let weights = fixture.weights();
    let find = |name: &str| {
        let core = name.strip_prefix("model.").map(|rest| format!("model.language_model.{rest}"));
        let found = weights.iter().find(|(n, _)| n == name || Some(n) == core.as_ref());
        found.map(|(_, tensor)| tensor.to_dtype(DType::F32).expect("f32"))
    };
    let norm = find("model.norm.weight").expect("a norm");
    let mut tensors = vec![
        ("token_embd.weight".to_string(), find("model.embed_tokens.weight").expect("an embedding")),
        ("output_norm.weight".to_string(), (norm + 1.0).expect("adds")),
    ];
    tensors.extend(find("lm_head.weight").map(|head| ("output.weight".to_string(), head)));
    let layers = shape.core["num_hidden_layers"].as_u64().expect("layers");
    for i in 0..layers {
        for (theirs, ours) in PARTS {
            if let Some(tensor) = find(&format!("model.layers.{i}.{theirs}")) {
                tensors.push((format!("blk.{i}.{ours}"), shape.converted(theirs, tensor)));
            }
        }
        if let Some(fused) = find(&format!("model.layers.{i}.mlp.experts.gate_up_proj")) {
            let halves = fused.chunk(2, 1).expect("halves");
            tensors.push((format!("blk.{i}.ffn_gate_exps.weight"), halves[0].contiguous().expect("a half")));
            tensors.push((format!("blk.{i}.ffn_up_exps.weight"), halves[1].contiguous().expect("a half")));
        }
    }
    // The draft head is one more block, which is not to be loaded.
    tensors.push((
        format!("blk.{layers}.nextn.eh_proj.weight"),
        Tensor::zeros((4, 8), DType::F32, &Device::Cpu).expect("zeros"),
    ));
    let metadata = metadata(&shape);
    let metadata: Vec<(&str, GgufValue)> =
        metadata.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    let path = folder.join("model.gguf");
    write_gguf(&path, &metadata, &tensors);
    path
}

fn metadata(shape: &Shape) -> Vec<(String, GgufValue)> {
    let core = &shape.core;
    let architecture = if shape.mixture { "qwen35moe" } else { "qwen35" };
    let number = |key: &str| core[key].as_u64().unwrap_or_else(|| panic!("{key}")) as u32;
    let rope = &core["rope_parameters"];
    let rotary = f64::from(number("head_dim")) * rope["partial_rotary_factor"].as_f64().expect("a factor");
    let sections =
        rope["mrope_section"].as_array().expect("sections").iter().map(|n| n.as_u64().expect("a number"));
    let sections = sections.chain([0]).map(|n| GgufValue::I32(n as i32)).collect();
    let sizes = [
        ("block_count", number("num_hidden_layers") + 1),
        ("nextn_predict_layers", 1),
        ("embedding_length", number("hidden_size")),
        ("context_length", number("max_position_embeddings")),
        ("attention.head_count", number("num_attention_heads")),
        ("attention.head_count_kv", number("num_key_value_heads")),
        ("attention.key_length", number("head_dim")),
        ("attention.value_length", number("head_dim")),
        ("rope.dimension_count", rotary as u32),
        ("full_attention_interval", number("full_attention_interval")),
        ("ssm.conv_kernel", number("linear_conv_kernel_dim")),
        ("ssm.state_size", shape.key_dim as u32),
        ("ssm.group_count", shape.key_heads as u32),
        ("ssm.time_step_rank", shape.value_heads as u32),
        ("ssm.inner_size", (shape.value_heads * shape.value_dim) as u32),
    ];
    let mut metadata: Vec<(String, GgufValue)> =
        sizes.iter().map(|(key, value)| (format!("{architecture}.{key}"), GgufValue::U32(*value))).collect();
    let mut add = |key: &str, value| metadata.push((format!("{architecture}.{key}"), value));
    add("rope.dimension_sections", GgufValue::Array(sections));
    add("rope.freq_base", GgufValue::F32(rope["rope_theta"].as_f64().expect("a base") as f32));
    add(
        "attention.layer_norm_rms_epsilon",
        GgufValue::F32(core["rms_norm_eps"].as_f64().expect("an epsilon") as f32),
    );
    if shape.mixture {
        add("expert_count", GgufValue::U32(number("num_experts")));
        add("expert_used_count", GgufValue::U32(number("num_experts_per_tok")));
        add("expert_feed_forward_length", GgufValue::U32(number("moe_intermediate_size")));
        add("expert_shared_feed_forward_length", GgufValue::U32(number("shared_expert_intermediate_size")));
    } else {
        add("feed_forward_length", GgufValue::U32(number("intermediate_size")));
    }
    metadata.push(("general.architecture".into(), GgufValue::String(architecture.into())));
    metadata
}
