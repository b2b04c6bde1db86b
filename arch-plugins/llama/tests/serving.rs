//! The architecture through the plugin SDK: plan, load, step, ranks, refusals.

mod support;

use std::path::{Path, PathBuf};
use std::thread;

use arch_llama::Llama;
use candle_core::{Device, Tensor};
use golden::{Fixture, Session, fixtures};
use layers::DType;
use plugin_sdk::arch::{Batch, BatchRow};
use plugin_sdk::{
    Architecture, DeviceInfo, DeviceKind, Error, Model, Options, Progress, Result, Source, Want, WeightFormat,
};
use support::{MODEL_TYPES, load};

fn cpu() -> DeviceInfo {
    DeviceInfo {
        kind: DeviceKind::CPU,
        ordinal: 0,
        compute_capability: 0,
        driver: 0,
        cpu_level: 0,
        pci_address: 0,
        total_bytes: 0,
        free_bytes: 0,
    }
}

fn options<'a>(quantize: &'a str, rank: usize, world: usize, communicator: &'a [u8; 128]) -> Options<'a> {
    Options {
        device: cpu(),
        dtype: "auto",
        quantize,
        rank,
        world,
        communicator,
        max_context: 0,
        max_sequences: 4,
        max_step_tokens: 512,
        threads: 2,
        state_bytes: 0,
        options: "",
    }
}

