//! A model that serves: requests in, events out, and an eye on the worker.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;
use wire_api::node::events::LoadPhase;

use super::bring_up::{Live, PROOF, proof};
use super::entry::{Entry, Figures, Standing, now_ms};
use super::error::{LifecycleError, code, failure};
use super::keeper::{Command, Keeper, Next, Unload};
use super::ticket::Ticket;
use crate::metrics::Metrics;
use crate::worker::message::{FailureCode, FinishReason, SequenceEvent};
use crate::worker::protocol::{FromWorker, Heartbeat, ToWorker};

/// How often the keeper looks whether the worker is well.
const LOOK: Duration = Duration::from_millis(500);

/// How long a worker that was told to go may take to free its model.
const FAREWELL: Duration = Duration::from_secs(10);

/// A model that served for so long before its worker died has not failed in a row.
const STABLE: Duration = Duration::from_secs(60);

/// A request that was in the batch when so many workers died is what kills them.
const CRASHES: u32 = 2;

/// Why a worker has to be replaced.
#[derive(Debug)]
struct Death {
    code: FailureCode,
    message: String,
    /// Who was in the batch; `None` when the worker could not say.
    suspects: Option<Vec<u64>>,
    cause: &'static str,
}

/// The model is on its way out.
struct Draining {
    deadline: Instant,
    unloads: Vec<Unload>,
}

impl Keeper {
    /// Serves until the worker dies or the model is unloaded.
    pub(super) async fn serve(&mut self, mut live: Live) -> Next {
        let since = Instant::now();
        self.entry.persistent.store(true, Ordering::Relaxed);
        self.stand(Standing::Ready(Arc::clone(&live.info)));
        self.entry.progress.report(LoadPhase::Ready, 0, 0, None);
        self.send_waiting(&live);
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut draining: Option<Draining> = None;
        let mut proof_asked: Option<Instant> = None;
        let death = loop {
            if draining
                .as_ref()
                .is_some_and(|draining| self.tickets.is_empty() || Instant::now() >= draining.deadline)
            {
                let unloads = draining.map_or_else(Vec::new, |draining| draining.unloads);
                return self.unload(live, unloads).await;
            }
            tokio::select! {
                message = live.line.recv() => match message {
                    Some(FromWorker::Event { id: PROOF, event }) => {
                        if let Some(death) = self.take_proof(&event) {
                            break death;
                        }
                        if Ticket::is_end(&event) {
                            proof_asked = None;
                        }
                    }
                    Some(FromWorker::Event { id, event }) => self.dispatch(id, event, &live),
                    Some(FromWorker::Heartbeat(beat)) => self.take_beat(&live, beat),
                    Some(FromWorker::Dying { code, message, suspects }) => {
                        let cause = if code == FailureCode::Internal { "panic" } else { "device" };
                        // An engine that panicked cannot say who was in the batch.
                        let suspects = (!suspects.is_empty()).then_some(suspects);
                        break Death { code, message, suspects, cause };
                    }
                    Some(_) => {}
                    None => break Death {
                        code: FailureCode::DeviceLost,
                        message: "the worker ended unexpectedly".into(),
                        suspects: None,
                        cause: "ended",
                    },
                },
                command = self.commands.recv() => self.command(command, &live, &mut draining),
                _ = look.tick() => {
                    let hung = live.line.hangs(self.step_deadline());
                    let unproved = proof_asked.is_some_and(|asked| asked.elapsed() > self.step_deadline() * 2);
                    if let Some(message) = hung.or_else(|| unproved.then(|| "the model generates nothing".into())) {
                        break Death { code: FailureCode::DeviceLost, message, suspects: None, cause: "hung" };
                    }
                    if proof_asked.is_none() && self.wants_proof() {
                        proof_asked = Some(Instant::now());
                        live.line.send(ToWorker::Submit { id: PROOF, submission: Box::new(proof(&live.info.facts)) });
                    }
                }
            }
        };
        self.bury(live, death, since, draining).await
    }

    fn step_deadline(&self) -> Duration {
        self.shared.options.step_deadline
    }

