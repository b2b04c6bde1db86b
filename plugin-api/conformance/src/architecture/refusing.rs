//! Bad input: a wrong row fails alone and with the right kind, whatever the batch looks like.

use std::sync::atomic::AtomicU32;

use plugin_loader::{ErrorKind, ImageId, ImageSpan, Model, Row, SequenceId, StepOutput, Want};

use super::stage::{Stage, feed, logits_of, row, same, tokens};
use crate::promise::{Asked, End, Outcome, Promise, broken, ensure};

/// Hostile batches that are tried.
const BATCHES: u32 = 300;

pub(crate) const PROMISES: &[Promise<Stage>] = &[
    Promise {
        name: "a-bad-row-fails-alone",
        says: "A wrong row is refused as invalid input; the other rows of its step are not disturbed.",
        check: bad_rows,
    },
    Promise {
        name: "hostile-batches",
        says: "Batches of any shape end in an answer row by row, and the model works as before.",
        check: hostile_batches,
    },
];

fn bad_rows(stage: &mut Stage) -> Outcome {
    let model = stage.model()?;
    let info = *model.info();
    let good = tokens(model, 8, 21);
    let expected = logits_of(model, &good)?;
    let [freed, standing] = [(); 2].map(|()| model.sequence_new());
    let (freed, standing) = (freed.asked("a new sequence")?, standing.asked("a new sequence")?);
    model.sequence_free(freed);
    feed(model, standing, 0, &good[..2], Want::NOTHING)?;
    let mut fed = good.clone();
    fed.push(info.vocab_size);
    fed.push(u32::MAX);
    let long = vec![good[0]; info.max_context as usize + 1];
    let offset = fed.len() as u32;
    fed.extend(&long);
    let bad = |sequence, position, tokens| Row { sequence, position, tokens, want: Want::LAST, images: 0..0 };
    let cases = [
        ("a freed sequence", bad(freed, 0, 0..1)),
        ("a sequence that never was", bad(SequenceId::from_number(0xdead_beef), 0, 0..1)),
        ("a wrong position", bad(standing, 1, 0..1)),
        ("no tokens", bad(standing, 2, 0..0)),
        ("a token outside the vocabulary", bad(standing, 2, 8..9)),
        ("the largest token id there is", bad(standing, 2, 9..10)),
        ("tokens outside the step", bad(standing, 2, offset + 1..u32::MAX)),
        ("more tokens than the context holds", bad(standing, 2, offset..offset + long.len() as u32)),
        ("images outside the step", Row { images: 3..9, ..bad(standing, 2, 0..1) }),
    ];
    for (what, wrong) in cases {
        let fresh = model.sequence_new().asked("a new sequence")?;
        let rows = [wrong, row(fresh, 0, good.len(), Want::LAST)];
        let mut output = StepOutput::default();
        model
            .step(&rows, &fed, &[], &AtomicU32::new(0), &mut output)
            .asked(&format!("a step with a sound row and one with {what}"))?;
        match output.error(0) {
            Some(error) if error.kind == ErrorKind::InvalidInput => {}
            Some(error) => return broken(format!("a row with {what} failed with {:?}: {error}", error.kind)),
            None => return broken(format!("a row with {what} was taken")),
        }
        ensure(output.error(1).is_none(), || format!("beside a row with {what} a sound row failed"))?;
        same(&format!("a row beside one with {what}"), &expected, output.logits(1))?;
        model.sequence_free(fresh);
    }
    let continued = feed(model, standing, 2, &good[2..], Want::LAST)?;
    model.sequence_free(standing);
    same("a sequence after rows of it were refused", &expected, &continued)
}

fn hostile_batches(stage: &mut Stage) -> Outcome {
    let model = stage.model()?;
    let prompt = tokens(model, 10, 22);
    let expected = logits_of(model, &prompt)?;
    let mut dice = Dice(0x5eed);
    let mut ids: Vec<SequenceId> = Vec::new();
    for batch in 0..BATCHES {
        while ids.len() < 4 {
            ids.push(model.sequence_new().asked("a new sequence")?);
        }
        let outcome = hostile_step(model, &mut dice, &ids);
        if let Err(End::Broken(how)) = outcome {
            return broken(format!("hostile batch {batch}: {how}"));
        }
        if dice.below(3) == 0 {
            let at = dice.below(ids.len() as u32) as usize;
            model.sequence_free(ids.swap_remove(at));
        }
    }
    ids.into_iter().for_each(|id| model.sequence_free(id));
    same("a prompt before and after hostile batches", &expected, &logits_of(model, &prompt)?)
}

fn hostile_step(model: &mut Model, dice: &mut Dice, ids: &[SequenceId]) -> Outcome {
    let vocab = model.info().vocab_size;
    let count = dice.below(40);
    let fed: Vec<u32> = (0..count)
        .map(|_| if dice.below(40) == 0 { vocab + dice.below(9) } else { dice.below(vocab) })
        .collect();
    let rows: Vec<Row> = (0..dice.below(7)).map(|_| hostile_row(dice, ids, count)).collect();
    let images: Vec<ImageSpan> = (0..dice.below(2))
        .map(|_| ImageSpan {
            image: ImageId::from_number(u64::from(dice.below(5))),
            position: dice.below(50),
            token_count: dice.below(50),
        })
        .collect();
    let mut output = StepOutput::default();
    match model.step(&rows, &fed, &images, &AtomicU32::new(0), &mut output) {
        Err(error) => broken(format!("the whole batch failed with {:?}: {error}", error.kind)),
        Ok(()) => {
            for row in 0..rows.len() {
                if let Some(error) = output.error(row)
                    && error.kind == ErrorKind::Internal
                {
                    return broken(format!("row {row} failed with {:?}: {error}", error.kind));
                }
            }
            Ok(())
        }
    }
}

fn hostile_row(dice: &mut Dice, ids: &[SequenceId], count: u32) -> Row {
    let sequence = if dice.below(6) == 0 {
        SequenceId::from_number(u64::from(dice.next()) << dice.below(33))
    } else {
        ids[dice.below(ids.len() as u32) as usize]
    };
    let begin = dice.below(count + 2);
    let end = if dice.below(12) == 0 { u32::MAX } else { (begin + dice.below(9)).min(count + 1) };
    Row {
        sequence,
        position: if dice.below(2) == 0 { 0 } else { dice.below(40) },
        tokens: begin..end,
        want: Want(dice.below(6)),
        images: if dice.below(8) == 0 { dice.below(3)..dice.below(4) } else { 0..0 },
    }
}

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    fn below(&mut self, limit: u32) -> u32 {
        self.next() % limit.max(1)
    }
}
