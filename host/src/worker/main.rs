//! The worker process: what runs behind the hidden command `neuron worker`.
//!
//! The link to the supervisor is this process's standard input. The main thread takes orders from it, the
//! `engine` thread runs the model, one thread per rank owns a device, and the `pulse` thread says every second
//! that all is well. The process ends when the link does, whatever it is doing; a worker never outlives its
//! supervisor.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use plugin_loader::{HostServices, Policy};
use tokio::sync::mpsc::UnboundedSender;

use super::link::{self, WorkerEnd};
use super::log;
use super::message::FailureCode;
use super::protocol::{EngineLimits, FromWorker, LoadOrder, LoadPhase, PROTOCOL, ToWorker};
use crate::device::group::Group;
use crate::device::plugin::{LoadProgress, Opened};
use crate::device::rank::DeviceError;
use crate::device::thread::ReplySink;
use crate::discovery::memory::resident_bytes;
use crate::engine::run::{Engine, Fatal, Gauge, Mail};

/// Exit status of a worker that gave up: its device hung, or its model is poisoned.
pub const GAVE_UP: u8 = 70;

/// How often a worker says that it is well.
const PULSE: Duration = Duration::from_millis(1000);

/// How long a worker that gave up waits for the supervisor to hang up.
const FAREWELL: Duration = Duration::from_secs(5);

/// Progress of a load is reported at most this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

/// What the process exits with when the link ends.
static EXIT: AtomicU8 = AtomicU8::new(0);

/// Runs what neuron starts itself as, if the command line says so: `worker`, `plugin-probe <file>` or
/// `plugin-check <task>`. None is for people, and none may pay for parsing a command line or for starting a runtime.
pub fn hidden_command() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next()?.to_str()? {
        "worker" => Some(run()),
        "plugin-probe" => {
            let status = plugin_loader::probe_main(arguments.next()?.as_ref());
            Some(ExitCode::from(u8::try_from(status).unwrap_or(1)))
        }
        "plugin-check" => {
            let status = plugin_conformance::child_main(arguments.next()?.to_str()?);
            Some(ExitCode::from(u8::try_from(status).unwrap_or(1)))
        }
        _ => None,
    }
}

/// Runs a worker on standard input until the link ends.
pub fn run() -> ExitCode {
    let socket = match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(fd) => UnixStream::from(fd),
        Err(error) => return refuse_to_start(&error),
    };
    if let Err(error) = socket.peer_addr() {
        return refuse_to_start(&error);
    }
    let end =
        match link::pump_blocking(socket, || std::process::exit(i32::from(EXIT.load(Ordering::Relaxed)))) {
            Ok(end) => end,
            Err(error) => return refuse_to_start(&error),
        };
    log::install(end.to_supervisor.clone());
    ExitCode::from(serve(end))
}

#[allow(clippy::print_stderr)] // there is no link to say it over
fn refuse_to_start(error: &std::io::Error) -> ExitCode {
    eprintln!("neuron worker is started by neuron serve, with a socket as its standard input: {error}");
    ExitCode::FAILURE
}

/// Runs a worker on one end of a link until the other end is gone or says [`ToWorker::Unload`]. The exit
/// status.
pub fn serve(end: WorkerEnd) -> u8 {
    let WorkerEnd { to_supervisor, mut from_supervisor } = end;
    let mut worker = Worker::new(to_supervisor);
    worker.say(FromWorker::Hello { protocol: PROTOCOL, pid: std::process::id() });
    while let Some(message) = from_supervisor.blocking_recv() {
        match message {
            ToWorker::Plan { call, order } => worker.plan(call, order),
            ToWorker::Load { call, order, limits } => worker.load(call, order, limits),
            ToWorker::Submit { id, submission } => worker.mail(id, Mail::Submit(id, submission)),
            ToWorker::Cancel { id } => worker.mail(id, Mail::Cancel(id)),
            ToWorker::Unload => break,
        }
    }
    worker.close()
}

struct Worker {
    to_supervisor: UnboundedSender<FromWorker>,
    gauge: Arc<Mutex<Arc<Gauge>>>,
    engine: Option<(Sender<Mail>, JoinHandle<()>)>,
}

impl Worker {
    fn new(to_supervisor: UnboundedSender<FromWorker>) -> Self {
        let gauge = Arc::new(Mutex::new(Arc::new(Gauge::default())));
        let (pulse_gauge, pulse_out) = (Arc::clone(&gauge), to_supervisor.clone());
        let pulse = std::thread::Builder::new().name("pulse".into()).spawn(move || {
            loop {
                let mut heartbeat = pulse_gauge.lock().unwrap_or_else(PoisonError::into_inner).read();
                heartbeat.resident_bytes = resident_bytes();
                if pulse_out.send(FromWorker::Heartbeat(heartbeat)).is_err() {
                    return;
                }
                std::thread::sleep(PULSE);
            }
        });
        if let Err(error) = pulse {
            tracing::error!(%error, "the pulse thread did not start; the supervisor will replace this worker");
        }
        Self { to_supervisor, gauge, engine: None }
    }

