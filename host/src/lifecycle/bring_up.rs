//! Bringing a model up: from an id to a worker that has generated a token.
//!
//! Everything acquired on the way (the process, the promised memory) is held by what is returned or dropped
//! with the future, so a load that fails or is given up leaves nothing behind.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use wire_api::node::DeviceId;
use wire_api::node::events::LoadPhase as WirePhase;
use wire_api::node::models::{Failure, Modality, ModelDetails};

use super::Shared;
use super::entry::{Entry, ModelInfo, now_ms};
use super::error::{code, failure};
use super::memory::{Decision, Reservation, decide};
use super::resolve::ModelFiles;
use crate::catalogue::Chosen;
use crate::device::plugin::device_info;
use crate::discovery::Machine;
use crate::worker::emit_log;
use crate::worker::link::SupervisorEnd;
use crate::worker::message::{FailureCode, Sampling, SequenceEvent, Submission};
use crate::worker::process::WorkerProcess;
use crate::worker::protocol::{
    FromWorker, Heartbeat, LoadOrder, LoadPhase, MemoryPlan, ModelFacts, PROTOCOL, RankDevice, ToWorker,
};

/// Memory of a worker that belongs to no plan: its code, its threads, the link.
const UNPLANNED: u64 = 128 << 20;

/// Number of the sequence that proves that a model generates.
pub(super) const PROOF: u64 = 0;

/// A worker that serves.
#[derive(Debug)]
pub(super) struct Live {
    pub line: Line,
    pub process: WorkerProcess,
    pub reservation: Reservation,
    pub info: Arc<ModelInfo>,
}

/// The supervisor's end of a worker's link, and when the worker was last heard.
#[derive(Debug)]
pub(super) struct Line {
    end: SupervisorEnd,
    model: String,
    pid: u32,
    patience: Duration,
    pub last_beat: Instant,
    pub beat: Heartbeat,
}

impl Line {
    fn new(end: SupervisorEnd, model: &str, pid: u32, patience: Duration) -> Self {
        let beat = Heartbeat::default();
        Self { end, model: model.to_owned(), pid, patience, last_beat: Instant::now(), beat }
    }

    /// Whether the link still takes messages.
    pub fn send(&self, message: ToWorker) -> bool {
        self.end.to_worker.send(message).is_ok()
    }

    /// The next message that is neither log nor heartbeat; those are seen to. `None` at the end of the link.
    /// Nothing is lost when the future is dropped.
    pub async fn recv(&mut self) -> Option<FromWorker> {
        match self.end.from_worker.recv().await? {
            FromWorker::Log { level, target, message } => {
                emit_log(&self.model, self.pid, level, &target, &message);
                Some(FromWorker::Heartbeat(self.beat))
            }
            FromWorker::Heartbeat(beat) => {
                self.last_beat = Instant::now();
                self.beat = beat;
                Some(FromWorker::Heartbeat(beat))
            }
            message => Some(message),
        }
    }

    /// Whether the worker has been silent, or its engine at one thing, for too long. One sentence if so.
    pub fn hangs(&self, step_deadline: Duration) -> Option<String> {
        let silent = self.last_beat.elapsed();
        if silent > self.patience {
            return Some(format!("the worker has been silent for {} ms", silent.as_millis()));
        }
        // The worker watches its devices itself; this catches an engine that no longer watches anything.
        let busy = Duration::from_millis(self.beat.busy_ms);
        let limit = step_deadline * 2 + self.patience;
        (busy > limit).then(|| format!("the engine has been at one step for {} ms", busy.as_millis()))
    }

    /// The next answer during a load.
    async fn answer(&mut self) -> Result<FromWorker, Failure> {
        loop {
            let left = self.patience.saturating_sub(self.last_beat.elapsed());
            match tokio::time::timeout(left, self.recv()).await {
                Ok(Some(FromWorker::Heartbeat(_))) => {}
                Ok(Some(FromWorker::Dying { message, .. })) => {
                    return Err(failure(code::WORKER, message, true));
                }
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {
                    return Err(failure(code::WORKER, "the worker ended while loading the model", true));
                }
                Err(_) => {
                    let message = format!("the worker said nothing for {} ms", self.patience.as_millis());
                    return Err(failure(code::WORKER, message, true));
                }
            }
        }
    }

