//! Bringing a model up: from an id to a worker that has generated a token.
//!
//! Everything acquired on the way (the process, the promised memory) is held by what is returned or dropped
//! with the future, so a load that fails or is given up leaves nothing behind.

use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use wire_api::node::events::LoadPhase as WirePhase;
use wire_api::node::models::{Failure, Modality, ModelDetails};

use super::Shared;
use super::entry::{Entry, ModelInfo, now_ms};
use super::error::{code, failure};
use super::line::Line;
use super::memory::{Decision, Reservation, Room, decide};
use super::placement::{Placement, Seat, place};
use super::resolve::ModelFiles;
use crate::discovery::Machine;
use crate::worker::message::{Sampling, SequenceEvent, Submission};
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
    /// Its state lies in main memory.
    pub on_the_processor: bool,
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
    let placement = seat(&entry, &shared, &files, &machine).await?;
    let threads = shared.options.threads.unwrap_or(machine.cpu.threads as u32).max(1);
    let order = order(&entry, &shared, &files, &placement, threads);

    entry.progress.report(WirePhase::Queued, 0, 0, None);
    let environment = environment(&shared, &placement);
    let (process, end) = WorkerProcess::start(&shared.options.worker, threads, &environment)
        .map_err(|error| failure(code::WORKER, format!("the worker could not be started: {error}"), true))?;
    let mut line = Line::new(end, entry.id.as_str(), process.pid(), &shared.options);
    greet(&mut line).await?;
    let ranks = plan(&mut line, &order).await?;
    let (decision, reservation) = reserve(&entry, &shared, &ranks, &machine, &placement)?;
    entry.figures().memory = decision.memory;

    let facts = load(&mut line, &entry, order, &decision).await?;
    entry.progress.report(WirePhase::WarmUp, 0, 0, None);
    warm_up(&mut line, &facts).await?;
    let measured = measure(&placement, &reservation, process.pid(), &facts, &line.beat).await;
    if measured > decision.memory.planned_bytes + UNPLANNED * placement.seats.len() as u64 {
        tracing::warn!(
            model = entry.id.as_str(),
            planned_bytes = decision.memory.planned_bytes,
            measured_bytes = measured,
            "the model holds more memory than its plugin planned"
        );
    }
    let chosen = &placement.seats[0].chosen;
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
    note(&entry, &placement, &decision, &info, measured, began);
    tracing::info!(
        model = entry.id.as_str(),
        plugin = info.plugin,
        build = info.build,
        devices = device_names(&placement),
        context = facts.max_context,
        planned_bytes = decision.memory.planned_bytes,
        resident_bytes = facts.resident_bytes,
        load_ms = began.elapsed().as_millis() as u64,
        "model is ready"
    );
    let on_the_processor = placement.seats[0].device.is_cpu();
    Ok(Live { line, process, reservation, info, on_the_processor })
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

/// Where the model goes, and with which builds.
async fn seat(
    entry: &Entry,
    shared: &Shared,
    files: &ModelFiles,
    machine: &Machine,
) -> Result<Placement, Failure> {
    let snapshot = shared.catalogue.scanned().await;
    let promised = |device: &str| shared.accounts.promised(device);
    let placement = place(&entry.request.devices, machine, &snapshot, &files.architecture, promised)?;
    let (world, architecture) = (placement.seats.len() as u32, &placement.seats[0].chosen.architecture);
    if world > architecture.max_world {
        let message = format!(
            "{} computes on at most {} devices together, {world} were asked for",
            architecture.name, architecture.max_world
        );
        return Err(failure(code::UNSUPPORTED, message, false));
    }
    for warning in &placement.warnings {
        tracing::warn!(model = entry.id.as_str(), "{warning}");
    }
    Ok(placement)
}

