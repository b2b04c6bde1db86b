//! Shapes of real models, to make up checkpoints of: speed depends on sizes, not on what was learnt.

use serde_json::{Value, json};

/// A model to make up and measure.
#[derive(Debug)]
pub struct Shape {
    /// What it is shaped like.
    pub name: String,
    /// The configuration, as its `config.json`.
    pub config: Value,
    /// All tensors.
    pub tensors: Vec<Tensor>,
    /// Quantization while loading, or empty.
    pub quantize: &'static str,
    /// Weights that every token of a prompt is multiplied with: all but the embedding table.
    pub multiplied: u64,
    /// Tokens of a prompt that is measured.
    pub prompt: u32,
    /// Tokens that are measured one by one.
    pub decode: u32,
    /// Sequences that are decoded together.
    pub batches: &'static [u32],
}

/// One tensor of a checkpoint.
#[derive(Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// What it is filled with.
    pub fill: Fill,
}

/// What a tensor is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// bf16 around zero, small enough that activations neither vanish nor overflow.
    Random,
    /// bf16 ones.
    Ones,
    /// f32 ones.
    LongOnes,
    /// bf16 zeros, of norms that add one.
    Zeros,
    /// f32 zeros.
    LongZeros,
}

impl Fill {
    /// Bytes of an element.
    pub fn width(self) -> u64 {
        if matches!(self, Self::LongOnes | Self::LongZeros) { 4 } else { 2 }
    }

    /// Name of the element's type in a safetensors header.
    pub fn dtype(self) -> &'static str {
        if self.width() == 4 { "F32" } else { "BF16" }
    }
}

impl Tensor {
    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.fill.width()
    }
}

impl Shape {
    /// Size of the checkpoint in bytes.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(Tensor::bytes).sum()
    }
}

/// What is measured on a GPU.
pub fn real() -> Vec<Shape> {
    vec![
        qwen3(
            "Qwen3-8B",
            &Dense { hidden: 4096, inner: 12288, layers: 36, heads: 32, kv: 8, head: 128, vocab: 151_936 },
        )
        .measured("", 2048, 128, &[1, 8]),
        qwen3_5(
            "Qwen3.5-27B",
            &Dense { hidden: 5120, inner: 17408, layers: 64, heads: 24, kv: 4, head: 256, vocab: 248_320 },
            &Delta { key_heads: 16, value_heads: 48, head: 128 },
        )
        .measured("q8_0", 2048, 128, &[1, 8]),
    ]
}

/// The same two kinds, in sizes that suit any processor.
pub fn tiny() -> Vec<Shape> {
    vec![
        qwen3(
            "tiny-qwen3",
            &Dense { hidden: 256, inner: 512, layers: 2, heads: 8, kv: 4, head: 32, vocab: 512 },
        )
        .measured("", 64, 8, &[1, 4]),
        qwen3_5(
            "tiny-qwen3.5",
            &Dense { hidden: 256, inner: 512, layers: 4, heads: 4, kv: 2, head: 64, vocab: 512 },
            &Delta { key_heads: 4, value_heads: 8, head: 32 },
        )
        .measured("q8_0", 64, 8, &[1, 4]),
    ]
}

/// Sizes of a dense decoder.
struct Dense {
    hidden: u64,
    inner: u64,
    layers: u64,
    heads: u64,
    kv: u64,
    head: u64,
    vocab: u64,
}

/// Sizes of a Gated DeltaNet layer.
struct Delta {
    key_heads: u64,
    value_heads: u64,
    head: u64,
}

/// Tensors on their way into a shape.
struct Draft {
    name: String,
    config: Value,
    tensors: Vec<Tensor>,
}

impl Draft {
    fn add(&mut self, name: String, shape: &[u64], fill: Fill) {
        self.tensors.push(Tensor { name, shape: shape.to_vec(), fill });
    }

    fn measured(self, quantize: &'static str, prompt: u32, decode: u32, batches: &'static [u32]) -> Shape {
        let Self { name, config, tensors } = self;
        let embedding = |tensor: &&Tensor| !tensor.name.ends_with("embed_tokens.weight");
        let multiplied =
            tensors.iter().filter(embedding).map(|tensor| tensor.shape.iter().product::<u64>()).sum();
        Shape { name, config, tensors, quantize, multiplied, prompt, decode, batches }
    }

    /// The parts that every dense decoder has: embeddings, head, norms and feed forward of each layer.
    fn frame(&mut self, prefix: &str, size: &Dense, norm: Fill) {
        self.add(format!("{prefix}embed_tokens.weight"), &[size.vocab, size.hidden], Fill::Random);
        self.add(format!("{prefix}norm.weight"), &[size.hidden], norm);
        self.add("lm_head.weight".into(), &[size.vocab, size.hidden], Fill::Random);
        for layer in 0..size.layers {
            let layer = format!("{prefix}layers.{layer}");
            self.add(format!("{layer}.input_layernorm.weight"), &[size.hidden], norm);
            self.add(format!("{layer}.post_attention_layernorm.weight"), &[size.hidden], norm);
            self.add(format!("{layer}.mlp.gate_proj.weight"), &[size.inner, size.hidden], Fill::Random);
            self.add(format!("{layer}.mlp.up_proj.weight"), &[size.inner, size.hidden], Fill::Random);
            self.add(format!("{layer}.mlp.down_proj.weight"), &[size.hidden, size.inner], Fill::Random);
        }
    }

