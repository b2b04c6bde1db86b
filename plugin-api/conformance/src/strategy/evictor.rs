//! Promises of an evictor.

use std::time::Instant;

use plugin_loader::{ErrorKind, EvictDecision, EvictRequest, Evictor, Purpose, Resident};

use super::scenes::{node, nodes};
use super::{BAD_OPTIONS, QUICK_MS, Stage};
use crate::promise::{Asked, End, Outcome, Promise, broken, ensure};

pub(crate) const PROMISES: &[Promise<Stage>] = &[
    Promise {
        name: "total",
        says: "It answers on every node, names only what may go, and only what helps.",
        check: total,
    },
    Promise {
        name: "pure",
        says: "Equal inputs give equal answers, from one evictor and from another.",
        check: pure,
    },
    Promise { name: "quick", says: "Among a thousand models it chooses at once.", check: quick },
    Promise {
        name: "explains",
        says: "Asked why, it gives each victim a score and a reason.",
        check: explains,
    },
    Promise {
        name: "refuses-unknown-options",
        says: "Options it does not know are refused.",
        check: |stage| {
            for options in BAD_OPTIONS {
                match stage.plugin.create_evictor(&stage.name, options) {
                    Ok(_) => return broken(format!("it took the options {options}")),
                    Err(error) if error.kind != ErrorKind::InvalidInput => {
                        return broken(format!(
                            "it refused the options {options} as {:?}: {error}",
                            error.kind
                        ));
                    }
                    Err(_) => {}
                }
            }
            Ok(())
        },
    },
];

/// Needs that are tried, in GiB: little, some, all, more than there is.
const NEEDS_GIB: [u64; 4] = [1, 20, 60, 1 << 20];

fn made(stage: &Stage) -> Result<Evictor, End> {
    stage.plugin.create_evictor(&stage.name, "").asked("making the evictor without options")
}

fn request(purpose: Purpose, need_gib: u64) -> EvictRequest {
    EvictRequest {
        purpose,
        class: 1,
        need_bytes: need_gib << 30,
        now_ms: 3_000_000,
        priority: 1,
        seed: 99,
        memo: 0.0,
    }
}

fn requests() -> impl Iterator<Item = EvictRequest> {
    let needs = NEEDS_GIB.into_iter().map(|need| request(Purpose::NEED, need));
    needs.chain([request(Purpose::SWEEP, 0), request(Purpose::NEED, 0)])
}

fn total(stage: &mut Stage) -> Outcome {
    let evictor = made(stage)?;
    for (what, residents) in nodes() {
        for request in requests() {
            let question = format!("choosing for {} bytes on {what}", request.need_bytes);
            let decision = evictor.choose(&request, &residents, true).asked(&question)?;
            ensure(decision.memo.is_finite(), || format!("{question}: the memo is {}", decision.memo))?;
            let enough = available(&residents) >= request.need_bytes;
            ensure(request.purpose != Purpose::NEED || enough || decision.victims.is_empty(), || {
                format!("{question}: it named victims that cannot meet the need")
            })?;
        }
    }
    Ok(())
}

fn available(residents: &[Resident]) -> u64 {
    let eligible = residents.iter().filter(|resident| resident.eligible != 0);
    eligible.fold(0, |sum, resident| sum.saturating_add(resident.bytes))
}

fn pure(stage: &mut Stage) -> Outcome {
    let (evictor, other) = (made(stage)?, made(stage)?);
    for (what, residents) in nodes() {
        for request in requests() {
            let ask = |evictor: &Evictor| evictor.choose(&request, &residents, true).asked("choosing");
            let first = ask(&evictor)?;
            for again in [ask(&evictor)?, ask(&other)?] {
                ensure(alike(&first, &again), || {
                    format!(
                        "on {what} it named {:?} once and {:?} the next time",
                        first.victims, again.victims
                    )
                })?;
            }
        }
    }
    Ok(())
}

/// Equal to the bit, scores that are no numbers included.
fn alike(a: &EvictDecision, b: &EvictDecision) -> bool {
    let bits = |scores: &[f64]| scores.iter().map(|score| score.to_bits()).collect::<Vec<_>>();
    a.victims == b.victims
        && bits(&a.scores) == bits(&b.scores)
        && a.explanation == b.explanation
        && a.memo.to_bits() == b.memo.to_bits()
}

fn quick(stage: &mut Stage) -> Outcome {
    let (evictor, residents) = (made(stage)?, node(1000, 13));
    let mut times = Vec::new();
    for need in [1, 40, 400, 4000, 1 << 20] {
        let begin = Instant::now();
        evictor.choose(&request(Purpose::NEED, need), &residents, false).asked("choosing")?;
        times.push(begin.elapsed());
    }
    times.sort();
    ensure(times[2].as_millis() <= QUICK_MS, || format!("it took {} ms", times[2].as_millis()))
}

fn explains(stage: &mut Stage) -> Outcome {
    let (evictor, residents) = (made(stage)?, node(6, 9));
    let decision = evictor.choose(&request(Purpose::NEED, 2), &residents, true).asked("choosing")?;
    for victim in &decision.victims {
        let prefix = format!("{victim}\t");
        let told =
            decision.explanation.lines().any(|line| line.starts_with(&prefix) && line.len() > prefix.len());
        ensure(told, || format!("nothing is said about victim {victim} in {:?}", decision.explanation))?;
        let score = decision.scores[*victim];
        ensure(score.is_finite(), || format!("victim {victim}'s score is {score}"))?;
    }
    Ok(())
}
