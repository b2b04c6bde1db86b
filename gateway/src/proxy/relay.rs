//! The answer's body on its way to the client.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;
use wire_api::{ApiError, Dialect, ErrorKind};

use super::BoxError;
use super::continuation::Upstream;
use super::observe::{Observer, Tokens};
use crate::fleet::gauge::Ticket;
use crate::server::account::Account;

/// The code of an answer that broke off.
pub const UPSTREAM_LOST: &str = "upstream_lost";
/// The code of an answer that fell silent.
pub const UPSTREAM_IDLE: &str = "upstream_idle";

/// What happened to an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It came whole.
    Complete,
    /// The client left before its end.
    ClientGone,
    /// The node broke off or fell silent.
    UpstreamLost,
}

/// Passes an upstream body on, frame by frame, and tells what it saw when it is dropped.
pub struct Relay {
    upstream: Upstream,
    observer: Observer,
    /// The caller's dialect when the answer is a stream of events: broken ones end with an error event.
    stream: Option<Dialect>,
    idle: Idle,
    ticket: Ticket,
    account: Account,
    started: Instant,
    /// The node said no; the body says why.
    refused: bool,
    over: Option<Outcome>,
}

/// Ends a wait that lasts too long. The timer is only set while nothing comes, and not moved for every frame.
struct Idle {
    limit: Duration,
    since: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    fn new(limit: Duration) -> Self {
        Self { limit, since: Instant::now(), timer: None }
    }

    fn reset(&mut self) {
        self.since = Instant::now();
    }

    /// Ready when nothing came for the whole limit.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let deadline = self.since + self.limit;
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.into())));
            ready!(timer.as_mut().poll(context));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline.into());
        }
    }
}

impl Relay {
    /// Relays `upstream`, which began to arrive for a request that `started` then. `refused`: its status says no.
    pub fn new(
        upstream: Upstream,
        stream: Option<Dialect>,
        idle_limit: Duration,
        ticket: Ticket,
        account: Account,
        started: Instant,
        refused: bool,
    ) -> Self {
        Self {
            upstream,
            observer: Observer::new(stream.is_some()),
            stream,
            idle: Idle::new(idle_limit),
            ticket,
            account,
            started,
            refused,
            over: None,
        }
    }

    fn saw(&mut self, bytes: &[u8]) {
        let had_content = self.observer.first_content().is_some();
        self.observer.saw(bytes);
        if !had_content && let Some(first) = self.observer.first_content() {
            let seconds = first.duration_since(self.started).as_secs_f64();
            self.ticket.prefilled();
            self.ticket.replica().first_token(seconds);
            self.account.first_token(seconds);
        }
    }

    /// The last frame of a stream that broke off: an error event, never a plain cut or a fake end.
    fn broken(&mut self, error: &ApiError) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.over = Some(Outcome::UpstreamLost);
        self.ticket.failed();
        match self.stream {
            Some(dialect) => {
                let frame = error_event(error, dialect, self.account.request_id());
                Poll::Ready(Some(Ok(Frame::data(frame))))
            }
            None => Poll::Ready(Some(Err(error.to_string().into()))),
        }
    }
}

/// An error as the last event of a stream in the caller's dialect.
pub fn error_event(error: &ApiError, dialect: Dialect, request_id: &str) -> Bytes {
    let mut frame = Vec::with_capacity(256);
    match dialect {
        Dialect::OpenAi => wire_api::sse::encode::json_data(&mut frame, &error.openai_body()),
        Dialect::Anthropic => {
            wire_api::sse::encode::json_event(&mut frame, "error", &error.anthropic_body(Some(request_id)));
        }
    }
    frame.into()
}

impl Body for Relay {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if this.over.is_some() {
            return Poll::Ready(None);
        }
        match Pin::new(&mut this.upstream).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                this.idle.reset();
                if let Some(bytes) = frame.data_ref() {
                    this.saw(bytes);
                }
                if this.upstream.is_end_stream() && (this.stream.is_none() || this.observer.ended()) {
                    this.over = Some(Outcome::Complete);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                let why = crate::fleet::node_client::reason(&*error);
                this.broken(&lost(format!("the node broke off its answer: {why}")))
            }
            Poll::Ready(None) if this.stream.is_some() && !this.observer.ended() => {
                this.broken(&lost("the node ended its answer before the end of the stream".to_owned()))
            }
            Poll::Ready(None) => {
                this.over = Some(Outcome::Complete);
                Poll::Ready(None)
            }
            Poll::Pending => {
                ready!(this.idle.poll(context));
                let silence = this.idle.limit.as_secs();
                let message = format!("the node sent nothing for {silence} seconds");
                this.broken(&ApiError::new(ErrorKind::Timeout, message).with_code(UPSTREAM_IDLE))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over.is_some()
    }

    fn size_hint(&self) -> SizeHint {
        match self.stream {
            Some(_) => SizeHint::default(),
            None => self.upstream.size_hint(),
        }
    }
}

fn lost(message: String) -> ApiError {
    ApiError::new(ErrorKind::BadGateway, message).with_code(UPSTREAM_LOST)
}

impl Drop for Relay {
    fn drop(&mut self) {
        if self.refused {
            self.account.refused();
            return;
        }
        self.observer.finish();
        let outcome = self.over.unwrap_or(Outcome::ClientGone);
        let tokens: Option<Tokens> = self.observer.tokens();
        if outcome == Outcome::Complete {
            self.ticket.succeeded();
            if let Some(tokens) = tokens {
                self.ticket.model().answered(tokens.completion);
            }
        }
        if let Some(seconds) = self.observer.inter_token_s() {
            self.ticket.replica().inter_token(seconds);
            self.account.inter_token(seconds);
        }
        self.account.answered(tokens, outcome);
    }
}
