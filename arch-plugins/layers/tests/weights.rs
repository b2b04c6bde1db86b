//! Weight files as they come: several shards, several dtypes, damaged, and not what the model asks for.

use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use layers::Error;
use layers::placement::Placement;
use layers::weights::{Container, Stored, Weights};

fn numbers(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let values = (0..count).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).expect("a tensor")
}

fn save(folder: &Path, name: &str, tensors: &[(&str, Tensor)]) -> PathBuf {
    let file = folder.join(name);
    let tensors = tensors.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
    candle_core::safetensors::save(&tensors, &file).expect("a temporary file");
    file
}

fn open(files: &[PathBuf], container: Container) -> layers::Result<Weights> {
    Weights::open(files, container, Placement::cpu())
}

#[test]
fn shards_and_dtypes_are_one_tree_of_names() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let part = |dtype| numbers(&[3, 8]).to_dtype(dtype).expect("a dtype");
    let first = save(folder.path(), "1", &[("a.weight", part(DType::F32)), ("b.weight", part(DType::BF16))]);
    let second = save(folder.path(), "2", &[("b.bias", part(DType::F16)), ("c", numbers(&[2]))]);
    let weights = open(&[first.clone(), second], Container::Safetensors).expect("two shards");
    assert_eq!(weights.names(), ["a.weight", "b.bias", "b.weight", "c"]);
    assert_eq!(weights.pp("b").names(), ["b.bias", "b.weight"]);
    assert_eq!(weights.total_bytes(), 24 * 4 + 24 * 2 + 24 * 2 + 8);
    assert!(weights.gguf().is_none());
    for (name, stored, limit) in
        [("a.weight", Stored::F32, 0.0), ("b.weight", Stored::BF16, 4e-3), ("b.bias", Stored::F16, 5e-4)]
    {
        let raw = weights.raw(name).expect("a tensor");
        assert_eq!((raw.stored(), raw.shape()), (stored, &[3, 8][..]));
        for (got, i) in raw.to_f32().into_iter().zip(0..) {
            assert!((got - (i as f32 * 0.37).sin()).abs() <= limit, "{name}");
        }
    }
    assert!(matches!(open(&[first.clone(), first], Container::Safetensors), Err(Error::Unsupported(_))));
}

#[test]
fn what_is_missing_misshapen_or_left_over_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = save(
        folder.path(),
        "w",
        &[("m.a", numbers(&[2, 4])), ("mtp.x", numbers(&[1])), ("z", numbers(&[1]))],
    );
    let weights = open(&[file], Container::Safetensors).expect("a file");
    let named = |outcome: layers::Result<()>, name: &str| match outcome {
        Err(Error::Unsupported(text)) => assert!(text.contains(name), "{text}"),
        other => panic!("{other:?}"),
    };
    named(weights.pp("m").raw("b").map(|_| ()), "m.b");
    named(weights.pp("m").tensor("a", &[4, 2], DType::F32).map(|_| ()), "[2, 4]");
    named(weights.finish(&["mtp."]), "z");
    weights.raw("z").expect("a tensor");
    weights.finish(&["mtp."]).expect("everything was used");
    assert!(!weights.contains("b") && weights.pp("m").contains("a"));
}

fn gguf(folder: &Path) -> PathBuf {
    let path = folder.join("model.gguf");
    let quantized = |dtype| QTensor::quantize(&numbers(&[4, 256]), dtype).expect("a format");
    let values = [
        ("general.architecture", Value::String("llama".into())),
        ("llama.block_count", Value::U64(7)),
        ("llama.rope.freq_base", Value::F32(1e6)),
        ("tokenizer.ggml.tokens", Value::Array(vec![Value::String("a".into()); 5])),
        ("llama.flags", Value::Array(vec![Value::Bool(true), Value::Bool(false)])),
    ];
    let metadata: Vec<(&str, &Value)> = values.iter().map(|(key, value)| (*key, value)).collect();
    let (q, k) = (quantized(GgmlDType::Q4_0), quantized(GgmlDType::Q6K));
    let tensors = [("token_embd.weight", &q), ("blk.0.attn_q.weight", &k)];
    let mut file = std::fs::File::create(&path).expect("a temporary file");
    gguf_file::write(&mut file, &metadata, &tensors).expect("a GGUF");
    path
}

#[test]
fn a_gguf_has_names_and_settings_of_the_checkpoint() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let weights = open(&[gguf(folder.path())], Container::Gguf).expect("a GGUF");
    assert_eq!(weights.names(), ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"]);
    let settings = weights.gguf().expect("metadata");
    assert_eq!(settings.architecture(), "llama");
    assert_eq!((settings.size("block_count"), settings.float("rope.freq_base")), (Some(7), Some(1e6)));
    assert_eq!((settings.vocab_size(), settings.integers("flags")), (Some(5), Some(vec![1, 0])));
    assert_eq!((settings.size("rope.freq_base"), settings.string("absent")), (None, None));
    let raw = weights.raw("model.layers.0.self_attn.q_proj.weight").expect("a tensor");
    let error = raw
        .to_f32()
        .iter()
        .zip(0..)
        .map(|(got, i)| (got - (i as f32 * 0.37).sin()).abs())
        .fold(0.0, f32::max);
    assert!(error > 0.0 && error < 0.05, "{error}");
}

#[test]
fn damaged_files_are_refused_and_do_not_end_the_process() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let files = [
        (gguf(folder.path()), Container::Gguf),
        (save(folder.path(), "w", &[("a", numbers(&[8, 8]))]), Container::Safetensors),
    ];
    for (path, container) in files {
        let whole = std::fs::read(&path).expect("a file");
        // A GGUF ends in up to 31 bytes of padding, which nobody misses.
        let needed = whole.len() - 31;
        for length in (0..needed).step_by(7).chain([needed - 1]) {
            std::fs::write(&path, &whole[..length]).expect("a file");
            assert!(
                open(std::slice::from_ref(&path), container).is_err(),
                "{container:?} cut to {length} bytes"
            );
        }
        // Any single damaged byte of the header is either noticed or harmless.
        for at in 0..whole.len().min(400) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0xff;
            std::fs::write(&path, &damaged).expect("a file");
            if let Ok(weights) = open(std::slice::from_ref(&path), container) {
                for name in weights.names() {
                    let _ = weights.raw(&name).map(|raw| raw.to_f32());
                }
            }
        }
    }
    let absent = folder.path().join("absent");
    assert!(
        matches!(open(&[absent], Container::Gguf), Err(Error::Unsupported(text)) if text.contains("absent"))
    );
    assert!(open(&[], Container::Safetensors).is_err());
}
