//! What a process shows to the outside: memory, threads, signals it catches, what it printed.

use std::fs;
use std::os::fd::AsFd;

/// Resident memory of this process in bytes.
pub(crate) fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Threads of this process.
pub(crate) fn threads() -> usize {
    fs::read_dir("/proc/self/task").map_or(0, |tasks| tasks.count())
}

/// Signals this process catches, as the kernel's bit mask in hex.
pub(crate) fn caught_signals() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("").trim().to_owned()
}

/// Where this process works, and what its environment says.
pub(crate) fn surroundings() -> (Option<std::path::PathBuf>, Vec<(std::ffi::OsString, std::ffi::OsString)>) {
    let mut variables: Vec<_> = std::env::vars_os().collect();
    variables.sort();
    (std::env::current_dir().ok(), variables)
}

/// Catches what this process prints to standard output and standard error from now on.
pub(crate) struct Printed(fs::File);

impl Printed {
    /// Diverts both into a nameless file.
    pub(crate) fn divert() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("plugin-check-{}", std::process::id()));
        let file = fs::OpenOptions::new().create_new(true).append(true).read(true).open(&path)?;
        fs::remove_file(&path)?;
        rustix::stdio::dup2_stdout(file.as_fd())?;
        rustix::stdio::dup2_stderr(file.as_fd())?;
        Ok(Self(file))
    }

    /// Bytes printed so far.
    pub(crate) fn bytes(&self) -> u64 {
        // What the standard library still holds back counts as well.
        let _ = std::io::Write::flush(&mut std::io::stdout());
        self.0.metadata().map_or(0, |metadata| metadata.len())
    }
}
