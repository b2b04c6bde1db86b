//! The side that may die: opens the plugin and tries promise after promise.

use std::collections::HashSet;
use std::io::Write;
use std::path::PathBuf;

use plugin_loader::{HostServices, Level, Plugin, Policy};
use serde::{Deserialize, Serialize};

use crate::architecture::{self, Stage};
use crate::parent::verdict;
use crate::promise::{Promise, ensure};
use crate::report::{Finding, Verdict};
use crate::strategy;
use crate::witness::{self, Printed};

/// What a child is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) path: PathBuf,
    pub(crate) model: Option<PathBuf>,
    pub(crate) loads: u32,
    /// Subject and name of promises that were tried already.
    pub(crate) tried: Vec<(String, String)>,
}

/// What a child says, a line of JSON each.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Line {
    /// This promise is being tried.
    Begin(Finding),
    /// This is how it fared.
    End(Finding),
    /// All promises were tried.
    Done,
}

/// The child's side, behind the hidden command `plugin-check <task>`. Returns the exit code.
pub fn child_main(task: &str) -> i32 {
    let Ok(task) = serde_json::from_str::<Task>(task) else { return 2 };
    // The parent reads this process's real standard output; the plugin gets to see another one.
    let Ok(output) = rustix::io::dup(rustix::stdio::stdout()) else { return 3 };
    let Ok(printed) = Printed::divert() else { return 3 };
    let tried = task.tried.iter().cloned().collect();
    let mut trial = Trial { output: output.into(), printed, tried };
    match trial.run(&task) {
        Ok(()) => 0,
        Err(_) => 4,
    }
}

struct Trial {
    output: std::fs::File,
    printed: Printed,
    tried: HashSet<(String, String)>,
}

/// The process before the plugin came, for the promises about manners.
struct Manners {
    plugin: Plugin,
    signals: (String, String),
    surroundings_kept: bool,
}

const MANNERS: &[Promise<Manners>] = &[
    Promise {
        name: "signals",
        says: "It leaves the process's signals alone.",
        check: |manners| {
            let (before, after) = &manners.signals;
            ensure(before == after, || {
                format!("signals caught were {before} before it was opened and {after} after")
            })
        },
    },
    Promise {
        name: "surroundings",
        says: "It leaves working directory and environment alone.",
        check: |manners| {
            ensure(manners.surroundings_kept, || "working directory or environment changed".into())
        },
    },
    Promise {
        name: "offers-what-it-names",
        says: "Every architecture and strategy has a name and says what it serves.",
        check: |manners| {
            for info in manners.plugin.architectures() {
                ensure(!info.model_types.is_empty() || !info.gguf_architectures.is_empty(), || {
                    format!("{} serves no model at all", info.name)
                })?;
                let parallel = info.can(plugin_loader::capability::TENSOR_PARALLEL);
                ensure(parallel == (info.max_world > 1), || {
                    format!("{} says max_world {} and tensor parallel {parallel}", info.name, info.max_world)
                })?;
            }
            for info in manners.plugin.routers().iter().chain(manners.plugin.evictors()) {
                ensure(!info.summary.is_empty(), || format!("{} has no summary", info.name))?;
            }
            Ok(())
        },
    },
];

impl Trial {
    fn run(&mut self, task: &Task) -> std::io::Result<()> {
        let (signals, surroundings) = (witness::caught_signals(), witness::surroundings());
        let services = HostServices::new(|_| {}, Level::TRACE, 1);
        let opened = Plugin::open_under(&task.path, &services, &Policy::anything());
        let Ok(plugin) = opened else { return Err(std::io::ErrorKind::InvalidData.into()) };
        let mut manners = Manners {
            plugin,
            signals: (signals, witness::caught_signals()),
            surroundings_kept: surroundings == witness::surroundings(),
        };
        self.promises("file", MANNERS, &mut manners)?;
        for (index, info) in plugin.architectures().iter().enumerate() {
            let subject = format!("architecture {}", info.name);
            let mut stage = Stage::new(plugin, index, task.model.clone(), task.loads);
            for promises in architecture::PROMISES {
                self.promises(&subject, promises, &mut stage)?;
            }
        }
        for info in plugin.routers() {
            let mut stage = strategy::Stage { plugin, name: info.name.clone() };
            self.promises(&format!("router {}", info.name), strategy::ROUTER, &mut stage)?;
        }
        for info in plugin.evictors() {
            let mut stage = strategy::Stage { plugin, name: info.name.clone() };
            self.promises(&format!("evictor {}", info.name), strategy::EVICTOR, &mut stage)?;
        }
        self.say(&Line::Done)
    }

    /// Tries each promise that was not tried yet; after all of them, whether anything was printed.
    fn promises<T>(&mut self, subject: &str, promises: &[Promise<T>], stage: &mut T) -> std::io::Result<()> {
        let before = self.printed.bytes();
        for promise in promises {
            self.promise(subject, promise, stage)?;
        }
        let group = promises.first().map_or("", |promise| promise.name);
        let printed = self.printed.bytes() - before;
        if printed > 0 {
            let finding = Finding {
                subject: subject.to_owned(),
                promise: "quiet".into(),
                says: "It prints nothing; what it has to say goes to the host's log.".into(),
                verdict: Verdict::Broken(format!("{printed} bytes were printed from {group} on")),
            };
            self.say(&Line::End(finding))?;
        }
        Ok(())
    }

    fn promise<T>(&mut self, subject: &str, promise: &Promise<T>, stage: &mut T) -> std::io::Result<()> {
        if !self.tried.insert((subject.to_owned(), promise.name.to_owned())) {
            return Ok(());
        }
        let mut finding = Finding {
            subject: subject.to_owned(),
            promise: promise.name.into(),
            says: promise.says.into(),
            verdict: Verdict::Kept,
        };
        self.say(&Line::Begin(finding.clone()))?;
        finding.verdict = verdict((promise.check)(stage));
        self.say(&Line::End(finding))
    }

    fn say(&mut self, line: &Line) -> std::io::Result<()> {
        writeln!(self.output, "{}", serde_json::to_string(line)?)
    }
}
