//! The same weights from safetensors and from GGUF give the same answers, in every format a GGUF may have.

mod support;

use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use golden::{Distance, Fixture, Report, Session, fixtures};
use layers::decoder::PreNormDecoder;
use layers::placement::Placement;
use layers::weights::{Container, Weights};
use serde_json::Value as Json;
use support::{MODEL_TYPES, of};

/// A checkpoint whose rows are long enough for every format: blocks of 256 need 256 columns.
const HIDDEN: usize = 256;
const INTERMEDIATE: usize = 512;
const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = HIDDEN / HEADS;
const LAYERS: usize = 2;
const VOCAB: usize = 128;

/// Name in a checkpoint, name in a GGUF, tensor.
type Named = (String, String, Tensor);

fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let count = shape.iter().product();
    let scale = 1.7 / (*shape.last().expect("a shape") as f32).sqrt();
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
    };
    Tensor::from_vec(std::iter::repeat_with(next).take(count).collect(), shape, &Device::Cpu)
        .expect("a tensor")
}

fn checkpoint() -> Vec<Named> {
    let mut tensors = Vec::new();
    let mut add = |hf: String, gguf: String, shape: &[usize]| {
        let seed = tensors.len() as u64 + 1;
        let tensor = random(shape, seed);
        let tensor = if shape.len() == 1 { ((tensor * 0.1).unwrap() + 1.0).unwrap() } else { tensor };
        tensors.push((hf, gguf, tensor));
    };
    add("model.embed_tokens.weight".into(), "token_embd.weight".into(), &[VOCAB, HIDDEN]);
    add("model.norm.weight".into(), "output_norm.weight".into(), &[HIDDEN]);
    add("lm_head.weight".into(), "output.weight".into(), &[VOCAB, HIDDEN]);
    for i in 0..LAYERS {
        let parts: [(&str, &str, &[usize]); 9] = [
            ("input_layernorm", "attn_norm", &[HIDDEN]),
            ("post_attention_layernorm", "ffn_norm", &[HIDDEN]),
            ("self_attn.q_proj", "attn_q", &[HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.k_proj", "attn_k", &[KV_HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.v_proj", "attn_v", &[KV_HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.o_proj", "attn_output", &[HIDDEN, HEADS * HEAD_DIM]),
            ("mlp.gate_proj", "ffn_gate", &[INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", "ffn_up", &[INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", "ffn_down", &[HIDDEN, INTERMEDIATE]),
        ];
        for (hf, gguf, shape) in parts {
            add(format!("model.layers.{i}.{hf}.weight"), format!("blk.{i}.{gguf}.weight"), shape);
        }
    }
    tensors
}

/// Rows of a head from halves of pairs to neighbours, as converters to GGUF store queries and keys.
fn neighbours(tensor: &Tensor, head_dim: usize) -> Tensor {
    let (rows, columns) = tensor.dims2().expect("a matrix");
    let halves = tensor.reshape((rows / head_dim, 2, head_dim / 2, columns)).expect("whole heads");
    halves
        .transpose(1, 2)
        .and_then(|t| t.contiguous())
        .and_then(|t| t.reshape((rows, columns)))
        .expect("a matrix")
}

fn metadata() -> Vec<(&'static str, Value)> {
    vec![
        ("general.architecture", Value::String("llama".into())),
        ("llama.block_count", Value::U32(LAYERS as u32)),
        ("llama.embedding_length", Value::U32(HIDDEN as u32)),
        ("llama.feed_forward_length", Value::U32(INTERMEDIATE as u32)),
        ("llama.attention.head_count", Value::U32(HEADS as u32)),
        ("llama.attention.head_count_kv", Value::U32(KV_HEADS as u32)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.rope.freq_base", Value::F32(10_000.0)),
        ("llama.rope.dimension_count", Value::U32(HEAD_DIM as u32)),
        ("llama.context_length", Value::U32(512)),
    ]
}

/// Writes a GGUF whose matrices are `dtype`; gives back the weights it stands for, under their checkpoint names.
fn write(path: &Path, dtype: GgmlDType) -> Vec<(String, Tensor)> {
    let mut stored = Vec::new();
    let mut meant = Vec::new();
    for (hf, gguf, tensor) in checkpoint() {
        let matrix = tensor.rank() == 2;
        let quantized =
            QTensor::quantize(&tensor, if matrix { dtype } else { GgmlDType::F32 }).expect("a format");
        meant.push((hf.clone(), quantized.dequantize(&Device::Cpu).expect("numbers")));
        let paired = hf.contains("q_proj") || hf.contains("k_proj");
        // Whole rows change places, so quantizing before or after is the same.
        let quantized = if paired {
            QTensor::quantize(&neighbours(&tensor, HEAD_DIM), dtype).expect("a format")
        } else {
            quantized
        };
        stored.push((gguf, quantized));
    }
    let metadata = metadata();
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> =
        stored.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut file = std::fs::File::create(path).expect("a temporary file");
    gguf_file::write(&mut file, &metadata, &tensors).expect("a GGUF");
    meant
}

fn config() -> String {
    format!(
        r#"{{"vocab_size": {VOCAB}, "hidden_size": {HIDDEN}, "intermediate_size": {INTERMEDIATE},
        "num_hidden_layers": {LAYERS}, "num_attention_heads": {HEADS}, "num_key_value_heads": {KV_HEADS},
        "rms_norm_eps": 1e-5, "max_position_embeddings": 512}}"#
    )
}

fn open(path: &Path, placement: Placement) -> layers::Result<PreNormDecoder> {
    of("", &Weights::open(&[path.to_path_buf()], Container::Gguf, placement)?)
}

fn prompt() -> Vec<u32> {
    (0..70).map(|i| i * 37 % VOCAB as u32).collect()
}

#[test]
fn every_format_means_the_same_in_a_gguf() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let formats = [
        (GgmlDType::F32, 1e-5),
        (GgmlDType::F16, 1e-5),
        (GgmlDType::BF16, 1e-5),
        // Activations are quantized too, which the comparison does not do: 1/254 of the largest of 32 values, or of 256.
        (GgmlDType::Q4_0, 0.02),
        (GgmlDType::Q4_1, 0.02),
        (GgmlDType::Q5_0, 0.02),
        (GgmlDType::Q5_1, 0.02),
        (GgmlDType::Q8_0, 0.02),
        (GgmlDType::Q4K, 0.04),
        (GgmlDType::Q5K, 0.04),
        (GgmlDType::Q6K, 0.04),
    ];
    let mut report = Report::default();
    for (dtype, share) in formats {
        let path = folder.path().join(format!("{dtype:?}.gguf"));
        let meant = write(&path, dtype);
        let weights = Weights::from_tensors(meant, Placement::cpu()).expect("tensors");
        let expected = Session::new(&of(&config(), &weights).expect("a model")).all(&prompt()).concat();
        let spread = Distance::between(&expected, &vec![0.0; expected.len()]).rms;
        let decoder = open(&path, Placement::cpu()).expect("the GGUF loads");
        let got = Session::new(&decoder).all(&prompt()).concat();
        let rms = Distance::between(&got, &expected).rms;
        report.at_most(&format!("{dtype:?}, rms"), rms, share * spread);
        report.extend(golden::check_pieces(&decoder, &prompt()));
        report.extend(golden::check_ranks(&[2, 4], |p| open(&path, p), &prompt(), share * spread * 8.0));
    }
    report.assert_clean("GGUF formats");
}

#[test]
fn quantizing_at_load_is_quantizing_before() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("f32.gguf");
    write(&path, GgmlDType::F32);
    let mut report = Report::default();
    for (scheme, dtype) in [
        (layers::quant::Scheme::Q8_0, GgmlDType::Q8_0),
        (layers::quant::Scheme::Q4_0, GgmlDType::Q4_0),
        (layers::quant::Scheme::Q4K, GgmlDType::Q4K),
        (layers::quant::Scheme::Q5K, GgmlDType::Q5K),
        (layers::quant::Scheme::Q6K, GgmlDType::Q6K),
    ] {
        let before = folder.path().join(format!("{dtype:?}.gguf"));
        write(&before, dtype);
        let at_load = Placement { quantize: Some(scheme), ..Placement::cpu() };
        let at_load = open(&path, at_load).expect("a model");
        let before = open(&before, Placement::cpu()).expect("a model");
        let got = Session::new(&at_load).last(&prompt());
        let expected = Session::new(&before).last(&prompt());
        // The embedding is quantized in the one file and plain in the other; everything else is the same.
        let spread = Distance::between(&expected, &vec![0.0; expected.len()]).rms;
        let limit = if dtype == GgmlDType::Q8_0 { 0.04 } else { 0.25 };
        report.at_most(scheme.name(), Distance::between(&got, &expected).rms, limit * spread);
    }
    report.assert_clean("quantized at load");
}

#[test]
fn llama3_frequencies_may_be_in_the_file() {
    for fixture in fixtures(&MODEL_TYPES) {
        let config: Json = serde_json::from_str(&fixture.config).expect("config.json is JSON");
        if config["rope_scaling"]["rope_type"] == "llama3" {
            check_frequencies(&fixture, &config);
        }
    }
}

/// Writes the checkpoint as converters do, with `rope_freqs`, and demands the recorded logits of it.
fn check_frequencies(fixture: &Fixture, config: &Json) {
    let number = |key: &str| config[key].as_f64().unwrap_or_else(|| panic!("{key} is missing"));
    let scaling = |key: &str| config["rope_scaling"][key].as_f64().expect("a number");
    let heads = number("num_attention_heads");
    let head_dim = config["head_dim"].as_f64().unwrap_or(number("hidden_size") / heads) as usize;
    let factors: Vec<f32> = (0..head_dim / 2)
        .map(|j| {
            let wavelength =
                2.0 * std::f64::consts::PI * number("rope_theta").powf(2.0 * j as f64 / head_dim as f64);
            let original = scaling("original_max_position_embeddings");
            let (low, high, factor) =
                (scaling("low_freq_factor"), scaling("high_freq_factor"), scaling("factor"));
            let smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        })
        .collect();
    let mut tensors = vec![(
        "rope_freqs.weight".to_string(),
        Tensor::from_vec(factors, head_dim / 2, &Device::Cpu).expect("a vector"),
    )];
    for (name, tensor) in fixture.weights() {
        let tensor = tensor.to_dtype(candle_core::DType::F32).expect("numbers");
        let paired = name.contains("q_proj") || name.contains("k_proj");
        tensors.push((gguf_name(&name), if paired { neighbours(&tensor, head_dim) } else { tensor }));
    }
    let values = [
        ("llama.block_count", Value::U32(number("num_hidden_layers") as u32)),
        ("llama.embedding_length", Value::U32(number("hidden_size") as u32)),
        ("llama.feed_forward_length", Value::U32(number("intermediate_size") as u32)),
        ("llama.attention.head_count", Value::U32(heads as u32)),
        ("llama.attention.head_count_kv", Value::U32(number("num_key_value_heads") as u32)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(number("rms_norm_eps") as f32)),
        ("llama.rope.freq_base", Value::F32(number("rope_theta") as f32)),
        ("llama.context_length", Value::U32(number("max_position_embeddings") as u32)),
        ("general.architecture", Value::String("llama".into())),
    ];
    let metadata: Vec<(&str, &Value)> = values.iter().map(|(key, value)| (*key, value)).collect();
    let quantize = |tensor: &Tensor| QTensor::quantize(tensor, GgmlDType::F32).expect("f32");
    let stored: Vec<(String, QTensor)> =
        tensors.iter().map(|(name, tensor)| (name.clone(), quantize(tensor))).collect();
    let stored: Vec<(&str, &QTensor)> = stored.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("llama3.gguf");
    let mut file = std::fs::File::create(&path).expect("a temporary file");
    gguf_file::write(&mut file, &metadata, &stored).expect("a GGUF");
    let decoder = open(&path, Placement::cpu()).expect("the GGUF loads");
    golden::check_logits(fixture, &decoder).assert_clean(&fixture.name());
}

fn gguf_name(name: &str) -> String {
    let pairs = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers.", "blk."),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    pairs.iter().fold(name.to_string(), |name, (hf, gguf)| name.replace(hf, gguf))
}
