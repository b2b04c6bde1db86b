//! A request's place with a model, from submission to its last event.
//!
//! The keeper of the model holds the [`Ticket`], the caller the [`SequenceStream`]; dropping the stream cancels
//! the sequence. The ticket holds the token log: with it the request can be continued on another worker
//! exactly where it was.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::Stream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::keeper::Command;
use crate::worker::message::{FailureCode, MissReason, SequenceEvent, Submission};

/// Tokens a request has to say before it is no longer suspected of what became of an earlier worker.
const PROBATION: usize = 16;

/// Counts something until it is dropped.
#[derive(Debug)]
pub(super) struct Count(Arc<AtomicU32>);

impl Count {
    pub fn of(counter: &Arc<AtomicU32>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counter))
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Ticket {
    /// What was asked for; its `emitted` grows with every token that was said.
    pub submission: Submission,
    out: UnboundedSender<SequenceEvent>,
    /// `Started` was passed on.
    pub started: bool,
    /// Why not more of the prompt came from the prefix cache.
    pub miss: Option<MissReason>,
    /// Workers that died with it in the batch.
    pub crashes: u32,
    /// The present worker has it.
    pub sent: bool,
    /// Tokens said before the present worker got it.
    pub resumed_at: usize,
    pub submitted: Instant,
    pub last_token: Option<Instant>,
    _count: Count,
}

impl Ticket {
    pub fn new(
        submission: Submission,
        inflight: &Arc<AtomicU32>,
    ) -> (Self, UnboundedReceiver<SequenceEvent>) {
        let (out, events) = unbounded_channel();
        let ticket = Self {
            submission,
            out,
            started: false,
            miss: None,
            crashes: 0,
            sent: false,
            resumed_at: 0,
            submitted: Instant::now(),
            last_token: None,
            _count: Count::of(inflight),
        };
        (ticket, events)
    }

    /// Passes an event on, and writes the token log.
    pub fn pass(&mut self, event: SequenceEvent) {
        match &event {
            // A replayed sequence starts again; its reader need not know.
            SequenceEvent::Started { miss_reason, .. } => {
                if std::mem::replace(&mut self.started, true) {
                    return;
                }
                self.miss = *miss_reason;
            }
            SequenceEvent::Token { id, .. } => {
                self.submission.emitted.push(*id);
                self.last_token = Some(Instant::now());
            }
            _ => {}
        }
        // Nobody reads any more: the cancel is on its way.
        let _ = self.out.send(event);
    }

    /// Ends it.
    pub fn fail(mut self, code: FailureCode, message: &str, retry_after_ms: Option<u32>) {
        let retryable = retry_after_ms.is_some();
        self.pass(SequenceEvent::Failed { code, message: message.to_owned(), retryable, retry_after_ms });
    }

    /// Whether it was in the batch when a worker died, and has not shown yet that this worker survives it.
    pub fn on_probation(&self) -> bool {
        self.crashes > 0 && self.sent && self.submission.emitted.len() < self.resumed_at + PROBATION
    }

    /// Whether its last event is this one.
    pub fn is_end(event: &SequenceEvent) -> bool {
        matches!(event, SequenceEvent::Finished { .. } | SequenceEvent::Failed { .. })
    }
}

/// The events of one sequence. Dropping it cancels the sequence.
#[derive(Debug)]
pub struct SequenceStream {
    id: u64,
    events: UnboundedReceiver<SequenceEvent>,
    commands: UnboundedSender<Command>,
    over: bool,
}

impl SequenceStream {
    pub(super) fn new(
        id: u64,
        events: UnboundedReceiver<SequenceEvent>,
        commands: UnboundedSender<Command>,
    ) -> Self {
        Self { id, events, commands, over: false }
    }

    /// The next event; `None` after the last.
    pub async fn next_event(&mut self) -> Option<SequenceEvent> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }
}

impl Stream for SequenceStream {
    type Item = SequenceEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<SequenceEvent>> {
        if self.over {
            return Poll::Ready(None);
        }
        let event = std::task::ready!(self.events.poll_recv(context)).unwrap_or_else(|| {
            // The keeper is gone without a word; that must not look like an answer.
            SequenceEvent::Failed {
                code: FailureCode::DeviceLost,
                message: "the model was unloaded".into(),
                retryable: true,
                retry_after_ms: Some(1000),
            }
        });
        self.over = Ticket::is_end(&event);
        Poll::Ready(Some(event))
    }
}

impl Drop for SequenceStream {
    fn drop(&mut self) {
        if !self.over {
            // The keeper is gone: so is the sequence.
            let _ = self.commands.send(Command::Cancel(self.id));
        }
    }
}