    /// Attention of one layer; `queries` is 2 where a gate comes with them.
    fn attention(&mut self, layer: &str, size: &Dense, queries: u64, norm: Fill) {
        let rows = size.heads * size.head;
        self.add(format!("{layer}.self_attn.q_proj.weight"), &[rows * queries, size.hidden], Fill::Random);
        self.add(
            format!("{layer}.self_attn.k_proj.weight"),
            &[size.kv * size.head, size.hidden],
            Fill::Random,
        );
        self.add(
            format!("{layer}.self_attn.v_proj.weight"),
            &[size.kv * size.head, size.hidden],
            Fill::Random,
        );
        self.add(format!("{layer}.self_attn.o_proj.weight"), &[size.hidden, rows], Fill::Random);
        self.add(format!("{layer}.self_attn.q_norm.weight"), &[size.head], norm);
        self.add(format!("{layer}.self_attn.k_norm.weight"), &[size.head], norm);
    }

    /// Gated DeltaNet of one layer.
    fn delta(&mut self, layer: &str, size: &Dense, delta: &Delta) {
        let (keys, values) = (delta.key_heads * delta.head, delta.value_heads * delta.head);
        let mixed = 2 * keys + values;
        let layer = format!("{layer}.linear_attn");
        self.add(format!("{layer}.in_proj_qkv.weight"), &[mixed, size.hidden], Fill::Random);
        self.add(format!("{layer}.in_proj_z.weight"), &[values, size.hidden], Fill::Random);
        self.add(format!("{layer}.in_proj_a.weight"), &[delta.value_heads, size.hidden], Fill::Random);
        self.add(format!("{layer}.in_proj_b.weight"), &[delta.value_heads, size.hidden], Fill::Random);
        self.add(format!("{layer}.conv1d.weight"), &[mixed, 1, 4], Fill::Random);
        self.add(format!("{layer}.A_log"), &[delta.value_heads], Fill::LongZeros);
        self.add(format!("{layer}.dt_bias"), &[delta.value_heads], Fill::Ones);
        self.add(format!("{layer}.norm.weight"), &[delta.head], Fill::LongOnes);
        self.add(format!("{layer}.out_proj.weight"), &[size.hidden, values], Fill::Random);
    }
}

fn common(size: &Dense) -> Value {
    json!({
        "vocab_size": size.vocab,
        "hidden_size": size.hidden,
        "intermediate_size": size.inner,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv,
        "head_dim": size.head,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": false,
        "attention_bias": false,
        "hidden_act": "silu",
        "dtype": "bfloat16",
    })
}

fn with(mut base: Value, more: Value) -> Value {
    if let (Some(base), Value::Object(more)) = (base.as_object_mut(), more) {
        base.extend(more);
    }
    base
}

fn qwen3(name: &str, size: &Dense) -> Draft {
    let more = json!({
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "rope_theta": 1_000_000,
        "sliding_window": null,
        "use_sliding_window": false,
    });
    let mut draft = Draft { name: name.into(), config: with(common(size), more), tensors: Vec::new() };
    draft.frame("model.", size, Fill::Ones);
    for layer in 0..size.layers {
        draft.attention(&format!("model.layers.{layer}"), size, 1, Fill::Ones);
    }
    draft
}

fn qwen3_5(name: &str, size: &Dense, delta: &Delta) -> Draft {
    let full = |layer: u64| (layer + 1).is_multiple_of(4);
    let kinds: Vec<&str> = (0..size.layers)
        .map(|layer| if full(layer) { "full_attention" } else { "linear_attention" })
        .collect();
    let rotary = size.head / 4;
    // Half of the rotary dimensions, shared out among time, height and width.
    let (time, side) = (rotary / 2 - 2 * (rotary / 6), rotary / 6);
    let text = json!({
        "model_type": "qwen3_5_text",
        "layer_types": kinds,
        "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": delta.head,
        "linear_value_head_dim": delta.head,
        "linear_num_key_heads": delta.key_heads,
        "linear_num_value_heads": delta.value_heads,
        "partial_rotary_factor": 0.25,
        "rope_parameters": {
            "mrope_interleaved": true,
            "mrope_section": [time, side, side],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10_000_000,
            "rope_type": "default",
        },
        "attn_output_gate": true,
        "mamba_ssm_dtype": "float32",
        "output_gate_type": "swish",
        "mtp_num_hidden_layers": 0,
    });
    let config = json!({
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "language_model_only": true,
        "tie_word_embeddings": false,
        "text_config": with(common(size), text),
    });
    let mut draft = Draft { name: name.into(), config, tensors: Vec::new() };
    draft.frame("model.language_model.", size, Fill::Zeros);
    for layer in 0..size.layers {
        let prefix = format!("model.language_model.layers.{layer}");
        if full(layer) {
            draft.attention(&prefix, size, 2, Fill::Zeros);
        } else {
            draft.delta(&prefix, size, delta);
        }
    }
    draft
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_as_large_as_the_models_they_are_shaped_like() {
        let billions = |shape: &Shape| {
            shape.tensors.iter().map(|tensor| tensor.shape.iter().product::<u64>()).sum::<u64>() as f64 / 1e9
        };
        let real = real();
        assert!((8.1..8.3).contains(&billions(&real[0])), "{}", billions(&real[0]));
        assert!((26.0..28.0).contains(&billions(&real[1])), "{}", billions(&real[1]));
        assert!(tiny().iter().all(|shape| shape.bytes() < 16 << 20));
        for shape in real.iter().chain(&tiny()) {
            let mut names: Vec<&str> = shape.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), shape.tensors.len(), "{}: no name twice", shape.name);
        }
    }
}
