//! A stream whose answer is not there yet: the client hears something every second until it is.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::time::{Interval, MissedTickBehavior};
use wire_api::{ApiError, Dialect};

use super::BoxError;
use super::relay::error_event;

/// How often a waiting client hears something.
pub const KEEP_ALIVE: Duration = Duration::from_millis(900);

/// The answer under way.
pub type Answer = Pin<Box<dyn Future<Output = Response> + Send>>;

/// What to tell a waiting client: how far the load has come.
pub type Progress = Box<dyn Fn() -> Option<String> + Send>;

/// Keep-alives, then the body of the answer, or an error event when the answer is an error.
pub struct Waiting {
    state: State,
    dialect: Dialect,
    request_id: String,
    progress: Progress,
    interval: Interval,
}

enum State {
    Asking(Answer),
    /// An answer that is an error: its body is gathered into one event.
    Refused {
        status: u16,
        body: axum::body::Body,
        gathered: Vec<u8>,
    },
    Relaying(axum::body::Body),
    Over,
}

impl Waiting {
    /// Waits for `answer`; the status has been sent already.
    pub fn new(answer: Answer, dialect: Dialect, request_id: String, progress: Progress) -> Self {
        let mut interval = tokio::time::interval(KEEP_ALIVE);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { state: State::Asking(answer), dialect, request_id, progress, interval }
    }

    fn keep_alive(&self) -> Bytes {
        let mut frame = Vec::with_capacity(64);
        match self.dialect {
            Dialect::OpenAi => {
                let text = (self.progress)().unwrap_or_else(|| "waiting".to_owned());
                wire_api::sse::encode::comment(&mut frame, &text);
            }
            Dialect::Anthropic => {
                wire_api::sse::encode::event(&mut frame, "ping", "{\"type\": \"ping\"}");
            }
        }
        frame.into()
    }
}

impl Body for Waiting {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        loop {
            match &mut this.state {
                State::Asking(answer) => {
                    if let Poll::Ready(response) = answer.as_mut().poll(context) {
                        let status = response.status();
                        let body = response.into_body();
                        this.state = if status.is_success() {
                            State::Relaying(body)
                        } else {
                            State::Refused { status: status.as_u16(), body, gathered: Vec::new() }
                        };
                        continue;
                    }
                    return match this.interval.poll_tick(context) {
                        Poll::Ready(_) => Poll::Ready(Some(Ok(Frame::data(this.keep_alive())))),
                        Poll::Pending => Poll::Pending,
                    };
                }
                State::Refused { status, body, gathered } => match Pin::new(body).poll_frame(context) {
                    Poll::Ready(Some(Ok(frame))) => {
                        gathered.extend_from_slice(frame.data_ref().map_or(&[], |bytes| bytes));
                    }
                    Poll::Ready(_) => {
                        let error = ApiError::from_response(*status, gathered);
                        let frame = error_event(&error, this.dialect, &this.request_id);
                        this.state = State::Over;
                        return Poll::Ready(Some(Ok(Frame::data(frame))));
                    }
                    Poll::Pending => return Poll::Pending,
                },
                State::Relaying(body) => {
                    return Pin::new(body).poll_frame(context).map_err(Into::into);
                }
                State::Over => return Poll::Ready(None),
            }
        }
    }
}
