//! Starting and ending worker processes.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::link::{SupervisorEnd, pump};

/// How to start a worker.
#[derive(Debug, Clone)]
pub struct WorkerCommand {
    /// The neuron binary.
    pub program: PathBuf,
    /// Arguments before any other; `worker` unless a test says otherwise.
    pub arguments: Vec<OsString>,
    /// More environment.
    pub environment: Vec<(OsString, OsString)>,
}

impl WorkerCommand {
    /// This very binary.
    pub fn this_binary() -> io::Result<Self> {
        // The link in /proc still leads to the running binary after an upgrade replaced the file.
        let program = PathBuf::from("/proc/self/exe");
        let program = if program.exists() { program } else { std::env::current_exe()? };
        Ok(Self { program, arguments: vec!["worker".into()], environment: Vec::new() })
    }

    /// Another binary, for tests.
    pub fn program(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), arguments: vec!["worker".into()], environment: Vec::new() }
    }
}

/// A running worker. Dropping it kills the process.
#[derive(Debug)]
pub struct WorkerProcess {
    child: Child,
    pid: u32,
}

impl WorkerProcess {
    /// Starts a worker that may keep `threads` threads busy, with `more` in its environment.
    ///
    /// Thread pools inside plugins read their sizes from the environment once, at first use, so they have to be
    /// right before the process starts; setting them later would race with readers.
    pub fn start(
        command: &WorkerCommand,
        threads: u32,
        more: &[(OsString, OsString)],
    ) -> io::Result<(Self, SupervisorEnd)> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let threads = threads.max(1).to_string();
        let child = Command::new(&command.program)
            .args(&command.arguments)
            .env("CANDLE_NUM_THREADS", &threads)
            .env("RAYON_NUM_THREADS", &threads)
            .envs(more.iter().map(|(name, value)| (name, value)))
            .envs(command.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().unwrap_or_default();
        let (end, _task) = pump(UnixStream::from_std(ours)?);
        Ok((Self { child, pid }, end))
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for the process to end by itself, kills it if that takes longer than `patience`.
    pub async fn end(mut self, patience: Duration) -> io::Result<ExitStatus> {
        match tokio::time::timeout(patience, self.child.wait()).await {
            Ok(status) => status,
            Err(_) => {
                self.child.start_kill()?;
                self.child.wait().await
            }
        }
    }

    /// Ends the process now, whatever it does.
    pub async fn kill(mut self) -> io::Result<ExitStatus> {
        self.child.start_kill()?;
        self.child.wait().await
    }
}