    fn say(&self, message: FromWorker) {
        // Nobody listens any more: the link's end will end this process.
        let _ = self.to_supervisor.send(message);
    }

    fn refuse(&self, call: u64, error: &DeviceError) {
        self.say(FromWorker::Refused {
            call,
            code: error.code(),
            message: error.to_string(),
            need_bytes: error.need_bytes(),
        });
    }

    fn open(&self, order: LoadOrder) -> Result<Opened, DeviceError> {
        let services = HostServices::tracing(order.threads.max(1));
        // The supervisor's catalogue has asked who owns the file before it named it.
        Opened::open(order, &services, &Policy::anything())
    }

    fn plan(&self, call: u64, order: LoadOrder) {
        match self.open(order).and_then(|opened| opened.plan()) {
            Ok(ranks) => self.say(FromWorker::Planned { call, ranks }),
            Err(error) => self.refuse(call, &error),
        }
    }

    fn load(&mut self, call: u64, order: LoadOrder, limits: EngineLimits) {
        if self.engine.is_some() {
            return self.refuse(call, &DeviceError::InvalidInput("this worker holds a model already".into()));
        }
        if let Err(error) = self.try_load(call, order, limits) {
            self.refuse(call, &error);
        }
    }

    fn try_load(&mut self, call: u64, order: LoadOrder, limits: EngineLimits) -> Result<(), DeviceError> {
        let max_step_tokens = order.max_step_tokens;
        let device_chooses = !order.devices.iter().all(|device| device.is_cpu());
        let world = order.devices.len();
        let opened = self.open(order)?;
        let (mail, inbox) = channel();
        let replies = mail.clone();
        let sink: ReplySink = Arc::new(move |reply| {
            // The engine has ended: nobody waits for this.
            let _ = replies.send(Mail::Device(reply));
        });
        let ranks = opened.ranks(&report(call, world, self.to_supervisor.clone()))?;
        let group = Group::open(ranks, &sink)?;
        let mut facts = group.facts();
        facts.resident_bytes = resident_bytes();

        let gauge = Arc::new(Gauge::default());
        *self.gauge.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&gauge);
        let (events, out) = (self.to_supervisor.clone(), self.to_supervisor.clone());
        let send = Box::new(move |id, event| {
            let _ = events.send(FromWorker::Event { id, event });
        });
        let engine =
            move || Engine::new(group, limits, max_step_tokens, device_chooses, inbox, send, gauge).run();
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || supervise(engine, &out))
            .map_err(|error| DeviceError::Internal(format!("the engine thread did not start: {error}")))?;
        self.engine = Some((mail, thread));
        self.say(FromWorker::Loaded { call, facts });
        Ok(())
    }

    fn mail(&self, id: u64, mail: Mail) {
        let delivered = self.engine.as_ref().is_some_and(|(engine, _)| engine.send(mail).is_ok());
        if !delivered {
            tracing::debug!(id, "a message for a sequence came without an engine to take it");
        }
    }

    /// Frees the model, unless its devices hang.
    fn close(self) -> u8 {
        if let Some((mail, thread)) = self.engine {
            let _ = mail.send(Mail::Close);
            let _ = thread.join();
        }
        EXIT.load(Ordering::Relaxed)
    }
}

/// Runs the engine; when it cannot go on, says so and ends the process.
fn supervise(engine: impl FnOnce() -> Result<(), Fatal>, out: &UnboundedSender<FromWorker>) {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(engine));
    let fatal = match outcome {
        Ok(Ok(())) => return,
        Ok(Err(fatal)) => fatal,
        Err(_) => Fatal {
            code: FailureCode::Internal,
            message: "the engine panicked; its log says where".into(),
            suspects: Vec::new(),
        },
    };
    EXIT.store(GAVE_UP, Ordering::Relaxed);
    let Fatal { code, message, suspects } = fatal;
    let _ = out.send(FromWorker::Dying { code, message, suspects });
    // The supervisor hangs up once it has read this, and the link's end ends the process. Should it not, the
    // process ends all the same: nothing here may depend on a device that hangs.
    std::thread::sleep(FAREWELL);
    std::process::exit(i32::from(GAVE_UP));
}

/// Sums the ranks' progress and passes it on, not too often.
fn report(call: u64, world: usize, out: UnboundedSender<FromWorker>) -> LoadProgress {
    struct State {
        phase: LoadPhase,
        ranks: Vec<(u64, u64)>,
        last: Option<Instant>,
    }
    let state = Mutex::new(State { phase: LoadPhase::Read, ranks: vec![(0, 0); world], last: None });
    Arc::new(move |rank, phase, done, total| {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.phase != phase {
            state.phase = phase;
            state.ranks.fill((0, 0));
            state.last = None;
        }
        state.ranks[rank] = (done, total);
        let (done, total) = state.ranks.iter().fold((0, 0), |sum, rank| (sum.0 + rank.0, sum.1 + rank.1));
        let due = state.last.is_none_or(|last| last.elapsed() >= PROGRESS_EVERY) || done >= total;
        if !due {
            return true;
        }
        state.last = Some(Instant::now());
        out.send(FromWorker::Progress { call, phase, done, total }).is_ok()
    })
}