    /// Sends what the worker does not have yet. Requests that were in the batch when a worker died come one at a
    /// time, so that the next death tells which of them it was.
    fn send_waiting(&mut self, live: &Live) {
        let mut probation = self.tickets.values().any(Ticket::on_probation);
        for (&id, ticket) in &mut self.tickets {
            if !(ticket.sent || probation && ticket.crashes > 0) {
                ticket.sent = true;
                ticket.resumed_at = ticket.submission.emitted.len();
                probation |= ticket.on_probation();
                let submission = Box::new(ticket.submission.clone());
                live.line.send(ToWorker::Submit { id, submission });
            }
        }
    }

    fn command(&mut self, command: Option<Command>, live: &Live, draining: &mut Option<Draining>) {
        match command {
            Some(Command::Submit(_, ticket)) if draining.is_some() => {
                ticket.fail(FailureCode::DeviceLost, "the model is being unloaded", Some(1000));
            }
            Some(Command::Submit(id, ticket)) => {
                self.tickets.insert(id, *ticket);
                let mut figures = self.entry.figures();
                figures.last_used_ms = now_ms();
                figures.requests += 1;
                drop(figures);
                self.send_waiting(live);
            }
            Some(Command::Cancel(id)) => {
                if let Some(ticket) = self.tickets.remove(&id) {
                    live.line.send(ToWorker::Cancel { id });
                    self.count("cancelled");
                    if ticket.on_probation() {
                        self.send_waiting(live);
                    }
                }
            }
            Some(Command::Retry(_)) => {}
            Some(Command::Unload(unload)) => self.begin_to_drain(unload, draining),
            // Nobody can name this model any more: the node is going down.
            None => {
                draining.get_or_insert(Draining { deadline: Instant::now(), unloads: Vec::new() });
            }
        }
    }

    fn begin_to_drain(&mut self, unload: Unload, draining: &mut Option<Draining>) {
        if unload.only_if_idle && !self.tickets.is_empty() {
            let inflight = self.tickets.len() as u32;
            let _ = unload.reply.send(Err(LifecycleError::Busy { model: self.entry.id.clone(), inflight }));
            return;
        }
        let deadline = Instant::now() + unload.patience;
        match draining {
            Some(draining) => {
                draining.deadline = draining.deadline.min(deadline);
                draining.unloads.push(unload);
            }
            None => {
                self.stand(Standing::Draining);
                *draining = Some(Draining { deadline, unloads: vec![unload] });
            }
        }
    }

    async fn unload(&mut self, live: Live, unloads: Vec<Unload>) -> Next {
        for (id, ticket) in std::mem::take(&mut self.tickets) {
            live.line.send(ToWorker::Cancel { id });
            ticket.fail(FailureCode::DeviceLost, "the model is being unloaded", Some(1000));
        }
        let freed = self.entry.figures().memory.measured_bytes;
        live.line.send(ToWorker::Unload);
        let Live { line, process, reservation, .. } = live;
        // The line must stay open while the worker frees the model; its end would cut that short.
        let ended = process.end(FAREWELL).await;
        drop(line);
        drop(reservation);
        match ended {
            Ok(status) => tracing::info!(model = self.name(), %status, "model unloaded"),
            Err(error) => tracing::error!(model = self.name(), %error, "the worker could not be waited for"),
        }
        self.depart(freed, unloads);
        Next::Gone
    }

    fn dispatch(&mut self, id: u64, event: SequenceEvent, live: &Live) {
        let Some(ticket) = self.tickets.get_mut(&id) else { return };
        measure(&self.entry, &self.shared.metrics, ticket, &event);
        let over = Ticket::is_end(&event);
        let was_suspected = ticket.on_probation();
        ticket.pass(event);
        let acquitted = was_suspected && (over || !ticket.on_probation());
        if over {
            self.tickets.remove(&id);
        }
        if acquitted {
            self.send_waiting(live);
        }
    }

    fn take_proof(&mut self, event: &SequenceEvent) -> Option<Death> {
        match event {
            SequenceEvent::Token { .. } => self.entry.figures().proved = Some(Instant::now()),
            SequenceEvent::Failed { code: FailureCode::Internal, message, .. } => {
                return Some(Death {
                    code: FailureCode::Internal,
                    message: format!("the model no longer generates: {message}"),
                    suspects: None,
                    cause: "proof",
                });
            }
            _ => {}
        }
        None
    }

