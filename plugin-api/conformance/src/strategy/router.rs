//! Promises of a router.

use std::time::Instant;

use plugin_loader::{ErrorKind, RouteDecision, RouteRequest, Router};

use super::scenes::{fleet, fleets};
use super::{BAD_OPTIONS, QUICK_MS, Stage};
use crate::promise::{Asked, End, Outcome, Promise, broken, ensure};

pub(crate) const PROMISES: &[Promise<Stage>] = &[
    Promise { name: "total", says: "It chooses in every fleet that has a node.", check: total },
    Promise {
        name: "pure",
        says: "Equal inputs give equal answers, from one router and from another.",
        check: pure,
    },
    Promise { name: "quick", says: "Among a thousand nodes it chooses at once.", check: quick },
    Promise {
        name: "explains",
        says: "Asked why, it gives the chosen node a score and a reason.",
        check: explains,
    },
    Promise {
        name: "refuses-unknown-options",
        says: "Options it does not know are refused.",
        check: |stage| {
            for options in BAD_OPTIONS {
                match stage.plugin.create_router(&stage.name, options) {
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

fn made(stage: &Stage) -> Result<Router, End> {
    stage.plugin.create_router(&stage.name, "").asked("making the router without options")
}

fn request(ordinal: u64, blocks: &[u64]) -> RouteRequest<'_> {
    RouteRequest {
        model: 42,
        session: 7 * ordinal,
        ordinal,
        seed: ordinal.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        now_ms: 5_000_000,
        prompt_tokens: 1200,
        max_tokens: 400,
        expected_tokens: 200.0,
        priority: 0,
        prefix_blocks: blocks,
        block_tokens: 16,
    }
}

fn total(stage: &mut Stage) -> Outcome {
    let router = made(stage)?;
    for (what, fleet) in fleets() {
        for ordinal in 0..4 {
            router
                .choose(&request(ordinal, &[1, 2, 3]), &fleet, ordinal % 2 == 0)
                .asked(&format!("choosing in {what}"))?;
        }
    }
    Ok(())
}

fn pure(stage: &mut Stage) -> Outcome {
    let (router, other) = (made(stage)?, made(stage)?);
    for (what, fleet) in fleets() {
        for ordinal in 0..4 {
            let ask =
                |router: &Router| router.choose(&request(ordinal, &[9]), &fleet, true).asked("choosing");
            let first = ask(&router)?;
            for again in [ask(&router)?, ask(&other)?] {
                ensure(alike(&first, &again), || {
                    format!(
                        "in {what} it chose {} with one score and {} with another",
                        first.index, again.index
                    )
                })?;
            }
        }
    }
    Ok(())
}

/// Equal to the bit, scores that are no numbers included.
fn alike(a: &RouteDecision, b: &RouteDecision) -> bool {
    let bits = |scores: &[f64]| scores.iter().map(|score| score.to_bits()).collect::<Vec<_>>();
    a.index == b.index && bits(&a.scores) == bits(&b.scores) && a.explanation == b.explanation
}

fn quick(stage: &mut Stage) -> Outcome {
    let (router, fleet) = (made(stage)?, fleet(1000, 11));
    let mut times = Vec::new();
    for ordinal in 0..5 {
        let begin = Instant::now();
        router.choose(&request(ordinal, &[]), &fleet, false).asked("choosing")?;
        times.push(begin.elapsed());
    }
    times.sort();
    ensure(times[2].as_millis() <= QUICK_MS, || format!("it took {} ms", times[2].as_millis()))
}

fn explains(stage: &mut Stage) -> Outcome {
    let (router, fleet) = (made(stage)?, fleet(6, 12));
    let decision = router.choose(&request(1, &[]), &fleet, true).asked("choosing")?;
    let prefix = format!("{}\t", decision.index);
    ensure(
        decision.explanation.lines().any(|line| line.starts_with(&prefix) && line.len() > prefix.len()),
        || format!("nothing is said about the chosen node {} in {:?}", decision.index, decision.explanation),
    )?;
    let score = decision.scores[decision.index];
    ensure(score.is_finite(), || format!("the chosen node's score is {score}"))
}
