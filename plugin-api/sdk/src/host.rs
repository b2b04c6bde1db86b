//! The host as a plugin sees it: a sink for `tracing` events and a thread budget.
//!
//! Each loaded file has its own copy of `tracing`, blind to the host's subscriber; the bridge below is the
//! subscriber of that copy.

use std::fmt::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use plugin_abi::host::{Host, Level, LogRecord};
use plugin_abi::{Code, Failure, Str};
use tracing_core::field::{Field, Visit};
use tracing_core::span::{Attributes, Id, Record};
use tracing_core::{Event, Interest, LevelFilter, Metadata, Subscriber};

use crate::error::Error;
use crate::glue::guard::guard;

struct Lent(Host);

// SAFETY: the host promises that its services are thread-safe and outlive the process's use of the plugin.
unsafe impl Send for Lent {}
// SAFETY: as above.
unsafe impl Sync for Lent {}

static HOST: OnceLock<Lent> = OnceLock::new();

/// Threads this plugin may keep busy at once, including the calling one.
pub fn thread_budget() -> usize {
    HOST.get().map_or(1, |lent| lent.0.threads.max(1) as usize)
}

/// `init` of a plugin in a file of its own: takes over `tracing` and the panic hook of this copy.
pub(crate) unsafe extern "C" fn init_loaded(host: *const Host, failure: *mut Failure) -> Code {
    // SAFETY: the loader passes valid pointers; both are read for the length of this call only.
    let (host, failure) = unsafe { (*host, &mut *failure) };
    guard(failure, || {
        if HOST.set(Lent(host)).is_err() {
            return Ok(());
        }
        tracing_core::dispatcher::set_global_default(tracing_core::Dispatch::new(Bridge))
            .map_err(|_| Error::Internal("another tracing subscriber is installed in this plugin".into()))?;
        std::panic::set_hook(Box::new(|panic| {
            let file = panic.location().map_or("", |location| location.file());
            let line = panic.location().map_or(0, |location| location.line());
            send(Level::ERROR, "panic", file, line, &panic.to_string());
        }));
        Ok(())
    })
}

/// `init` of a plugin linked into the host: `tracing` and the panic hook are the host's own already.
pub(crate) unsafe extern "C" fn init_embedded(host: *const Host, _failure: *mut Failure) -> Code {
    // SAFETY: the loader passes a valid pointer, read for the length of this call only.
    let _ = HOST.set(Lent(unsafe { *host }));
    Code::OK
}

fn send(level: Level, target: &str, file: &str, line: u32, message: &str) {
    if let Some(Lent(host)) = HOST.get() {
        let record = LogRecord {
            level,
            line,
            target: Str::new(target),
            file: Str::new(file),
            message: Str::new(message),
        };
        // SAFETY: context and callback are the host's and live as long as the process; the record's text is
        // borrowed for this call.
        unsafe { (host.log)(host.context, &record) }
    }
}

fn host_level() -> u8 {
    HOST.get().map_or(0, |lent| {
        // SAFETY: the host promises an AtomicU8 that lives as long as the process.
        unsafe { &*lent.0.max_level.cast::<AtomicU8>() }.load(Ordering::Relaxed)
    })
}

fn level_of(metadata: &Metadata<'_>) -> Level {
    match *metadata.level() {
        tracing_core::Level::ERROR => Level::ERROR,
        tracing_core::Level::WARN => Level::WARN,
        tracing_core::Level::INFO => Level::INFO,
        tracing_core::Level::DEBUG => Level::DEBUG,
        tracing_core::Level::TRACE => Level::TRACE,
    }
}

/// Forwards events; spans carry no data of their own across the boundary.
struct Bridge;

impl Subscriber for Bridge {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes() // the host may change its level at any time
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        level_of(metadata).0 <= host_level()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        None
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let mut text = Text::default();
        event.record(&mut text);
        send(
            level_of(metadata),
            metadata.target(),
            metadata.file().unwrap_or(""),
            metadata.line().unwrap_or(0),
            &text.finish(),
        );
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn finish(self) -> String {
        self.message + &self.fields
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}
