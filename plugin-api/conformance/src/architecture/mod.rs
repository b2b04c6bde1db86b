//! Promises of an architecture.

mod arithmetic;
mod loading;
mod planning;
mod ranks;
mod refusing;
mod sequences;
mod stage;
mod vision;

pub(crate) use stage::Stage;

use crate::promise::Promise;

/// All of them, in the order they are tried: what is cheap and tells most comes first.
pub(crate) const PROMISES: &[&[Promise<Stage>]] = &[
    planning::PROMISES,
    loading::PROMISES,
    arithmetic::PROMISES,
    sequences::PROMISES,
    refusing::PROMISES,
    ranks::PROMISES,
    vision::PROMISES,
];
