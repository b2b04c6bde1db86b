//! The task that keeps one model the way it is desired.
//!
//! It owns the worker and the tickets of every request, and is the only one that changes where the model
//! stands. A model that has served, or that is configured, is brought back for ever, with a growing pause;
//! others are given up when their first load fails.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use wire_api::node::JobId;
use wire_api::node::events::LoadPhase;
use wire_api::node::models::Failure;

use super::Shared;
use super::bring_up::{Live, bring_up};
use super::entry::{Entry, Standing};
use super::error::{LifecycleError, code, failure};
use super::ticket::Ticket;
use crate::worker::message::FailureCode;

/// Requests that wait for a model to come back are failed when it has failed so often in a row.
const PATIENCE: u32 = 3;

/// What a keeper can be told.
#[derive(Debug)]
pub(super) enum Command {
    /// A request.
    Submit(u64, Box<Ticket>),
    /// Its caller is gone.
    Cancel(u64),
    /// The model is to go.
    Unload(Unload),
    /// Try again now, as a new job.
    Retry(JobId),
}

/// How a model is to go.
#[derive(Debug)]
pub(super) struct Unload {
    /// Refuse when there is work in flight.
    pub only_if_idle: bool,
    /// How long work in flight may take.
    pub patience: Duration,
    /// Told when it is gone, with the bytes that came back.
    pub reply: oneshot::Sender<Result<u64, LifecycleError>>,
}

/// What to do next.
pub(super) enum Next {
    /// Bring the model up.
    Again,
    /// The model is gone.
    Gone,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Keeper {
    pub entry: Arc<Entry>,
    pub shared: Arc<Shared>,
    pub commands: UnboundedReceiver<Command>,
    /// Requests that have not ended, oldest first.
    pub tickets: BTreeMap<u64, Ticket>,
    /// Failures in a row.
    pub attempts: u32,
}

/// What came of waiting.
enum Waited {
    Over,
    Unload(Unload),
}

impl Keeper {
    pub fn new(entry: Arc<Entry>, shared: Arc<Shared>, commands: UnboundedReceiver<Command>) -> Self {
        Self { entry, shared, commands, tickets: BTreeMap::new(), attempts: 0 }
    }

    /// Runs until the model is gone.
    pub async fn run(mut self) {
        loop {
            self.stand(Standing::Loading);
            let next = match self.bring_up().await {
                Ok(live) => self.serve(live).await,
                Err(Down::Unload(unload)) => {
                    self.depart(0, vec![unload]);
                    Next::Gone
                }
                Err(Down::Failed(failure)) => self.after_failed_load(failure).await,
            };
            if matches!(next, Next::Gone) {
                return;
            }
        }
    }

    pub fn name(&self) -> &str {
        self.entry.id.as_str()
    }

    /// Changes where the model stands, for all to see. Nobody sees the new state with the old revision, nor the
    /// old state with the new one.
    pub fn stand(&self, standing: Standing) {
        let metric = &self.shared.metrics.model_state;
        let label = |standing: &Standing| format!("{:?}", standing.state()).to_lowercase();
        metric.with_label_values(&[self.name(), &label(&self.entry.standing.borrow())]).set(0.0);
        metric.with_label_values(&[self.name(), &label(&standing)]).set(1.0);
        self.entry.standing.send_modify(|current| {
            *current = standing;
            self.shared.changed();
        });
    }

    async fn bring_up(&mut self) -> Result<Live, Down> {
        let began = Instant::now();
        let work = bring_up(Arc::clone(&self.entry), Arc::clone(&self.shared));
        tokio::pin!(work);
        let outcome = loop {
            tokio::select! {
                outcome = &mut work => break outcome,
                command = self.commands.recv() => {
                    if let Some(unload) = self.take(command) {
                        return Err(Down::Unload(unload));
                    }
                }
            }
        };
        let result = if outcome.is_ok() { "ready" } else { "failed" };
        self.shared.metrics.loads.with_label_values(&[self.name(), result]).inc();
        let seconds = self.shared.metrics.load_time.with_label_values(&[self.name()]);
        outcome.inspect(|_| seconds.observe(began.elapsed().as_secs_f64())).map_err(Down::Failed)
    }