    /// A model that nobody has used for a while is asked for a token, so that readiness stays true.
    fn wants_proof(&self) -> bool {
        let stale = self.entry.proved_ago().is_none_or(|ago| ago >= self.shared.options.prove_every);
        stale && self.tickets.is_empty()
    }

    fn take_beat(&mut self, live: &Live, beat: Heartbeat) {
        let mut figures = self.entry.figures();
        figures.heartbeat = beat;
        // A worker knows its main memory; what lies on a GPU was measured when the load was over.
        if live.on_the_processor {
            live.reservation.measured("cpu-0", beat.resident_bytes);
            figures.memory.measured_bytes = beat.resident_bytes;
        }
        drop(figures);
        let metrics = &self.shared.metrics;
        let name = self.entry.id.as_str();
        let set = |gauge: &prometheus::IntGaugeVec, value: u64| {
            gauge.with_label_values(&[name]).set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&metrics.queued, u64::from(beat.queued));
        set(&metrics.running, u64::from(beat.running));
        set(&metrics.inflight, u64::from(self.entry.inflight.load(Ordering::Relaxed)));
        set(&metrics.resident_bytes, beat.resident_bytes);
        set(&metrics.preemptions, beat.preemptions);
        set(&metrics.prefix_entries, u64::from(beat.prefix_cache_entries));
        set(&metrics.plugin_sequences, beat.plugin_sequences);
        for (kind, value) in [
            ("used", beat.state_bytes),
            ("limit", beat.state_limit_bytes),
            ("prefix_cache", beat.prefix_cache_bytes),
        ] {
            metrics.state_bytes.with_label_values(&[name, kind]).set(value as i64);
        }
    }

    fn count(&self, outcome: &str) {
        self.shared.metrics.sequences.with_label_values(&[self.name(), outcome]).inc();
    }

    /// The worker is dead or has to die: settle its requests, make sure the process is gone, come back.
    async fn bury(&mut self, live: Live, death: Death, since: Instant, draining: Option<Draining>) -> Next {
        let Live { line, process, reservation, .. } = live;
        drop(line); // what tells a worker that lives to end
        let status = process.end(Duration::from_millis(500)).await;
        drop(reservation);
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let name = self.name().to_owned();
        self.shared.metrics.worker_deaths.with_label_values(&[&name, death.cause]).inc();
        tracing::error!(model = name, cause = death.cause, status = how, "worker lost: {}", death.message);
        self.settle(&death);
        self.entry.figures().heartbeat = Heartbeat::default();
        if let Some(draining) = draining {
            self.depart(0, draining.unloads);
            return Next::Gone;
        }
        self.attempts = if since.elapsed() >= STABLE { 1 } else { self.attempts + 1 };
        let message = format!("{} ({how})", death.message);
        self.recover(failure(code::WORKER, message, true)).await
    }

    /// Decides for every request whether it goes on with the next worker.
    fn settle(&mut self, death: &Death) {
        let on_probation = self.tickets.iter().find(|(_, ticket)| ticket.on_probation()).map(|(&id, _)| id);
        let retry = Some(self.shared.options.pause_after(self.attempts + 1).as_millis() as u32 + 1000);
        // Seats are given in order: of the requests that are not known to have one, the first few may have got
        // one in the worker's last moments.
        let mut unseen = self.entry.request.slots.unwrap_or(self.shared.options.slots);
        for (id, mut ticket) in std::mem::take(&mut self.tickets) {
            let suspect = match &death.suspects {
                Some(suspects) => suspects.contains(&id),
                None if ticket.started => ticket.sent,
                None => ticket.sent && unseen > 0,
            };
            unseen = unseen.saturating_sub(u32::from(ticket.sent && !ticket.started));
            ticket.sent = false;
            if !suspect {
                self.tickets.insert(id, ticket);
                continue;
            }
            // Where one was watched, the others are not blamed.
            ticket.crashes += u32::from(on_probation.is_none_or(|watched| watched == id));
            if death.code == FailureCode::Internal {
                self.count("internal");
                ticket.fail(FailureCode::Internal, &death.message, None);
            } else if ticket.crashes >= CRASHES {
                self.count("internal");
                ticket.fail(FailureCode::Internal, "two workers died with this request in their batch", None);
            } else if self.shared.options.replay || !ticket.started {
                self.tickets.insert(id, ticket);
            } else {
                self.count("device_lost");
                let message = format!("the model's worker was lost and is being replaced: {}", death.message);
                ticket.fail(FailureCode::DeviceLost, &message, retry);
            }
        }
    }
}

