//! The supervisor's end of a worker's link, with an eye on whether anybody is there.

use std::time::{Duration, Instant};

use wire_api::node::models::Failure;

use super::error::{code, failure};
use super::options::ModelsOptions;
use crate::worker::emit_log;
use crate::worker::link::SupervisorEnd;
use crate::worker::message::FailureCode;
use crate::worker::protocol::{FromWorker, Heartbeat, ToWorker};

/// The supervisor's end of a worker's link, and when the worker was last heard.
#[derive(Debug)]
pub(super) struct Line {
    end: SupervisorEnd,
    model: String,
    pid: u32,
    patience: Duration,
    load_patience: Duration,
    /// When the worker last said something that is neither log nor heartbeat.
    last_word: Instant,
    pub last_beat: Instant,
    pub beat: Heartbeat,
}

impl Line {
    /// The line to the worker `pid`.
    pub fn new(end: SupervisorEnd, model: &str, pid: u32, options: &ModelsOptions) -> Self {
        let now = Instant::now();
        Self {
            end,
            model: model.to_owned(),
            pid,
            patience: options.worker_patience,
            load_patience: options.load_patience,
            last_word: now,
            last_beat: now,
            beat: Heartbeat::default(),
        }
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
            message => {
                self.last_word = Instant::now();
                Some(message)
            }
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

    /// The next answer during a load. A worker whose pulse goes on while its device thread is stuck, in a driver
    /// or in a call that waits for a peer, makes no progress, and is given up for that.
    pub async fn answer(&mut self) -> Result<FromWorker, Failure> {
        loop {
            let silence = self.patience.saturating_sub(self.last_beat.elapsed());
            let progress = self.load_patience.saturating_sub(self.last_word.elapsed());
            match tokio::time::timeout(silence.min(progress), self.recv()).await {
                Ok(Some(FromWorker::Heartbeat(_))) => {}
                Ok(Some(FromWorker::Dying { message, .. })) => {
                    return Err(failure(code::WORKER, message, true));
                }
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {
                    return Err(failure(code::WORKER, "the worker ended while loading the model", true));
                }
                Err(_) if self.last_beat.elapsed() >= self.patience => {
                    let message = format!("the worker said nothing for {} ms", self.patience.as_millis());
                    return Err(failure(code::WORKER, message, true));
                }
                Err(_) if self.last_word.elapsed() >= self.load_patience => {
                    let message = format!(
                        "the load has made no progress for {} s (engine.load_patience_s) and is taken for hung",
                        self.load_patience.as_secs_f32()
                    );
                    return Err(failure(code::WORKER, message, true));
                }
                Err(_) => {}
            }
        }
    }

    /// The next answer that `take` takes.
    pub async fn expect<T>(&mut self, take: impl Fn(FromWorker) -> Option<T>) -> Result<T, Failure> {
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
