//! Qwen3.5 by the road of a GPU, put together from candle's operations, on the CPU.

mod support;

use golden::{
    check_batch_near, check_bf16, check_fork_near, check_greedy, check_logits, check_pieces_near,
    check_ranks, check_stages,
};
use layers::{DType, device};
use support::{Subject, check_images, check_images_bf16, check_prompts, check_prompts_bf16, each};

#[test]
fn composed_logits() {
    device::compose();
    each(DType::F32, |fixture, subject| check_logits(fixture, &subject.model));
}

#[test]
fn composed_stages() {
    device::compose();
    each(DType::F32, |fixture, subject| check_stages(fixture, &subject.model));
}

#[test]
fn composed_greedy() {
    device::compose();
    each(DType::F32, |fixture, subject| check_greedy(fixture, &subject.model));
}

#[test]
fn composed_bf16() {
    device::compose();
    each(DType::BF16, |fixture, subject| check_bf16(fixture, &subject.model));
}

#[test]
fn composed_pieces_company_and_forks() {
    device::compose();
    each(DType::F32, |fixture, subject| {
        let decoder = &subject.model;
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
        check_ranks(&[2, 4], |placement| Ok(Subject::placed(fixture, placement)?.model), &ids[..70], limit)
    });
}

#[test]
fn composed_images() {
    device::compose();
    each(DType::F32, check_images);
    each(DType::F32, check_prompts);
}

#[test]
fn composed_images_bf16() {
    device::compose();
    each(DType::BF16, check_images_bf16);
    each(DType::BF16, check_prompts_bf16);
}
