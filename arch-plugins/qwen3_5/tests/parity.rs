//! Qwen3.5 against itself: pieces, company, forks, ranks, quantization and the form of the delta rule do not change its
//! answers.

mod support;

use golden::{
    Report, check_batch, check_fork, check_logits, check_pieces, check_quantized, check_ranks, check_stages,
};
use layers::DType;
use support::{Subject, each};

#[test]
fn a_prompt_in_pieces_is_the_prompt() {
    each(DType::F32, |fixture, subject| check_pieces(&subject.model, &fixture.ids("/text/ids")));
}

#[test]
fn a_sequence_does_not_notice_its_company() {
    each(DType::F32, |fixture, subject| check_batch(&subject.model, &fixture.ids("/text/ids")));
}

#[test]
fn a_fork_goes_on_as_its_original() {
    each(DType::F32, |fixture, subject| check_fork(&subject.model, &fixture.ids("/text/ids")));
}

#[test]
fn several_ranks_answer_as_one() {
    each(DType::F32, |fixture, _| {
        let ids = fixture.ids("/text/ids");
        let limit = fixture.limit("f32_logits_abs");
        check_ranks(&[2, 3, 4], |placement| Ok(Subject::placed(fixture, placement)?.model), &ids[..70], limit)
    });
}

#[test]
fn golden_quantized() {
    each(DType::F32, |fixture, subject| {
        check_quantized(fixture, &subject.model, |placement| Ok(Subject::placed(fixture, placement)?.model))
    });
}

/// Prompts through the chunked form of the delta rule, at the same limits.
#[test]
fn golden_chunked_delta_rule() {
    for fixture in golden::fixtures(&support::MODEL_TYPES) {
        let subject = Subject::chunked(&fixture);
        let mut report = Report::default();
        report.extend(check_logits(&fixture, &subject.model));
        report.extend(check_stages(&fixture, &subject.model));
        report.extend(support::check_prompts(&fixture, &subject));
        report.assert_clean(&fixture.name());
    }
}
