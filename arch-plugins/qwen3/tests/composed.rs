//! Qwen3 by the road of a GPU, put together from candle's operations, on the CPU.

mod support;

use golden::{
    check_batch_near, check_bf16, check_fork_near, check_greedy, check_logits, check_pieces_near,
    check_quantized_as, check_ranks, check_stages,
};
use layers::quant::Scheme;
use layers::{DType, device};
use support::{each, placed};

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
