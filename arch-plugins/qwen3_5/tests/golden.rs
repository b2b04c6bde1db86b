//! Qwen3.5 against the reference, stage by stage, on every checkpoint of the family in `GOLDEN_DIR`.

mod support;

use golden::{check_bf16, check_greedy, check_logits, check_stages};
use layers::DType;
use support::{check_images, check_images_bf16, check_prompts, check_prompts_bf16, each};

#[test]
fn golden_logits() {
    each(DType::F32, |fixture, subject| check_logits(fixture, &subject.model));
}

#[test]
fn golden_stages() {
    each(DType::F32, |fixture, subject| check_stages(fixture, &subject.model));
}

#[test]
fn golden_greedy() {
    each(DType::F32, |fixture, subject| check_greedy(fixture, &subject.model));
}

#[test]
fn golden_bf16() {
    each(DType::BF16, |fixture, subject| check_bf16(fixture, &subject.model));
}

#[test]
fn golden_images() {
    each(DType::F32, check_images);
}

#[test]
fn golden_images_bf16() {
    each(DType::BF16, check_images_bf16);
}

#[test]
fn golden_prompts_with_images() {
    each(DType::F32, check_prompts);
}

#[test]
fn golden_prompts_with_images_bf16() {
    each(DType::BF16, check_prompts_bf16);
}
