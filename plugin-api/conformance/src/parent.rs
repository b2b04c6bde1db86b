//! The side that stays alive: starts children, reads what they found, goes on when one ends.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use plugin_loader::probe_in_child;

use crate::child::{Line, Task};
use crate::file::{self, Unopened};
use crate::promise::{End, Outcome};
use crate::report::{Finding, Report, Verdict};

/// How a plugin is checked.
#[derive(Debug, Clone)]
pub struct Options {
    /// A program whose hidden commands `plugin-probe` and `plugin-check` lead to
    /// [`plugin_loader::probe_main`] and [`child_main`](crate::child_main); neuron itself.
    pub program: PathBuf,
    /// Folder of a model to check architectures with; those that need no weights do without.
    pub model: Option<PathBuf>,
    /// How often the model is loaded and unloaded in search of growth.
    pub loads: u32,
    /// Longest time one promise may take.
    pub timeout: Duration,
}

impl Options {
    /// A hundred loads, no model, two minutes a promise.
    pub fn new(program: PathBuf) -> Self {
        Self { program, model: None, loads: 100, timeout: Duration::from_secs(120) }
    }
}

/// Checks every promise of the plugin file at `path`.
pub fn check(path: &Path, options: &Options) -> Report {
    let mut findings = check_file(path);
    let opened = probe_in_child(&options.program, path, options.timeout);
    findings.push(Finding {
        subject: "file".into(),
        promise: "opens".into(),
        says: "It opens in a process of its own, and describes itself as its descriptor does.".into(),
        verdict: opened
            .as_ref()
            .map_or_else(|refusal| Verdict::Broken(refusal.to_string()), |_| Verdict::Kept),
    });
    if opened.is_ok() {
        check_opened(path, options, &mut findings);
    }
    Report { file: path.to_owned(), findings }
}

fn check_file(path: &Path) -> Vec<Finding> {
    let mut unopened = Unopened { path: path.to_owned() };
    let findings = file::PROMISES.iter().map(|promise| Finding {
        subject: "file".into(),
        promise: promise.name.into(),
        says: promise.says.into(),
        verdict: verdict((promise.check)(&mut unopened)),
    });
    findings.collect()
}

pub(crate) fn verdict(outcome: Outcome) -> Verdict {
    match outcome {
        Ok(()) => Verdict::Kept,
        Err(End::Broken(how)) => Verdict::Broken(how),
        Err(End::Skipped(why)) => Verdict::Skipped(why),
    }
}

/// Tries everything that needs the opened plugin, in as many children as it takes.
fn check_opened(path: &Path, options: &Options, findings: &mut Vec<Finding>) {
    let mut tried = HashSet::new();
    loop {
        match run_child(path, options, &mut tried, findings) {
            Ok(Some(interrupted)) => findings.push(interrupted),
            Ok(None) => return,
            Err(why) => {
                findings.push(Finding {
                    subject: "file".into(),
                    promise: "runs".into(),
                    says: "It can be used in a process of its own.".into(),
                    verdict: Verdict::Broken(why),
                });
                return;
            }
        }
    }
}

/// Runs one child over all promises not tried yet. Returns the finding of the promise that ended it, `None`
/// when it came to its end, and an error when it ended before it tried anything.
fn run_child(
    path: &Path,
    options: &Options,
    tried: &mut HashSet<(String, String)>,
    findings: &mut Vec<Finding>,
) -> Result<Option<Finding>, String> {
    let task = Task {
        path: path.to_owned(),
        model: options.model.clone(),
        loads: options.loads,
        tried: tried.iter().cloned().collect(),
    };
    let task = serde_json::to_string(&task).map_err(|error| error.to_string())?;
    let mut child = Command::new(&options.program)
        .arg("plugin-check")
        .arg(task)
        .env("CUDA_VISIBLE_DEVICES", std::env::var_os("CUDA_VISIBLE_DEVICES").unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("{} cannot be run: {error}", options.program.display()))?;
    let (sender, lines) = mpsc::channel();
    let output = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let lines =
            output.into_iter().flat_map(|output| BufReader::new(output).lines().map_while(Result::ok));
        for line in lines {
            if let Ok(line) = serde_json::from_str::<Line>(&line)
                && sender.send(line).is_err()
            {
                return;
            }
        }
    });
    let mut current: Option<Finding> = None;
    let hung = loop {
        match lines.recv_timeout(options.timeout) {
            Ok(Line::Begin(finding)) => {
                tried.insert((finding.subject.clone(), finding.promise.clone()));
                current = Some(finding);
            }
            Ok(Line::End(finding)) => {
                findings.push(finding);
                current = None;
            }
            Ok(Line::Done) | Err(mpsc::RecvTimeoutError::Disconnected) => break false,
            Err(mpsc::RecvTimeoutError::Timeout) => break true,
        }
    };
    if hung {
        // It may just have ended by itself; then there is nothing left to kill.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    // The reader ends with the pipe.
    let _ = reader.join();
    let how = if hung {
        format!("it did not finish within {} s", options.timeout.as_secs())
    } else {
        format!("it ended the process: {status}")
    };
    match current {
        Some(finding) => Ok(Some(Finding { verdict: Verdict::Broken(how), ..finding })),
        None if status.success() && !hung => Ok(None),
        None => Err(how),
    }
}