/// Counts and times an event before it is passed on.
fn measure(entry: &Entry, metrics: &Metrics, ticket: &Ticket, event: &SequenceEvent) {
    let name = entry.id.as_str();
    let mut figures = entry.figures();
    match event {
        SequenceEvent::Started { prompt_tokens, cached_tokens, miss_reason } if !ticket.started => {
            let result = miss_reason.map_or("hit", |reason| reason.as_str());
            metrics.prefix_lookups.with_label_values(&[name, result]).inc();
            metrics.prompt_tokens.with_label_values(&[name, "cached"]).inc_by(u64::from(*cached_tokens));
            let computed = u64::from(prompt_tokens - cached_tokens);
            metrics.prompt_tokens.with_label_values(&[name, "computed"]).inc_by(computed);
            tracing::debug!(model = name, prompt_tokens, cached_tokens, miss_reason = result, "admitted");
        }
        SequenceEvent::Token { .. } => {
            figures.proved = Some(Instant::now());
            metrics.generated_tokens.with_label_values(&[name]).inc();
            match ticket.last_token {
                Some(last) => {
                    let seconds = last.elapsed().as_secs_f64();
                    metrics.inter_token.with_label_values(&[name]).observe(seconds);
                }
                None => {
                    let seconds = ticket.submitted.elapsed().as_secs_f64();
                    metrics.first_token.with_label_values(&[name]).observe(seconds);
                    Figures::smooth(&mut figures.throughput.first_token_ms, seconds as f32 * 1000.0);
                }
            }
        }
        SequenceEvent::Finished { reason, prompt_tokens, completion_tokens, cached_tokens, timings } => {
            let outcome = match reason {
                FinishReason::Stop => "stop",
                FinishReason::Length => "length",
                FinishReason::Cancelled => "cancelled",
            };
            metrics.sequences.with_label_values(&[name, outcome]).inc();
            metrics.queue_time.with_label_values(&[name]).observe(f64::from(timings.queue_ms) / 1000.0);
            let per_second = |tokens: u32, ms: f32| (ms > 0.0).then(|| tokens as f32 * 1000.0 / ms);
            if let Some(rate) = per_second(prompt_tokens.saturating_sub(*cached_tokens), timings.prefill_ms) {
                Figures::smooth(&mut figures.throughput.prefill_tokens_per_second, rate);
            }
            if *completion_tokens > 1
                && let Some(rate) = per_second(completion_tokens - 1, timings.decode_ms)
            {
                Figures::smooth(&mut figures.throughput.decode_tokens_per_second, rate);
            }
            tracing::info!(
                model = name,
                outcome,
                prompt_tokens,
                cached_tokens,
                miss_reason = ticket.miss.map_or("none", |reason| reason.as_str()),
                completion_tokens,
                queue_ms = timings.queue_ms,
                prefill_ms = timings.prefill_ms,
                decode_ms = timings.decode_ms,
                "sequence ended"
            );
        }
        SequenceEvent::Failed { code, message, .. } => {
            let outcome = outcome(*code);
            metrics.sequences.with_label_values(&[name, outcome]).inc();
            tracing::warn!(model = name, outcome, message, "sequence failed");
        }
        SequenceEvent::Started { .. } => {}
    }
}

fn outcome(code: FailureCode) -> &'static str {
    match code {
        FailureCode::InvalidInput => "invalid_input",
        FailureCode::Unsupported => "unsupported",
        FailureCode::OutOfMemory => "out_of_memory",
        FailureCode::DeviceLost => "device_lost",
        FailureCode::Internal => "internal",
    }
}
