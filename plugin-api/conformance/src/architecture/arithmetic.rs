//! The same answer by every road: again, in chunks, in company.

use std::sync::atomic::AtomicU32;

use plugin_loader::{Model, Row, StepOutput, Want};

use super::stage::{Stage, feed, logits_of, same, tokens};
use crate::promise::{Asked, End, Outcome, Promise, broken, ensure};

pub(crate) const PROMISES: &[Promise<Stage>] = &[
    Promise {
        name: "logits-are-numbers",
        says: "Logits are finite numbers, and not all alike.",
        check: |stage| {
            let model = stage.model()?;
            let prompt = tokens(model, 7, 2);
            let logits = logits_of(model, &prompt)?;
            ensure(logits.iter().all(|logit| logit.is_finite()), || "a logit is not a finite number".into())?;
            ensure(logits.windows(2).any(|pair| pair[0] != pair[1]), || {
                format!("all {} logits are {}", logits.len(), logits.first().copied().unwrap_or(0.0))
            })
        },
    },
    Promise {
        name: "deterministic",
        says: "The same tokens give the same logits, to the bit.",
        check: |stage| {
            let model = stage.model()?;
            let prompt = tokens(model, 12, 3);
            let (first, second) = (logits_of(model, &prompt)?, logits_of(model, &prompt)?);
            let differs = first.iter().zip(&second).position(|(a, b)| a.to_bits() != b.to_bits());
            match differs {
                Some(id) => {
                    broken(format!("logit {id} is {} once and {} the next time", first[id], second[id]))
                }
                None => Ok(()),
            }
        },
    },
    Promise {
        name: "chunked-is-whole",
        says: "A prompt fed in chunks gives the logits of the prompt fed whole.",
        check: chunked_is_whole,
    },
    Promise {
        name: "batched-is-alone",
        says: "A row in company gives the logits of the row alone.",
        check: batched_is_alone,
    },
    Promise {
        name: "all-is-last",
        says: "Logits of all tokens are those each prefix would give, and the likeliest token is the largest of them.",
        check: all_is_last,
    },
];

fn chunked_is_whole(stage: &mut Stage) -> Outcome {
    let model = stage.model()?;
    let prompt = tokens(model, 40, 4);
    let whole = logits_of(model, &prompt)?;
    for chunks in [vec![1; 40], vec![39, 1], vec![1, 39], vec![16, 16, 8], vec![5, 11, 2, 22]] {
        let sequence = model.sequence_new().asked("a new sequence")?;
        let (mut position, mut logits) = (0, Vec::new());
        for &chunk in &chunks {
            logits = feed(model, sequence, position, &prompt[position..position + chunk], Want::LAST)?;
            position += chunk;
        }
        model.sequence_free(sequence);
        same(&format!("40 tokens whole and in {} chunks", chunks.len()), &whole, &logits)?;
    }
    Ok(())
}

/// Logits of several prompts, all fed in one step.
fn together(model: &mut Model, prompts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, End> {
    let mut rows = Vec::new();
    let mut fed: Vec<u32> = Vec::new();
    for prompt in prompts {
        let sequence = model.sequence_new().asked("a new sequence")?;
        let begin = fed.len() as u32;
        fed.extend(prompt);
        rows.push(Row {
            sequence,
            position: 0,
            tokens: begin..fed.len() as u32,
            want: Want::LAST,
            images: 0..0,
        });
    }
    let mut output = StepOutput::default();
    model.step(&rows, &fed, &[], &AtomicU32::new(0), &mut output).asked("a step of several rows")?;
    rows.iter().for_each(|row| model.sequence_free(row.sequence));
    (0..rows.len())
        .map(|row| match output.error(row) {
            Some(error) => broken(format!("row {row} of {} failed: {error}", rows.len())),
            None => Ok(output.logits(row).to_vec()),
        })
        .collect()
}

fn batched_is_alone(stage: &mut Stage) -> Outcome {
    let model = stage.model()?;
    for lengths in [vec![1, 1, 1, 1], vec![17, 1, 5, 1, 30], vec![8, 8]] {
        let prompts: Vec<_> =
            lengths.iter().zip(5..).map(|(&length, seed)| tokens(model, length, seed)).collect();
        let batched = together(model, &prompts)?;
        for (row, (prompt, logits)) in prompts.iter().zip(batched).enumerate() {
            let alone = logits_of(model, prompt)?;
            same(&format!("row {row} of {} rows and alone", lengths.len()), &alone, &logits)?;
        }
    }
    Ok(())
}

fn all_is_last(stage: &mut Stage) -> Outcome {
    let model = stage.model()?;
    let (prompt, vocab) = (tokens(model, 6, 9), model.info().vocab_size as usize);
    let sequence = model.sequence_new().asked("a new sequence")?;
    let all = feed(model, sequence, 0, &prompt, Want::ALL)?;
    model.sequence_free(sequence);
    ensure(all.len() == prompt.len() * vocab, || {
        format!("{} logits for {} tokens", all.len(), prompt.len())
    })?;
    for (place, logits) in all.chunks_exact(vocab).enumerate() {
        let prefix = logits_of(model, &prompt[..=place])?;
        same(&format!("token {place} of a row and as the last"), &prefix, logits)?;
    }
    let sequence = model.sequence_new().asked("a new sequence")?;
    let mut output = StepOutput::default();
    let row = super::stage::row(sequence, 0, prompt.len(), Want::TOKEN);
    model.step(&[row], &prompt, &[], &AtomicU32::new(0), &mut output).asked("a step")?;
    model.sequence_free(sequence);
    let last = &all[(prompt.len() - 1) * vocab..];
    let largest = last.iter().fold(f32::NEG_INFINITY, |largest, &logit| largest.max(logit));
    let chosen = output.token(0).and_then(|token| last.get(token as usize).copied());
    ensure(chosen.is_some_and(|logit| largest - logit <= 1e-3 * largest.abs()), || {
        format!(
            "the likeliest token was said to be {:?}, whose logit is {chosen:?}, not {largest}",
            output.token(0)
        )
    })
}
