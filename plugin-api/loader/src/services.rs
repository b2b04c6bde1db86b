//! What this host lends to its plugins: a log and a thread budget.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};

use plugin_abi::Str;
use plugin_abi::host::{Host, Level, LogRecord};

/// One event of a plugin's `tracing`, on its way to the host's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogEvent<'a> {
    /// Severity.
    pub level: Level,
    /// Module path or target of the event; `panic` for a panic message.
    pub target: &'a str,
    /// Source file, empty when unknown.
    pub file: &'a str,
    /// Line in `file`, 0 when unknown.
    pub line: u32,
    /// The message with its fields appended as `key=value`.
    pub message: &'a str,
}

type Sink = Box<dyn Fn(LogEvent<'_>) + Send + Sync>;

struct Services {
    sink: Sink,
    max_level: AtomicU8,
    threads: u32,
}

/// Services lent to plugins. Cheap to copy; lives as long as the process, as plugins do.
#[derive(Clone, Copy)]
pub struct HostServices(&'static Services);

impl HostServices {
    /// Sends plugins' log events up to `level` to `sink`, and grants `threads` busy threads to each plugin.
    /// `sink` is called from any thread and must not block for long.
    pub fn new(sink: impl Fn(LogEvent<'_>) + Send + Sync + 'static, level: Level, threads: u32) -> Self {
        let services = Services { sink: Box::new(sink), max_level: AtomicU8::new(level.0), threads };
        Self(Box::leak(Box::new(services)))
    }

    /// Sends plugins' log events to this process's `tracing`, under the target `plugin` with the plugin's own
    /// target, file and line as fields.
    pub fn tracing(threads: u32) -> Self {
        Self::new(emit, level_of(tracing::level_filters::LevelFilter::current()), threads)
    }

    /// Changes the most verbose level that plugins format and send, from now on.
    pub fn set_level(&self, level: Level) {
        self.0.max_level.store(level.0, Ordering::Relaxed);
    }

    /// Hands one event to the sink, as if a plugin had sent it.
    pub fn log(&self, event: LogEvent<'_>) {
        (self.0.sink)(event);
    }

    pub(crate) fn lend(&self) -> Host {
        Host {
            context: std::ptr::from_ref(self.0).cast(),
            log: receive,
            max_level: self.0.max_level.as_ptr(),
            threads: self.0.threads,
            reserved: 0,
        }
    }
}

fn level_of(filter: tracing::level_filters::LevelFilter) -> Level {
    use tracing::level_filters::LevelFilter;
    match filter {
        LevelFilter::OFF => Level::OFF,
        LevelFilter::ERROR => Level::ERROR,
        LevelFilter::WARN => Level::WARN,
        LevelFilter::INFO => Level::INFO,
        LevelFilter::DEBUG => Level::DEBUG,
        _ => Level::TRACE,
    }
}

fn emit(event: LogEvent<'_>) {
    let LogEvent { level, target, file, line, message } = event;
    match level {
        Level::ERROR => tracing::error!(target: "plugin", from = target, file, line, "{message}"),
        Level::WARN => tracing::warn!(target: "plugin", from = target, file, line, "{message}"),
        Level::INFO => tracing::info!(target: "plugin", from = target, file, line, "{message}"),
        Level::DEBUG => tracing::debug!(target: "plugin", from = target, file, line, "{message}"),
        _ => tracing::trace!(target: "plugin", from = target, file, line, "{message}"),
    }
}

unsafe extern "C" fn receive(context: *const u8, record: *const LogRecord) {
    // SAFETY: `context` is the leaked Services of `lend`; the plugin passes a record that is valid for the
    // length of this call, as `Host::log` demands.
    let (services, record) = unsafe { (&*context.cast::<Services>(), &*record) };
    // SAFETY: the record's text is valid for the length of this call.
    let text = |text: Str| String::from_utf8_lossy(unsafe { bytes(text) });
    // Nothing may unwind into the plugin; a sink that panics loses this record only.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        (services.sink)(LogEvent {
            level: record.level,
            target: &text(record.target),
            file: &text(record.file),
            line: record.line,
            message: &text(record.message),
        });
    }));
}

/// # Safety
/// The text must be valid for `'a`.
unsafe fn bytes<'a>(text: Str) -> &'a [u8] {
    // SAFETY: the caller vouches for it.
    unsafe { plugin_abi::Slice { ptr: text.ptr, len: text.len }.as_slice() }
}
