//! LLaMA against itself: pieces, company, forks, ranks and quantization do not change its answers.

mod support;

use golden::{check_batch, check_fork, check_pieces, check_quantized, check_ranks};
use layers::DType;
use support::{each, placed};

#[test]
fn a_prompt_in_pieces_is_the_prompt() {
    each(DType::F32, |fixture, decoder| check_pieces(decoder, &fixture.ids("/text/ids")));
}

#[test]
fn a_sequence_does_not_notice_its_company() {
    each(DType::F32, |fixture, decoder| check_batch(decoder, &fixture.ids("/text/ids")));
}

#[test]
fn a_fork_goes_on_as_its_original() {
    each(DType::F32, |fixture, decoder| check_fork(decoder, &fixture.ids("/text/ids")));
}

#[test]
fn several_ranks_answer_as_one() {
    each(DType::F32, |fixture, _| {
        let ids = fixture.ids("/text/ids");
        let limit = fixture.limit("f32_logits_abs");
        check_ranks(&[2, 3, 4], |placement| placed(fixture, placement), &ids[..70], limit)
    });
}

#[test]
fn golden_quantized() {
    each(DType::F32, |fixture, plain| {
        check_quantized(fixture, plain, |placement| placed(fixture, placement))
    });
}
