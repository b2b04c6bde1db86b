//! The same answer by two roads. None of this needs recorded outputs: the model is its own oracle.
//!
//! On a CPU in f32 a token's numbers do not depend on its company or on where a prompt was cut, so the first three are
//! compared bit for bit. Elsewhere kernels are chosen by the shape of their input; what is called `_near` allows a
//! distance for that.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use layers::batch::{Batch, BatchRow, Cancel, Decoder};
use layers::comm;
use layers::placement::Placement;
use layers::sequences::SequenceState;
use layers::trace::Trace;

use crate::report::{Distance, Report};
use crate::session::Session;

/// A prompt whole, in pieces of many sizes, and token by token.
pub fn check_pieces<D: Decoder>(decoder: &D, ids: &[u32]) -> Report {
    check_pieces_near(decoder, ids, 0.0)
}

/// As [`check_pieces`], allowing logits a distance.
pub fn check_pieces_near<D: Decoder>(decoder: &D, ids: &[u32], limit: f64) -> Report {
    let mut report = Report::default();
    let whole = Session::new(decoder).all(ids);
    for size in [1, 2, 3, 7, 63, 64, 65] {
        let mut session = Session::new(decoder);
        let pieces: Vec<Vec<f32>> = ids.chunks(size).flat_map(|piece| session.all(piece)).collect();
        same(&mut report, limit, &format!("pieces of {size}"), &pieces, &whole);
    }
    report
}

/// Sequences of several lengths in one step, prompts beside decodes, against each alone.
pub fn check_batch<D: Decoder>(decoder: &D, ids: &[u32]) -> Report {
    check_batch_near(decoder, ids, 0.0)
}

/// As [`check_batch`], allowing logits a distance.
pub fn check_batch_near<D: Decoder>(decoder: &D, ids: &[u32], limit: f64) -> Report {
    let mut report = Report::default();
    let third = ids.len() / 3;
    let prompts = [&ids[..third], &ids[third..2 * third], &ids[..1], &ids[third / 2..]];
    let mut together: Vec<D::State> = prompts.iter().map(|_| decoder.new_state()).collect();
    let mut alone: Vec<Session<'_, D>> = prompts.iter().map(|_| Session::new(decoder)).collect();
    // The last prompt joins when the others are already decoding.
    let steps: [Vec<&[u32]>; 3] = [
        vec![prompts[0], prompts[1], prompts[2], &[]],
        vec![&ids[7..8], &ids[5..8], &ids[9..10], prompts[3]],
        vec![&ids[1..2], &ids[2..3], &ids[3..4], &ids[4..5]],
    ];
    for (number, step) in steps.iter().enumerate() {
        let got = last_of_each(decoder, &mut together, step);
        let mut got = got.into_iter();
        for (sequence, tokens) in step.iter().enumerate().filter(|(_, tokens)| !tokens.is_empty()) {
            let expected = alone[sequence].last(*tokens);
            let stage = format!("step {number}, sequence {sequence}");
            same(&mut report, limit, &stage, &[got.next().unwrap_or_default()], &[expected]);
        }
    }
    report
}

/// A fork goes on as its original does, each without disturbing the other, and a frozen copy restores the same answer
/// (a warm start) that a sequence computed from nothing gives (a cold one).
pub fn check_fork<D: Decoder>(decoder: &D, ids: &[u32]) -> Report {
    check_fork_near(decoder, ids, 0.0)
}

/// As [`check_fork`], allowing logits a distance.
pub fn check_fork_near<D: Decoder>(decoder: &D, ids: &[u32], limit: f64) -> Report {
    let mut report = Report::default();
    for cut in [1, 2, ids.len() / 2, 64.min(ids.len() - 1), ids.len() - 1] {
        let (prefix, rest) = ids.split_at(cut);
        let cold = Session::new(decoder).all(ids);
        let mut original = Session::new(decoder);
        original.all(prefix);
        let frozen = original.fork();
        let mut other = original.fork();
        other.all(&ids[..ids.len() / 3]);
        same(
            &mut report,
            limit,
            &format!("original after a fork at {cut}"),
            &original.all(rest),
            &cold[cut..],
        );
        for _ in 0..2 {
            let mut warm = frozen.fork();
            same(&mut report, limit, &format!("warm from {cut}"), &warm.all(rest), &cold[cut..]);
            report.holds("length", warm.state.len() == ids.len(), || format!("{}", warm.state.len()));
        }
    }
    report
}