fn order(
    entry: &Entry,
    shared: &Shared,
    files: &ModelFiles,
    placement: &Placement,
    threads: u32,
) -> LoadOrder {
    let request = &entry.request;
    let seats = &placement.seats;
    let slots = request.slots.unwrap_or(shared.options.slots).max(1);
    let options =
        request.options.as_ref().map(|options| serde_json::Value::Object(options.clone()).to_string());
    LoadOrder {
        plugin: seats[0].chosen.path.clone(),
        architecture: seats[0].chosen.architecture.name.clone(),
        format: files.format,
        config: files.config.clone(),
        preprocessor: files.preprocessor.clone(),
        files: files.weights.clone(),
        dtype: request.dtype.clone().unwrap_or_else(|| "auto".to_owned()),
        quantize: request.quant.clone().unwrap_or_default(),
        max_context: shared.options.wishes(request).context.unwrap_or(0),
        max_sequences: slots + shared.options.max_snapshots,
        max_step_tokens: shared.options.max_step_tokens.max(slots + 128),
        threads: (threads / seats.len() as u32).max(1),
        // The ledger of the engine is the only limit: it knows what forks share.
        state_bytes: 0,
        options: options.unwrap_or_else(|| shared.options.architecture_options.clone()),
        devices: seats.iter().map(|seat| seat.device).collect(),
    }
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

/// Promises memory of every device the model is to lie on. Ranks need about equal shares, so the room for all of
/// them is that of the tightest, times their number.
fn reserve(
    entry: &Entry,
    shared: &Shared,
    ranks: &[MemoryPlan],
    machine: &Machine,
    placement: &Placement,
) -> Result<(Decision, Reservation), Failure> {
    let wishes = shared.options.wishes(&entry.request);
    let used_by = |room: &Room| placement.seats.iter().filter(|seat| seat.id() == room.device).count() as u64;
    let mut rooms = shared.rooms(machine);
    rooms.retain(|room| used_by(room) > 0);
    shared.leases.sweep();
    // Held until the model has a promise of its own.
    let lent = entry.take_lent();
    let own = lent.as_ref().map(Reservation::id);
    let world = placement.seats.len() as u64;
    shared.accounts.reserve(&rooms, own, |left| {
        let tightest = rooms.iter().zip(left).map(|(room, left)| left / used_by(room)).min().unwrap_or(0);
        let decision = decide(ranks, &wishes, tightest * world)?;
        let share = decision.memory.planned_bytes / world;
        Ok((decision, rooms.iter().map(|room| share * used_by(room)).collect()))
    })
}

async fn load(
    line: &mut Line,
    entry: &Entry,
    order: LoadOrder,
    decision: &Decision,
) -> Result<ModelFacts, Failure> {
    let order = LoadOrder { max_context: decision.max_context, ..order };
    line.send(ToWorker::Load { call: 2, order, limits: decision.limits });
    line.expect(|message| match message {
        FromWorker::Progress { call: 2, phase, done, total } => {
            entry.progress.report(wire_phase(phase), done, total, None);
            None
        }
        FromWorker::Loaded { call: 2, facts } => Some(facts),
        _ => None,
    })
    .await
}

/// What the worker sees of CUDA, from where it goes.
fn environment(shared: &Shared, placement: &Placement) -> Vec<(OsString, OsString)> {
    let uuids: Vec<&str> = placement.seats.iter().map(|seat| seat.uuid.as_str()).collect();
    let devices: Vec<RankDevice> = placement.seats.iter().map(|seat| seat.device).collect();
    shared.options.cuda.environment(&devices, &uuids, |name| std::env::var_os(name))
}

/// Measures what a model holds once it has generated, per device. The bytes in all.
async fn measure(
    placement: &Placement,
    reservation: &Reservation,
    worker: u32,
    facts: &ModelFacts,
    beat: &Heartbeat,
) -> u64 {
    if placement.seats[0].device.is_cpu() {
        let resident = beat.resident_bytes.max(facts.resident_bytes);
        reservation.measured("cpu-0", resident);
        return resident;
    }
    let gpus = tokio::task::spawn_blocking(crate::discovery::gpu::look).await.unwrap_or_default();
    let mut all = 0;
    for seat in &placement.seats {
        let id = seat.id();
        let held = gpus.all.iter().find(|gpu| gpu.uuid == seat.uuid).and_then(|gpu| gpu.held_by(worker));
        // Where the driver does not tell processes apart, weights at least are known.
        let held = held.unwrap_or(facts.weight_bytes / placement.seats.len() as u64);
        reservation.measured(id.as_str(), held);
        all += held;
    }
    all
}

fn device_names(placement: &Placement) -> String {
    let names: Vec<String> = placement.seats.iter().map(|seat| seat.device.id()).collect();
    names.join(",")
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

fn note(
    entry: &Entry,
    placement: &Placement,
    decision: &Decision,
    info: &ModelInfo,
    measured: u64,
    began: Instant,
) {
    let vision = info.facts.image_token.is_some();
    let mut figures = entry.figures();
    figures.memory.measured_bytes = measured;
    figures.proved = Some(Instant::now());
    figures.details = Some(ModelDetails {
        architecture: info.architecture.clone(),
        plugin: info.plugin.clone(),
        build: info.build.clone(),
        devices: placement.seats.iter().map(Seat::id).collect(),
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
        warnings: placement.warnings.clone(),
    });
}