/// Calls `with` with a source of safetensors.
fn with_source<R>(config: &str, files: &[PathBuf], with: impl FnOnce(&Source<'_>) -> R) -> R {
    let files: Vec<&str> = files.iter().map(|file| file.to_str().expect("a path in UTF-8")).collect();
    with(&Source { format: WeightFormat::SAFETENSORS, config, preprocessor: "", files: &files })
}

fn fixture() -> Option<Fixture> {
    fixtures(&MODEL_TYPES).into_iter().next()
}

/// Logits of a prompt's every token, then of one more token; on a rank other than 0 nothing is written.
fn answer(
    model: &mut impl Model<Image = layers::batch::EncodedImage>,
    ids: &[u32],
    first: bool,
) -> Result<Vec<f32>> {
    let vocab = model.info().vocab_size;
    let mut sequence = model.sequence()?;
    let (prompt, last) = ids.split_at(ids.len() - 1);
    let rows = if first { prompt.len() } else { 0 };
    let mut all = vec![0.0; rows * vocab];
    let mut one = vec![0.0; if first { vocab } else { 0 }];
    let mut batch = Batch::new(vec![BatchRow::new(&mut sequence, 0, prompt, Want::ALL, &mut all)]);
    model.step(&mut batch)?;
    let mut batch = Batch::new(vec![BatchRow::new(&mut sequence, prompt.len(), last, Want::LAST, &mut one)]);
    model.step(&mut batch)?;
    assert_eq!(model.length(&sequence), ids.len());
    all.extend(one);
    Ok(all)
}

#[test]
fn served_is_driven_directly() {
    let Some(fixture) = fixture() else { return };
    let ids = &fixture.ids("/text/ids")[..40];
    let expected = Session::new(&load(&fixture, DType::F32)).all(ids).concat();
    let files = fixture.weight_files();
    with_source(&fixture.config, &files, |source| {
        let mut model =
            Llama.load(source, &options("", 0, 1, &[0; 128]), &Progress::SILENT).expect("it loads");
        assert!(answer(&mut model, ids, true).expect("two steps") == expected, "bits differ");
    });
}

#[test]
fn ranks_answer_through_rank_0_and_fail_together() {
    let Some(fixture) = fixture() else { return };
    let ids = &fixture.ids("/text/ids")[..40];
    let limit = fixture.limit("f32_logits_abs") as f32;
    let expected = Session::new(&load(&fixture, DType::F32)).all(ids).concat();
    let files = fixture.weight_files();
    let id = Llama.communicator_id().expect("an id");
    let rank = |rank: usize| {
        with_source(&fixture.config, &files, |source| {
            let mut model =
                Llama.load(source, &options("", rank, 2, &id), &Progress::SILENT).expect("it loads");
            let logits = answer(&mut model, ids, rank == 0).expect("two steps");
            // Rank 1 leaves here; rank 0 must not wait for it for ever.
            let abandoned = if rank == 0 { Some(answer(&mut model, ids, true)) } else { None };
            (logits, abandoned)
        })
    };
    let rank = &rank;
    let (first, second) = thread::scope(|scope| {
        let second = scope.spawn(move || rank(1));
        (rank(0), second.join().expect("rank 1 does not panic"))
    });
    assert!(first.0.iter().zip(&expected).all(|(got, expected)| (got - expected).abs() < limit));
    assert!(second.0.is_empty());
    assert!(matches!(first.1, Some(Err(Error::DeviceLost(_)))), "{:?}", first.1.map(|r| r.map(|v| v.len())));
}

#[test]
fn the_plan_is_what_loading_takes() {
    let Some(fixture) = fixture() else { return };
    let files = fixture.weight_files();
    with_source(&fixture.config, &files, |source| {
        for quantize in ["", "q8_0", "q4_0"] {
            let options = options(quantize, 0, 1, &[0; 128]);
            let plan = Llama.plan(source, &options).expect("a plan");
            let mut model = Llama.load(source, &options, &Progress::SILENT).expect("it loads");
            let (planned, taken) = (plan.weight_bytes as f64, model.info().weight_bytes as f64);
            assert!((planned / taken - 1.0).abs() < 0.05, "{quantize}: planned {planned}, took {taken}");
            assert!(plan.mapped_bytes <= plan.weight_bytes);
            let mut sequence = model.sequence().expect("a sequence");
            let mut batch =
                Batch::new(vec![BatchRow::new(&mut sequence, 0, &[1; 64], Want::NOTHING, &mut [])]);
            model.step(&mut batch).expect("a step");
            assert_eq!(model.bytes(&sequence), 64 * plan.kv_bytes_per_token);
        }
    });
}

/// Tensors of a checkpoint.
type Named = Vec<(String, Tensor)>;

fn write(folder: &Path, tensors: &[(String, Tensor)]) -> PathBuf {
    let file = folder.join("model.safetensors");
    let tensors = tensors.iter().cloned().collect();
    candle_core::safetensors::save(&tensors, &file).expect("a temporary file");
    file
}

#[test]
fn a_file_that_does_not_fit_is_refused_with_what_does_not_fit() {
    let Some(fixture) = fixture() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let refusal = |change: &dyn Fn(&mut Named), config: &str| {
        let mut tensors = fixture.weights();
        change(&mut tensors);
        let file = write(folder.path(), &tensors);
        with_source(config, &[file], |source| {
            match Llama.load(source, &options("", 0, 1, &[0; 128]), &Progress::SILENT) {
                Ok(_) => panic!("it loads all the same"),
                Err(error) => error,
            }
        })
    };
    let config = fixture.config.as_str();
    let named = "model.layers.1.mlp.up_proj.weight";
    let missing = refusal(&|all| all.retain(|(name, _)| name != named), config);
    let strange = Tensor::zeros(3, candle_core::DType::F32, &Device::Cpu).expect("a tensor");
    let extra = refusal(&|all| all.push(("model.strange".into(), strange.clone())), config);
    let shape = refusal(
        &|all| {
            for (name, tensor) in all.iter_mut().filter(|(name, _)| name == named) {
                assert_eq!(name, named);
                *tensor = tensor.narrow(0, 0, 7).expect("rows");
            }
        },
        config,
    );
    for (error, text) in [(missing, named), (extra, "model.strange"), (shape, named)] {
        assert!(matches!(&error, Error::Unsupported(message) if message.contains(text)), "{error:?}");
    }
    let truncated = write(folder.path(), &fixture.weights());
    let bytes = std::fs::read(&truncated).expect("the file");
    std::fs::write(&truncated, &bytes[..bytes.len() - 1000]).expect("the file");
    with_source(config, &[truncated], |source| {
        assert!(Llama.plan(source, &options("", 0, 1, &[0; 128])).is_err());
    });
}

#[test]
fn options_nobody_knows_are_refused_by_plan_and_load() {
    let Some(fixture) = fixture() else { return };
    let files = fixture.weight_files();
    with_source(&fixture.config, &files, |source| {
        for (text, named) in [(r#"{"twist": 1}"#, "twist"), ("[1]", "JSON"), ("{", "JSON")] {
            let options = Options { options: text, ..options("", 0, 1, &[0; 128]) };
            let planned = Llama.plan(source, &options).map(|_| ());
            let loaded = Llama.load(source, &options, &Progress::SILENT).map(|_| ());
            for outcome in [planned, loaded] {
                let error = outcome.expect_err("it is refused");
                assert!(error.message().contains(named), "{text}: {error}");
            }
        }
        let none = Options { options: "{}", ..options("", 0, 1, &[0; 128]) };
        assert!(Llama.plan(source, &none).is_ok());
    });
}