    async fn expect<T>(&mut self, take: impl Fn(FromWorker) -> Option<T>) -> Result<T, Failure> {
        loop {
            match self.answer().await? {
                FromWorker::Refused { code, message, .. } => return Err(refused(code, message)),
                other => {
                    if let Some(found) = take(other) {
                        return Ok(found);
                    }
                }
            }
        }
    }
}

fn refused(kind: FailureCode, message: String) -> Failure {
    match kind {
        FailureCode::InvalidInput => failure(code::INVALID, message, false),
        FailureCode::Unsupported => failure(code::UNSUPPORTED, message, false),
        FailureCode::OutOfMemory => failure(code::OUT_OF_MEMORY, message, true),
        FailureCode::DeviceLost => failure(code::WORKER, message, true),
        FailureCode::Internal => failure(code::WORKER, message, false),
    }
}

/// Loads the model of `entry`.
pub(super) async fn bring_up(entry: Arc<Entry>, shared: Arc<Shared>) -> Result<Live, Failure> {
    let began = Instant::now();
    entry.progress.restart();
    entry.progress.report(WirePhase::Resolve, 0, 0, None);
    let files = resolve(&entry, &shared).await?;
    let machine = tokio::task::spawn_blocking(crate::discovery::look)
        .await
        .map_err(|_| failure(code::WORKER, "looking at the machine panicked", true))?;
    let devices = devices(&entry, &machine)?;
    let snapshot = shared.catalogue.scanned().await;
    let chosen = snapshot
        .choose(&files.architecture, &device_info(&devices[0]))
        .map_err(|error| failure(code::NO_PLUGIN, error.to_string(), false))?;
    let threads = shared.options.threads.unwrap_or(machine.cpu.threads as u32).max(1);
    let order = order(&entry, &shared, &files, &chosen, devices, threads)?;

    entry.progress.report(WirePhase::Queued, 0, 0, None);
    let (process, end) = WorkerProcess::start(&shared.options.worker, threads)
        .map_err(|error| failure(code::WORKER, format!("the worker could not be started: {error}"), true))?;
    let mut line = Line::new(end, entry.id.as_str(), process.pid(), shared.options.worker_patience);
    greet(&mut line).await?;
    let ranks = plan(&mut line, &order).await?;
    let (decision, reservation) = reserve(&entry, &shared, &ranks, &machine)?;
    entry.figures().memory = decision.memory;

    let (facts, order) = load(&mut line, &entry, order, &decision).await?;
    entry.progress.report(WirePhase::WarmUp, 0, 0, None);
    warm_up(&mut line, &facts).await?;
    reservation.measured(line.beat.resident_bytes.max(facts.resident_bytes));
    if facts.resident_bytes > decision.memory.planned_bytes + UNPLANNED {
        tracing::warn!(
            model = entry.id.as_str(),
            planned_bytes = decision.memory.planned_bytes,
            resident_bytes = facts.resident_bytes,
            "the model holds more memory than its plugin planned"
        );
    }
    let info = Arc::new(ModelInfo {
        id: entry.id.clone(),
        path: files.path,
        facts,
        architecture: chosen.architecture.name.clone(),
        plugin: chosen.plugin.clone(),
        build: chosen.build.clone(),
        worker: process.pid(),
        load: shared.loads.fetch_add(1, Ordering::Relaxed) + 1,
    });
    note(&entry, &order, &decision, &info, began);
    tracing::info!(
        model = entry.id.as_str(),
        plugin = chosen.plugin,
        build = chosen.build,
        context = facts.max_context,
        planned_bytes = decision.memory.planned_bytes,
        resident_bytes = facts.resident_bytes,
        load_ms = began.elapsed().as_millis() as u64,
        "model is ready"
    );
    Ok(Live { line, process, reservation, info })
}

async fn resolve(entry: &Arc<Entry>, shared: &Shared) -> Result<ModelFiles, Failure> {
    let teller = Arc::clone(entry);
    let progress =
        Arc::new(move |phase, done, total, detail| teller.progress.report(phase, done, total, detail));
    let path = shared.resolver.resolve(entry.request.model.as_str().to_owned(), progress).await?;
    tokio::task::spawn_blocking(move || ModelFiles::read(&path))
        .await
        .map_err(|_| failure(code::INVALID, "reading the model's files panicked", false))?
}

