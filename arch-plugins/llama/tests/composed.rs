//! LLaMA by the road of a GPU, put together from candle's operations, on the CPU.

mod support;

use arch_llama::Llama;
use golden::fixtures;
use golden::{
    check_batch_near, check_bf16, check_fork_near, check_greedy, check_logits, check_pieces_near,
    check_quantized_as, check_ranks, check_stages,
};
use layers::quant::Scheme;
use layers::{DType, device};
use plugin_sdk::arch::{Batch, BatchRow};
use plugin_sdk::{Architecture, Model, Progress, Source, Want, WeightFormat, testing};
use support::{MODEL_TYPES, each, placed};

#[test]
fn composed_logits() {
    device::compose();
    each(DType::F32, check_logits);
}

#[test]
fn composed_stages() {
    device::compose();
    each(DType::F32, check_stages);
}

#[test]
fn composed_greedy() {
    device::compose();
    each(DType::F32, check_greedy);
}

#[test]
fn composed_bf16() {
    device::compose();
    each(DType::BF16, check_bf16);
}

#[test]
fn composed_pieces_company_and_forks() {
    device::compose();
    each(DType::F32, |fixture, decoder| {
        let (ids, limit) = (fixture.ids("/text/ids"), fixture.limit("f32_logits_abs"));
        let mut report = check_pieces_near(decoder, &ids, limit);
        report.extend(check_batch_near(decoder, &ids, limit));
        report.extend(check_fork_near(decoder, &ids, limit));
        report
    });
}

#[test]
fn composed_ranks_answer_as_one() {
    device::compose();
    each(DType::F32, |fixture, _| {
        let (ids, limit) = (fixture.ids("/text/ids"), fixture.limit("f32_logits_abs"));
        check_ranks(&[2, 4], |placement| placed(fixture, placement), &ids[..70], limit)
    });
}

/// Those whose kernels for CPUs take rows of any number of blocks; a GPU's take all.
const SCHEMES: [Scheme; 3] = [Scheme::Q8_0, Scheme::Q6K, Scheme::Q4_0];

#[test]
fn composed_quantized() {
    device::compose();
    each(DType::F32, |fixture, plain| {
        check_quantized_as(&SCHEMES, fixture, plain, |placement| placed(fixture, placement))
    });
}

/// Off the host the model chooses greedy tokens itself: only ids come back, beside the logits of rows that want those.
#[test]
fn composed_rows_may_want_a_token_instead_of_logits() {
    device::compose();
    for fixture in fixtures(&MODEL_TYPES) {
        let files = fixture.weight_files();
        let files: Vec<&str> = files.iter().map(|file| file.to_str().expect("a path in UTF-8")).collect();
        let config = &fixture.config;
        let source = Source { format: WeightFormat::SAFETENSORS, config, preprocessor: "", files: &files };
        let mut model = Llama.load(&source, &testing::options(), &Progress::SILENT).expect("it loads");
        assert!(model.chooses_tokens());
        let (ids, vocab) = (fixture.ids("/text/ids"), model.info().vocab_size);
        let mut sequences: Vec<_> = (0..3).map(|_| model.sequence().expect("a sequence")).collect();
        let (mut last, mut all) = (vec![0.0; vocab], vec![0.0; 9 * vocab]);
        let [a, b, c] = sequences.as_mut_slice() else { unreachable!("there are three") };
        let mut batch = Batch::new(vec![
            BatchRow::new(a, 0, &ids[..9], Want::TOKEN, &mut []),
            BatchRow::new(b, 0, &ids[..9], Want::ALL, &mut all),
            BatchRow::new(c, 0, &ids[..9], Want::LAST, &mut last),
        ]);
        model.step(&mut batch).expect("the step succeeds");
        let token = batch.rows[0].token.expect("a token was chosen");
        drop(batch);
        assert_eq!(token, golden::likeliest(&last));
        assert_eq!(last, all[8 * vocab..]);
    }
}
