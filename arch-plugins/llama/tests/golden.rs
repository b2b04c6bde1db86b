//! LLaMA against the reference, stage by stage, on every checkpoint of the family in `GOLDEN_DIR`.

mod support;

use golden::{check_bf16, check_greedy, check_logits, check_stages};
use layers::DType;
use support::each;

#[test]
fn golden_logits() {
    each(DType::F32, check_logits);
}

#[test]
fn golden_stages() {
    each(DType::F32, check_stages);
}

#[test]
fn golden_greedy() {
    each(DType::F32, check_greedy);
}

#[test]
fn golden_bf16() {
    each(DType::BF16, check_bf16);
}
