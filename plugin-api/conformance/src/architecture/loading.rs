//! Loading and unloading: refusals, cancellation, and that nothing stays behind.

use std::time::{Duration, Instant};

use plugin_loader::{ErrorKind, Source, Want};

use super::planning::{broken_configs, shown};
use super::stage::{Stage, feed, tokens};
use crate::promise::{Asked, End, Outcome, Promise, broken, ensure};
use crate::witness;

/// Rounds before memory is measured: allocators and caches settle.
const WARM_UP: u32 = 10;

/// Growth that is not the plugin's fault.
const SLACK_BYTES: u64 = 6 << 20;

pub(crate) const PROMISES: &[Promise<Stage>] = &[
    Promise {
        name: "load-refuses",
        says: "load refuses a broken config.json with the right kind of error.",
        check: load_refuses,
    },
    Promise {
        name: "load-cancels",
        says: "load reports progress and stops when it is told to.",
        check: load_cancels,
    },
    Promise {
        name: "load-leaves-nothing",
        says: "Loading and unloading, again and again, leaves neither memory nor threads behind.",
        check: load_leaves_nothing,
    },
];

fn load_refuses(stage: &mut Stage) -> Outcome {
    for config in broken_configs() {
        let source = Source { config: config.clone(), ..Source::default() };
        match stage.plugin.load(stage.index, &source, &stage.options(), &mut |_, _, _| true) {
            Ok(_) => return broken(format!("it loaded a model from the config {:?}", shown(&config))),
            Err(error) if !matches!(error.kind, ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
                return broken(format!(
                    "the config {:?} was refused as {:?}: {error}",
                    shown(&config),
                    error.kind
                ));
            }
            Err(_) => {}
        }
    }
    Ok(())
}

fn load_cancels(stage: &mut Stage) -> Outcome {
    let source = stage.source()?;
    let mut reports = 0;
    let outcome = stage.plugin.load(stage.index, &source, &stage.options(), &mut |_, _, _| {
        reports += 1;
        false
    });
    match outcome {
        Ok(_) if reports == 0 => broken("it loaded without reporting progress once"),
        Ok(_) => broken("it loaded although it was told to stop"),
        Err(error) if error.kind == ErrorKind::Cancelled => Ok(()),
        Err(error) => broken(format!("told to stop, it failed with {:?}: {error}", error.kind)),
    }
}

fn load_leaves_nothing(stage: &mut Stage) -> Outcome {
    stage.unload();
    let mut settled = None;
    for round in 0..stage.loads.max(WARM_UP + 2) {
        let mut model = match stage.load(&stage.options())? {
            Ok(model) => model,
            Err(error) if round == 0 => {
                return Err(End::Skipped(format!("the model does not load: {error}")));
            }
            Err(error) => return broken(format!("load number {round} failed: {error}")),
        };
        let sequence = model.sequence_new().asked("a new sequence")?;
        let tokens = tokens(&model, 4, round);
        feed(&mut model, sequence, 0, &tokens, Want::LAST)?;
        drop(model); // the sequence is the model's: it goes with it
        if round == WARM_UP {
            settled = Some((witness::resident_bytes(), witness::threads()));
        }
    }
    let Some((bytes, threads)) = settled else { return Ok(()) };
    let grown = settle(|| witness::resident_bytes().saturating_sub(bytes), |grown| *grown <= SLACK_BYTES);
    ensure(grown <= SLACK_BYTES + bytes / 50, || {
        format!("memory grew by {grown} bytes in {} loads", stage.loads.max(WARM_UP + 2) - WARM_UP - 1)
    })?;
    let now = settle(witness::threads, |now| *now <= threads);
    ensure(now <= threads, || {
        format!("there were {threads} threads after the first loads and {now} after the last")
    })
}

/// Asks again for a little while: threads end and memory returns a moment after the call.
fn settle<T>(ask: impl Fn() -> T, good: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + Duration::from_millis(500);
    loop {
        let answer = ask();
        if good(&answer) || Instant::now() >= deadline {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