/// The devices the request names, or the processor.
fn devices(entry: &Entry, machine: &Machine) -> Result<Vec<RankDevice>, Failure> {
    let cpu = RankDevice::Cpu {
        level: machine.cpu.level,
        total_bytes: machine.memory.total_bytes,
        free_bytes: machine.memory.available_bytes,
    };
    let named = entry.request.devices.iter().map(|device| match device.as_str() {
        "cpu" | "cpu-0" => Ok(cpu),
        name => {
            let there: Vec<String> = std::iter::once("cpu-0".to_owned())
                .chain(machine.gpus.iter().map(|gpu| format!("cuda-{}", gpu.ordinal)))
                .collect();
            let message = if there.iter().any(|other| other == name) {
                format!("the device {name} is here, but this build of neuron only loads onto the processor")
            } else {
                format!("the device {name} is not here; there are {}", there.join(", "))
            };
            Err(failure(code::NO_DEVICE, message, false))
        }
    });
    let named: Vec<RankDevice> = named.collect::<Result<_, _>>()?;
    Ok(if named.is_empty() { vec![cpu] } else { named })
}

fn order(
    entry: &Entry,
    shared: &Shared,
    files: &ModelFiles,
    chosen: &Chosen,
    devices: Vec<RankDevice>,
    threads: u32,
) -> Result<LoadOrder, Failure> {
    let request = &entry.request;
    let world = devices.len() as u32;
    if world > chosen.architecture.max_world {
        let message = format!(
            "{} computes on at most {} devices together, {world} were asked for",
            chosen.architecture.name, chosen.architecture.max_world
        );
        return Err(failure(code::UNSUPPORTED, message, false));
    }
    let slots = request.slots.unwrap_or(shared.options.slots).max(1);
    Ok(LoadOrder {
        plugin: chosen.path.clone(),
        architecture: chosen.architecture.name.clone(),
        format: files.format,
        config: files.config.clone(),
        preprocessor: files.preprocessor.clone(),
        files: files.weights.clone(),
        dtype: request.dtype.clone().unwrap_or_else(|| "auto".to_owned()),
        quantize: request.quant.clone().unwrap_or_default(),
        max_context: context(request.context_tokens).unwrap_or(0),
        max_sequences: slots + shared.options.max_snapshots,
        max_step_tokens: shared.options.max_step_tokens.max(slots + 128),
        threads: (threads / world).max(1),
        // On the processor the ledger of the engine is the only limit: it knows what forks share.
        state_bytes: 0,
        options: shared.options.architecture_options.clone(),
        devices,
    })
}

fn context(asked: Option<u64>) -> Option<u32> {
    asked.map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX))
}

async fn greet(line: &mut Line) -> Result<(), Failure> {
    let protocol = line
        .expect(
            |message| if let FromWorker::Hello { protocol, .. } = message { Some(protocol) } else { None },
        )
        .await?;
    if protocol == PROTOCOL {
        return Ok(());
    }
    let message = "the neuron binary was replaced by another version; restart neuron serve";
    Err(failure(code::WORKER, message, false))
}

async fn plan(line: &mut Line, order: &LoadOrder) -> Result<Vec<MemoryPlan>, Failure> {
    line.send(ToWorker::Plan { call: 1, order: order.clone() });
    line.expect(
        |message| if let FromWorker::Planned { call: 1, ranks } = message { Some(ranks) } else { None },
    )
    .await
}

fn reserve(
    entry: &Entry,
    shared: &Shared,
    ranks: &[MemoryPlan],
    machine: &Machine,
) -> Result<(Decision, Reservation), Failure> {
    let mut wishes = shared.options.wishes();
    wishes.context = context(entry.request.context_tokens);
    wishes.slots = entry.request.slots.unwrap_or(shared.options.slots).max(1);
    let (total, available) = shared.memory(&machine.memory);
    shared.leases.sweep();
    let own = shared.leases.promise(&entry.request.guard);
    shared.accounts.reserve(total, available, own, |room| {
        let decision = decide(ranks, &wishes, room)?;
        Ok((decision, decision.memory.planned_bytes))
    })
}