    /// Takes a command while there is no worker. An unload is left to the caller.
    fn take(&mut self, command: Option<Command>) -> Option<Unload> {
        match command {
            Some(Command::Submit(id, ticket)) => drop(self.tickets.insert(id, *ticket)),
            Some(Command::Cancel(id)) => drop(self.tickets.remove(&id)),
            Some(Command::Retry(_)) => {} // it is on its way already
            Some(Command::Unload(unload)) => return Some(unload),
            // Nobody can name this model any more: the node is going down.
            None => {
                let (reply, _) = oneshot::channel();
                return Some(Unload { only_if_idle: false, patience: Duration::ZERO, reply });
            }
        }
        None
    }

    async fn after_failed_load(&mut self, mut failure: Failure) -> Next {
        self.attempts += 1;
        failure.attempts = self.attempts;
        // It may have failed before its own plan took the place of what its lease was promised.
        drop(self.entry.take_lent());
        let persistent = self.entry.persistent.load(Ordering::Relaxed);
        tracing::error!(
            model = self.name(),
            code = failure.code,
            attempts = self.attempts,
            "the model could not be loaded: {}",
            failure.message
        );
        if persistent && failure.retryable {
            return self.recover(failure).await;
        }
        self.entry.progress.fail(failure.clone());
        self.stand(Standing::Failed(failure.clone()));
        self.fail_all(&failure);
        self.rest_failed(&failure).await
    }

    /// Waits for someone to say that it is worth trying again.
    async fn rest_failed(&mut self, failure: &Failure) -> Next {
        let mut plugins = self.shared.catalogue.subscribe();
        plugins.mark_unchanged();
        loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Retry(job)) => {
                        self.attempts = 0;
                        self.entry.progress.new_job(job);
                        return Next::Again;
                    }
                    other => {
                        if let Some(unload) = self.take(other) {
                            self.depart(0, vec![unload]);
                            return Next::Gone;
                        }
                        self.fail_all(failure);
                    }
                },
                changed = plugins.changed() => {
                    if changed.is_ok() && failure.code == code::NO_PLUGIN {
                        return Next::Again;
                    }
                }
            }
        }
    }

    /// Pauses, longer each time, and goes on.
    pub async fn recover(&mut self, mut failure: Failure) -> Next {
        let pause = self.shared.options.pause_after(self.attempts);
        failure.attempts = self.attempts;
        failure.next_attempt_in_ms = Some(pause.as_millis() as u64);
        self.entry.progress.fail(failure.clone());
        self.stand(Standing::Recovering(failure.clone()));
        if self.attempts >= PATIENCE {
            self.fail_all(&failure);
        }
        match self.wait(pause).await {
            Waited::Over => Next::Again,
            Waited::Unload(unload) => {
                self.depart(0, vec![unload]);
                Next::Gone
            }
        }
    }

    async fn wait(&mut self, pause: Duration) -> Waited {
        let over = tokio::time::sleep(pause);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return Waited::Over,
                command = self.commands.recv() => {
                    let retry = matches!(command, Some(Command::Retry(_)));
                    if let Some(unload) = self.take(command) {
                        return Waited::Unload(unload);
                    }
                    if retry {
                        return Waited::Over;
                    }
                }
            }
        }
    }

    /// Ends every request that waits.
    pub fn fail_all(&mut self, failure: &Failure) {
        let kind = match failure.code.as_str() {
            code::OUT_OF_MEMORY => FailureCode::OutOfMemory,
            code::UNSUPPORTED | code::NO_PLUGIN | code::NO_DEVICE => FailureCode::Unsupported,
            _ => FailureCode::DeviceLost,
        };
        let retry =
            failure.retryable.then(|| failure.next_attempt_in_ms.map_or(1000, |ms| ms.min(60_000) as u32));
        for (_, ticket) in std::mem::take(&mut self.tickets) {
            ticket.fail(kind, &format!("the model is not available: {}", failure.message), retry);
        }
    }

    /// The model is gone: nobody finds it any more, whoever waits is told.
    pub fn depart(&mut self, freed: u64, unloads: Vec<Unload>) {
        self.shared.forget(&self.entry);
        self.stand(Standing::Absent);
        self.entry.progress.report(LoadPhase::Unloaded, 0, 0, None);
        self.shared.metrics.forget(self.name());
        let gone = failure(code::UNLOADING, "the model was unloaded", true);
        self.commands.close();
        let mut unloads = unloads;
        while let Ok(command) = self.commands.try_recv() {
            unloads.extend(self.take(Some(command)));
        }
        self.fail_all(&gone);
        for unload in unloads {
            // Nobody waits for the answer.
            let _ = unload.reply.send(Ok(freed));
        }
    }
}

/// Why there is no worker.
enum Down {
    Failed(Failure),
    Unload(Unload),
}
