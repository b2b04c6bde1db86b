//! How a load goes, told to any number of listeners, late ones included.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use futures_util::Stream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::{Receiver, Sender};
use wire_api::node::events::{LoadEvent, LoadPhase, LoadProgress};
use wire_api::node::models::Failure;
use wire_api::node::{JobId, ModelId};

/// Events a slow listener may lag behind before it misses some; it then goes on with the newest.
const BACKLOG: usize = 256;

/// The progress of one model's loads.
#[derive(Debug)]
pub(super) struct Progress {
    model: ModelId,
    state: Mutex<State>,
    live: Sender<LoadEvent>,
}

#[derive(Debug)]
struct State {
    job: JobId,
    started: Instant,
    phase_started: Instant,
    /// The latest event of each phase so far, in order.
    history: Vec<LoadEvent>,
}

impl Progress {
    pub fn new(model: ModelId, job: JobId) -> Self {
        let now = Instant::now();
        let state = State { job, started: now, phase_started: now, history: Vec::new() };
        Self { model, state: Mutex::new(state), live: Sender::new(BACKLOG) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new attempt begins: what was told before is over.
    pub fn restart(&self) {
        let mut state = self.lock();
        state.started = Instant::now();
        state.phase_started = state.started;
        state.history.clear();
    }

    /// A new job begins.
    pub fn new_job(&self, job: JobId) {
        self.lock().job = job;
        self.restart();
    }

    /// The job under way, or the last one.
    pub fn job(&self) -> JobId {
        self.lock().job.clone()
    }

    /// `done` of `total` bytes of a phase; 0 of 0 where bytes mean nothing.
    pub fn report(&self, phase: LoadPhase, done: u64, total: u64, detail: Option<String>) {
        self.tell(phase, done, total, detail, None);
    }

    /// It is over, and went wrong.
    pub fn fail(&self, failure: Failure) {
        self.tell(LoadPhase::Failed, 0, 0, None, Some(failure));
    }

    fn tell(
        &self,
        phase: LoadPhase,
        done: u64,
        total: u64,
        detail: Option<String>,
        failure: Option<Failure>,
    ) {
        let mut state = self.lock();
        let now = Instant::now();
        let same = state.history.last().is_some_and(|last| last.progress.phase == phase);
        if !same {
            state.phase_started = now;
        }
        let in_phase = now.duration_since(state.phase_started).as_millis() as u64;
        let left = total.saturating_sub(done);
        let eta_ms = (done > 0 && total > 0).then(|| (in_phase as f64 * left as f64 / done as f64) as u64);
        let elapsed_ms = now.duration_since(state.started).as_millis() as u64;
        let progress =
            LoadProgress { phase, bytes_done: done, bytes_total: total, eta_ms, elapsed_ms, detail };
        let event = LoadEvent { job: state.job.clone(), model: self.model.clone(), progress, failure };
        if same {
            state.history.pop();
        }
        state.history.push(event.clone());
        // Sent under the lock, so that a listener that joins now gets every event exactly once. Nobody
        // listening is fine.
        let _ = self.live.send(event);
    }

    /// The latest progress.
    pub fn latest(&self) -> Option<LoadProgress> {
        self.lock().history.last().map(|event| event.progress.clone())
    }

    /// What happened so far, one event per phase, then what happens, until the load is over.
    pub fn listen(&self) -> impl Stream<Item = LoadEvent> + Send + use<> {
        let (mut first, live) = {
            let state = self.lock();
            (state.history.clone(), self.live.subscribe())
        };
        first.reverse();
        futures_util::stream::unfold((first, live, false), |(mut first, mut live, over)| async move {
            if over {
                return None;
            }
            let event = match first.pop() {
                Some(event) => event,
                None => next(&mut live).await?,
            };
            let over = event.progress.phase.is_final() && first.is_empty();
            Some((event, (first, live, over)))
        })
    }
}

async fn next(live: &mut Receiver<LoadEvent>) -> Option<LoadEvent> {
    loop {
        match live.recv().await {
            Ok(event) => return Some(event),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[tokio::test]
    async fn a_late_listener_hears_each_phase_once_and_then_the_rest() {
        let progress = Progress::new("m".into(), "job-1".into());
        progress.report(LoadPhase::Resolve, 0, 0, None);
        progress.report(LoadPhase::Read, 10, 100, None);
        progress.report(LoadPhase::Read, 50, 100, None);
        let late = progress.listen();
        progress.report(LoadPhase::Read, 100, 100, None);
        progress.report(LoadPhase::Ready, 0, 0, None);
        let heard: Vec<_> =
            late.map(|event| (event.progress.phase, event.progress.bytes_done)).collect().await;
        let expected =
            [(LoadPhase::Resolve, 0), (LoadPhase::Read, 50), (LoadPhase::Read, 100), (LoadPhase::Ready, 0)];
        assert_eq!(heard, expected);
        let after: Vec<_> = progress.listen().map(|event| event.progress.phase).collect().await;
        assert_eq!(after, [LoadPhase::Resolve, LoadPhase::Read, LoadPhase::Ready]);
    }
}
