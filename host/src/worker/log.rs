//! A worker's log, on its way to the supervisor's.
//!
//! Everything the worker and its plugin log goes over the link, so that one log tells the whole story and
//! standard error stays free for what a crash prints.

use std::fmt::Write as _;

use tokio::sync::mpsc::UnboundedSender;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::protocol::FromWorker;

/// Environment variable with the filter of the log, as for the supervisor.
pub const FILTER: &str = "NEURON_LOG";

struct OverLink(UnboundedSender<FromWorker>);

impl<S: Subscriber> Layer<S> for OverLink {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        // The link is gone: so will be this process.
        let _ = self.0.send(FromWorker::Log {
            level: level_number(*event.metadata().level()),
            target: text.from.unwrap_or_else(|| event.metadata().target().to_owned()),
            message: text.message + &text.fields,
        });
    }
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
    /// The plugin's own target, when the event came out of one.
    from: Option<String>,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "from" {
            self.from = Some(value.to_owned());
        } else {
            self.record_debug(field, &format_args!("{value}"));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a String does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

fn level_number(level: Level) -> u8 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

/// Sends this process's log over the link from now on.
pub fn install(to_supervisor: UnboundedSender<FromWorker>) {
    let filter = EnvFilter::try_from_env(FILTER).unwrap_or_else(|_| EnvFilter::new("info"));
    // Already installed: a test that runs several workers in one process.
    let _ = tracing_subscriber::registry().with(filter).with(OverLink(to_supervisor)).try_init();
}

/// Puts a record of a worker's log into this process's.
pub fn emit(model: &str, pid: u32, level: u8, target: &str, message: &str) {
    match level {
        1 => tracing::error!(target: "worker", model, pid, from = target, "{message}"),
        2 => tracing::warn!(target: "worker", model, pid, from = target, "{message}"),
        3 => tracing::info!(target: "worker", model, pid, from = target, "{message}"),
        4 => tracing::debug!(target: "worker", model, pid, from = target, "{message}"),
        _ => tracing::trace!(target: "worker", model, pid, from = target, "{message}"),
    }
}