/// One rank against several. `load` builds a rank's decoder; a world that the checkpoint's dimensions do not allow is to be
/// refused with Unsupported, and then counts as compared.
pub fn check_ranks<D: Decoder + 'static>(
    worlds: &[usize],
    load: impl Fn(Placement) -> layers::Result<D> + Sync,
    ids: &[u32],
    limit: f64,
) -> Report {
    let mut report = Report::default();
    let solo = load(Placement::cpu()).expect("one rank loads");
    let expected = Session::new(&solo).all(ids).concat();
    for &world in worlds {
        let id = group_id();
        let run = |rank: usize| -> layers::Result<Vec<f32>> {
            let placement = Placement { comm: comm::local(&id, rank, world)?, ..Placement::cpu() };
            let decoder = load(placement)?;
            let mut session = Session::new(&decoder);
            let half = ids.len() / 2;
            let mut rows = session.all(&ids[..half]);
            rows.extend(session.all(&ids[half..ids.len() - 1]));
            rows.push(session.last(&ids[ids.len() - 1..]));
            Ok(rows.concat())
        };
        let run = &run;
        let results: Vec<layers::Result<Vec<f32>>> = thread::scope(|scope| {
            let ranks: Vec<_> = (0..world).map(|rank| scope.spawn(move || run(rank))).collect();
            ranks.into_iter().map(|rank| rank.join().expect("a rank does not panic")).collect()
        });
        for (rank, result) in results.iter().enumerate() {
            let stage = format!("rank {rank} of {world}");
            match result {
                Ok(got) => report.at_most(&stage, Distance::between(got, &expected).max, limit),
                Err(layers::Error::Unsupported(_)) => report.compared += 1,
                Err(error) => report.holds(&stage, false, || error.to_string()),
            }
        }
    }
    report
}

/// Names a group of ranks; no two in this process are alike.
pub fn group_id() -> [u8; 128] {
    static GROUPS: AtomicU64 = AtomicU64::new(1);
    let mut id = [0; 128];
    id[..8].copy_from_slice(&GROUPS.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    id
}

fn last_of_each<D: Decoder>(decoder: &D, states: &mut [D::State], rows: &[&[u32]]) -> Vec<Vec<f32>> {
    let tokens: Vec<u32> = rows.concat();
    let mut offset = 0;
    let mut logits_of = Vec::new();
    let mut batch_rows = Vec::new();
    for (state, row) in states.iter_mut().zip(rows).filter(|(_, row)| !row.is_empty()) {
        let position = state.len();
        batch_rows.push(BatchRow { state, offset, len: row.len(), position, images: Vec::new() });
        offset += row.len();
        logits_of.push(offset as u32 - 1);
    }
    let mut batch = Batch { tokens: &tokens, rows: batch_rows, logits_of, cancel: Cancel::never() };
    let logits = decoder.forward(&mut batch, &Trace::off()).expect("the step succeeds");
    logits.to_vec2().expect("logits are f32 rows")
}

fn same(report: &mut Report, limit: f64, stage: &str, got: &[Vec<f32>], expected: &[Vec<f32>]) {
    if limit > 0.0 {
        return report.at_most(stage, Distance::between(&got.concat(), &expected.concat()).max, limit);
    }
    report.holds(stage, got == expected, || {
        format!(
            "not the same bits; largest difference {:.2e}",
            Distance::between(&got.concat(), &expected.concat()).max
        )
    });
}