async fn load(
    line: &mut Line,
    entry: &Entry,
    order: LoadOrder,
    decision: &Decision,
) -> Result<(ModelFacts, LoadOrder), Failure> {
    let order = LoadOrder { max_context: decision.max_context, ..order };
    line.send(ToWorker::Load { call: 2, order: order.clone(), limits: decision.limits });
    let facts = line
        .expect(|message| match message {
            FromWorker::Progress { call: 2, phase, done, total } => {
                entry.progress.report(wire_phase(phase), done, total, None);
                None
            }
            FromWorker::Loaded { call: 2, facts } => Some(facts),
            _ => None,
        })
        .await?;
    Ok((facts, order))
}

fn wire_phase(phase: LoadPhase) -> WirePhase {
    match phase {
        LoadPhase::Resolve => WirePhase::Resolve,
        LoadPhase::Download => WirePhase::Download,
        LoadPhase::Verify => WirePhase::Verify,
        LoadPhase::Plan => WirePhase::Queued,
        LoadPhase::Read | LoadPhase::Quantize => WirePhase::Read,
        LoadPhase::Upload => WirePhase::Upload,
        LoadPhase::WarmUp => WirePhase::WarmUp,
        LoadPhase::Ready => WirePhase::Ready,
    }
}

/// A few tokens that any model can be fed.
pub(super) fn proof(facts: &ModelFacts) -> Submission {
    let prompt = (1..facts.vocab_size).filter(|token| Some(*token) != facts.image_token).take(8).collect();
    Submission {
        prompt,
        images: Vec::new(),
        sampling: Sampling::greedy(),
        max_tokens: 2,
        stop_tokens: Vec::new(),
        top_logprobs: None,
        emitted: Vec::new(),
        boundaries: Vec::new(),
    }
}

/// Readiness is proved by a real generation, never by a flag.
async fn warm_up(line: &mut Line, facts: &ModelFacts) -> Result<(), Failure> {
    line.send(ToWorker::Submit { id: PROOF, submission: Box::new(proof(facts)) });
    loop {
        match line.answer().await? {
            FromWorker::Event { id: PROOF, event: SequenceEvent::Finished { completion_tokens, .. } } => {
                return if completion_tokens > 0 {
                    Ok(())
                } else {
                    Err(failure(code::WARM_UP, "the model loaded but generated no token", false))
                };
            }
            FromWorker::Event { id: PROOF, event: SequenceEvent::Failed { message, retryable, .. } } => {
                let message = format!("the model loaded but did not generate: {message}");
                return Err(failure(code::WARM_UP, message, retryable));
            }
            _ => {}
        }
    }
}

fn note(entry: &Entry, order: &LoadOrder, decision: &Decision, info: &ModelInfo, began: Instant) {
    let vision = info.facts.image_token.is_some();
    let mut figures = entry.figures();
    figures.memory.measured_bytes = info.facts.resident_bytes;
    figures.proved = Some(Instant::now());
    figures.details = Some(ModelDetails {
        architecture: info.architecture.clone(),
        plugin: info.plugin.clone(),
        build: info.build.clone(),
        devices: order
            .devices
            .iter()
            .map(|device| match device {
                RankDevice::Cpu { .. } => DeviceId("cpu-0".into()),
                RankDevice::Cuda { ordinal, .. } => DeviceId(format!("cuda-{ordinal}")),
            })
            .collect(),
        quant: entry.request.quant.clone(),
        dtype: entry.request.dtype.clone(),
        context_tokens: u64::from(info.facts.max_context),
        slots: decision.limits.max_running,
        modalities: if vision { vec![Modality::Text, Modality::Image] } else { vec![Modality::Text] },
        // The text side knows the template; the architecture does not.
        tools: false,
        reasoning: false,
        prefix_block_tokens: Some(crate::engine::prefix_cache::GRAIN),
        ready_since_ms: Some(now_ms()),
        load_ms: Some(began.elapsed().as_millis() as u64),
    });
}
