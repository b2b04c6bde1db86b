//! Promises of routers and evictors: pure, total, quick, and able to say why.

mod evictor;
mod router;
mod scenes;

use plugin_loader::Plugin;

pub(crate) use evictor::PROMISES as EVICTOR;
pub(crate) use router::PROMISES as ROUTER;

/// One strategy on trial.
pub(crate) struct Stage {
    pub(crate) plugin: Plugin,
    pub(crate) name: String,
}

/// Options no strategy can have.
const BAD_OPTIONS: [&str; 4] = ["{\"no_such_option_at_all\": 1}", "{", "[1]", "\"x\""];

/// Milliseconds a decision among a thousand may take; a median, so that a busy machine is no fault.
const QUICK_MS: u128 = 50;
