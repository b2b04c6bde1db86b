//! Opening a file in a throw-away child first: constructors run inside `dlopen`, and one that crashes, hangs
//! or ends the process must not take the host with it.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Resource, Rlimit, Signal};
use serde::{Deserialize, Serialize};

use crate::plugin::{ArchitectureInfo, BuildInfo, Plugin, StrategyInfo};
use crate::refusal::{Cause, Refusal};
use crate::services::HostServices;
use crate::trust::Policy;
use plugin_abi::host::Level;

/// Name of the environment variable with the number the child must repeat. A constructor that ends the process
/// with success does not know it.
const NONCE: &str = "NEURON_PLUGIN_PROBE";

/// Processor seconds a child may use.
const CPU_SECONDS: u64 = 20;

/// What a plugin says of itself once opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How it was compiled.
    pub build: BuildInfo,
    /// The architectures it offers.
    pub architectures: Vec<ArchitectureInfo>,
    /// The routers it offers.
    pub routers: Vec<StrategyInfo>,
    /// The evictors it offers.
    pub evictors: Vec<StrategyInfo>,
}

#[derive(Serialize, Deserialize)]
struct Answer {
    nonce: String,
    result: Result<Report, Refusal>,
}

/// The child's side, behind the hidden command `plugin-probe <path>`: limits this process, opens the file,
/// prints one line of JSON. Returns the exit code. Trust is the parent's business.
pub fn probe_main(path: &Path) -> i32 {
    confine();
    let nonce = std::env::var(NONCE).unwrap_or_default();
    let services = HostServices::new(|_| {}, Level::OFF, 1);
    let result = Plugin::open_under(path, &services, &Policy::anything()).map(|plugin| Report {
        build: plugin.build_info().clone(),
        architectures: plugin.architectures().to_vec(),
        routers: plugin.routers().to_vec(),
        evictors: plugin.evictors().to_vec(),
    });
    match serde_json::to_string(&Answer { nonce, result }) {
        Ok(line) => {
            println!("\n{line}");
            0
        }
        Err(_) => 1,
    }
}

/// Takes away what a probe does not need. A system that refuses one of these still gets the others.
fn confine() {
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let _ = rustix::thread::set_no_new_privs(true);
    let limit = |value| Rlimit { current: Some(value), maximum: Some(value) };
    let _ = rustix::process::setrlimit(Resource::Core, limit(0));
    let _ = rustix::process::setrlimit(Resource::Cpu, limit(CPU_SECONDS));
    let _ = rustix::process::setrlimit(Resource::Fsize, limit(0));
}

/// Opens the file at `path` in a child: `exe plugin-probe <path>`, with an empty environment and no GPU in
/// sight. The child is killed when `timeout` has passed.
///
/// # Errors
/// The child's own refusal, or one that says how the child ended.
pub fn probe_in_child(exe: &Path, path: &Path, timeout: Duration) -> Result<Report, Refusal> {
    let refuse = |cause| Refusal::new(path, cause);
    let nonce = nonce();
    let mut command = Command::new(exe);
    command.arg("plugin-probe").arg(path).env_clear().env(NONCE, &nonce).env("CUDA_VISIBLE_DEVICES", "");
    for kept in ["LD_LIBRARY_PATH", "PATH"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| refuse(Cause::ProbeFailed(error.to_string())))?;
    let output = collect(child.stdout.take());
    let complaints = collect(child.stderr.take());
    let Some(status) =
        wait(&mut child, timeout).map_err(|error| refuse(Cause::ProbeFailed(error.to_string())))?
    else {
        return Err(refuse(Cause::ProbeHung(timeout.as_millis() as u64)));
    };
    // A grandchild may hold the pipe open for ever: the child's own end is what counts, with a little patience.
    let output = output.recv_timeout(timeout).unwrap_or_default();
    let answer = output
        .lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<Answer>(line).ok())
        .find(|answer| answer.nonce == nonce);
    match answer {
        Some(answer) if status.success() => answer.result,
        _ => Err(refuse(Cause::ProbeDied(ending(
            status,
            &complaints.recv_timeout(timeout).unwrap_or_default(),
        )))),
    }
}

/// Differs from every earlier one; it need not be secret.
fn nonce() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    format!("{}-{}-{now}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Most of a child's output that is kept, in bytes.
const KEPT: u64 = 1 << 20;

/// Reads a pipe on a thread of its own, so that a talkative child never blocks, and sends what it read at the end.
fn collect(pipe: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error still counts.
            let _ = pipe.by_ref().take(KEPT).read_to_end(&mut bytes);
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        }
        // Nobody listens any more when the child was killed.
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

/// Waits until the child ends; `None` when it had to be killed.
fn wait(child: &mut Child, timeout: Duration) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// How the child ended, with the last line it complained with.
fn ending(status: ExitStatus, complaints: &str) -> String {
    let how = match (status.signal(), status.code()) {
        (Some(signal), _) => format!("it was killed by signal {signal}{}", signal_name(signal)),
        (None, Some(0)) => "it exited with success but without an answer".into(),
        (None, code) => format!("it exited with status {}", code.unwrap_or(-1)),
    };
    match complaints.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(line) => format!("{how} ({})", line.trim()),
        None => how,
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => " (illegal instruction)",
        6 => " (abort)",
        7 => " (bus error)",
        8 => " (arithmetic error)",
        9 => " (killed)",
        11 => " (segmentation fault)",
        24 => " (too much processor time)",
        _ => "",
    }
}
