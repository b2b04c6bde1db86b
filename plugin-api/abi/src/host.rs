//! What a host lends to a plugin: a log, a progress line, a thread budget.

use abi_stable::StableAbi;

use crate::primitive::Str;

/// Severity of a log record.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(pub u8);

impl Level {
    /// Nothing is logged.
    pub const OFF: Self = Self(0);
    /// Something failed.
    pub const ERROR: Self = Self(1);
    /// Something a person should look at.
    pub const WARN: Self = Self(2);
    /// Normal milestones.
    pub const INFO: Self = Self(3);
    /// For whoever debugs.
    pub const DEBUG: Self = Self(4);
    /// Everything.
    pub const TRACE: Self = Self(5);
}

/// One event of the plugin's `tracing`, on its way to the host's log.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct LogRecord {
    /// Severity.
    pub level: Level,
    /// Line in `file`, 0 when unknown.
    pub line: u32,
    /// Module path or target of the event.
    pub target: Str,
    /// Source file, empty when unknown.
    pub file: Str,
    /// The message with its fields appended as `key=value`.
    pub message: Str,
}

/// What a load is busy with.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase(pub u32);

impl Phase {
    /// Reading weights from disk.
    pub const READ: Self = Self(1);
    /// Quantizing weights.
    pub const QUANTIZE: Self = Self(2);
    /// Moving weights to the device.
    pub const UPLOAD: Self = Self(3);
    /// Compiling or warming up kernels.
    pub const WARM_UP: Self = Self(4);
}

/// Services lent to a plugin. Valid from `init` until the process ends; every call is thread-safe.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct Host {
    /// Passed back to every callback.
    pub context: *const u8,
    /// Takes one log record. Never blocks for long, never unwinds.
    pub log: unsafe extern "C" fn(context: *const u8, record: *const LogRecord),
    /// The most verbose level the host wants, as an `AtomicU8` holding a [`Level`]; read before formatting.
    pub max_level: *const u8,
    /// Threads a plugin may keep busy at once, including the calling one.
    pub threads: u32,
    /// Zero.
    pub reserved: u32,
}

/// Receives the progress of one load. Lent for the length of that call.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct Progress {
    /// Passed back to the callback.
    pub context: *const u8,
    /// `done` of `total` bytes of a [`Phase`]. Returns 0 to go on, anything else to cancel the load.
    pub report: unsafe extern "C" fn(context: *const u8, phase: Phase, done: u64, total: u64) -> u32,
}
