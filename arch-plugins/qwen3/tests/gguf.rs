//! The same checkpoints as GGUF files, held to the same goldens.

mod support;

use golden::{Fixture, GgufValue, check_greedy, check_logits, fixtures, write_gguf};
use layers::Tensor;
use layers::decoder::PreNormDecoder;
use layers::placement::Placement;
use layers::weights::{Container, Weights};
use serde_json::Value;
use support::{MODEL_TYPES, of};

#[test]
fn golden_gguf() {
    for fixture in fixtures(&MODEL_TYPES) {
        let folder = tempfile::tempdir().expect("a folder");
        let decoder = converted(&fixture, folder.path());
        let mut report = check_logits(&fixture, &decoder);
        report.extend(check_greedy(&fixture, &decoder));
        report.assert_clean(&fixture.name());
    }
}

fn converted(fixture: &Fixture, folder: &std::path::Path) -> PreNormDecoder {
    let config: Value = serde_json::from_str(&fixture.config).expect("JSON");
    let path = folder.join("model.gguf");
    write_gguf(&path, &metadata(&config), &tensors(fixture, &config));
    let weights = Weights::open(&[path], Container::Gguf, Placement::cpu()).expect("the GGUF opens");
    of("", &weights).expect("the GGUF loads")
}

fn metadata(config: &Value) -> Vec<(&'static str, GgufValue)> {
    let number = |key: &str| GgufValue::U32(config[key].as_u64().unwrap_or(0) as u32);
    let theta = config["rope_theta"].as_f64().or_else(|| config["rope_parameters"]["rope_theta"].as_f64());
    let theta = GgufValue::F32(theta.unwrap_or(10_000.0) as f32);
    let epsilon = GgufValue::F32(config["rms_norm_eps"].as_f64().expect("an epsilon") as f32);
    let mixture = config["model_type"] == "qwen3_moe";
    let architecture = if mixture { "qwen3moe" } else { "qwen3" };
    let experts =
        config["num_experts"].as_u64().or_else(|| config["num_local_experts"].as_u64()).unwrap_or(0);
    let mut metadata = vec![("general.architecture", GgufValue::String(architecture.into()))];
    let mut add = |dense, moe, value| metadata.push((if mixture { moe } else { dense }, value));
    add("qwen3.block_count", "qwen3moe.block_count", number("num_hidden_layers"));
    add("qwen3.embedding_length", "qwen3moe.embedding_length", number("hidden_size"));
    add("qwen3.feed_forward_length", "qwen3moe.feed_forward_length", number("intermediate_size"));
    add("qwen3.context_length", "qwen3moe.context_length", number("max_position_embeddings"));
    add("qwen3.attention.head_count", "qwen3moe.attention.head_count", number("num_attention_heads"));
    add("qwen3.attention.head_count_kv", "qwen3moe.attention.head_count_kv", number("num_key_value_heads"));
    add("qwen3.attention.key_length", "qwen3moe.attention.key_length", number("head_dim"));
    add("qwen3.attention.value_length", "qwen3moe.attention.value_length", number("head_dim"));
    add("qwen3.attention.layer_norm_rms_epsilon", "qwen3moe.attention.layer_norm_rms_epsilon", epsilon);
    add("qwen3.rope.freq_base", "qwen3moe.rope.freq_base", theta);
    add("qwen3.expert_count", "qwen3moe.expert_count", GgufValue::U32(experts as u32));
    add("qwen3.expert_used_count", "qwen3moe.expert_used_count", number("num_experts_per_tok"));
    add(
        "qwen3.expert_feed_forward_length",
        "qwen3moe.expert_feed_forward_length",
        number("moe_intermediate_size"),
    );
    if mixture {
        let renormalise = config["norm_topk_prob"].as_bool().unwrap_or(false);
        metadata.push(("qwen3moe.expert_weights_norm", GgufValue::Bool(renormalise)));
    }
    metadata
}

/// Names as the converter writes them, experts of a layer stacked.
fn tensors(fixture: &Fixture, config: &Value) -> Vec<(String, Tensor)> {
    let parts = [
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("mlp.gate", "ffn_gate_inp"),
    ];
    let weights = fixture.weights();
    let find = |name: &str| weights.iter().find(|(n, _)| n == name).map(|(_, tensor)| tensor.clone());
    let mut out = vec![
        ("token_embd.weight".to_string(), find("model.embed_tokens.weight").expect("an embedding")),
        ("output_norm.weight".to_string(), find("model.norm.weight").expect("a norm")),
    ];
    out.extend(find("lm_head.weight").map(|head| ("output.weight".to_string(), head)));
    for i in 0..config["num_hidden_layers"].as_u64().expect("layers") {
        for (theirs, ours) in parts {
            let tensor = find(&format!("model.layers.{i}.{theirs}.weight"));
            out.extend(tensor.map(|tensor| (format!("blk.{i}.{ours}.weight"), tensor)));
        }
        for part in ["gate", "up", "down"] {
            let experts: Vec<Tensor> = (0..)
                .map_while(|e| find(&format!("model.layers.{i}.mlp.experts.{e}.{part}_proj.weight")))
                .collect();
            if !experts.is_empty() {
                out.push((
                    format!("blk.{i}.ffn_{part}_exps.weight"),
                    Tensor::stack(&experts, 0).expect("a stack"),
                ));
            }
        }
    }
    out
}
