//! Names of GGUF tensors in the words of HuggingFace.

/// Translates one name. Unknown names below a block keep their last part, so that they are still reported
/// when no layer asks for them.
pub(super) fn from_gguf(name: &str) -> String {
    match name {
        "token_embd.weight" => return "model.embed_tokens.weight".into(),
        "output_norm.weight" => return "model.norm.weight".into(),
        "output.weight" => return "lm_head.weight".into(),
        _ => {}
    }
    let Some((block, rest)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
        return name.into();
    };
    // Two tensors of a Gated DeltaNet have no module of their own in a checkpoint.
    match rest {
        "ssm_a" => return format!("model.layers.{block}.linear_attn.decay_rate"),
        "ssm_dt.bias" => return format!("model.layers.{block}.linear_attn.dt_bias"),
        _ => {}
    }
    let (part, leaf) = rest.rsplit_once('.').unwrap_or((rest, ""));
    let translated = match part {
        "attn_qkv" => "linear_attn.in_proj_qkv",
        "attn_gate" => "linear_attn.in_proj_z",
        "ssm_alpha" => "linear_attn.in_proj_a",
        "ssm_beta" => "linear_attn.in_proj_b",
        "ssm_conv1d" => "linear_attn.conv1d",
        "ssm_norm" => "linear_attn.norm",
        "ssm_out" => "linear_attn.out_proj",
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "post_attention_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        "ffn_gate_inp" => "mlp.gate",
        "ffn_gate_exps" => "mlp.experts.gate_proj",
        "ffn_up_exps" => "mlp.experts.up_proj",
        "ffn_down_exps" => "mlp.experts.down_proj",
        "ffn_gate_inp_shexp" => "mlp.shared_expert_gate",
        "ffn_gate_shexp" => "mlp.shared_expert.gate_proj",
        "ffn_up_shexp" => "mlp.shared_expert.up_proj",
        "ffn_down_shexp" => "mlp.shared_expert.down_proj",
        other => other,
    };
    if leaf.is_empty() {
        format!("model.layers.{block}.{translated}")
    } else {
        format!("model.layers.{block}.{translated}.{leaf}")
    }
}

#[cfg(test)]
mod tests {
    use super::from_gguf;

    #[test]
    fn names_become_those_of_the_checkpoint() {
        let cases = [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("blk.12.attn_q.weight", "model.layers.12.self_attn.q_proj.weight"),
            ("blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj.bias"),
            ("blk.3.ffn_down_exps.weight", "model.layers.3.mlp.experts.down_proj.weight"),
            ("blk.3.ssm_a", "model.layers.3.linear_attn.decay_rate"),
            ("blk.3.ssm_dt.bias", "model.layers.3.linear_attn.dt_bias"),
            ("blk.3.ssm_beta.weight", "model.layers.3.linear_attn.in_proj_b.weight"),
            ("rope_freqs.weight", "rope_freqs.weight"),
        ];
        for (gguf, expected) in cases {
            assert_eq!(from_gguf(gguf), expected);
        }
    }
}
