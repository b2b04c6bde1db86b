//! A stream whose node died, gone on with by another.
//!
//! Nodes that can write a token log into the stream ([`wire_api::node::continuation`]). It is read here, taken
//! out, and kept with the number of events the client has. When the node breaks off, another replica of
//! the same model is given log, count and seed, and the client's stream goes on with the very next event:
//! same id, same words, nothing twice and nothing missing. Where that cannot be had the break stays what
//! it is, and ends in an error event.
//!
//! Only whole events are passed on, so that a break never leaves half of one with the client.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use serde::Deserialize;
use wire_api::node::continuation::logged_tokens;
use wire_api::sse::DONE;

use super::BoxError;
use crate::fleet::gauge::Ticket;

/// How often one answer is gone on with.
const MOST: u32 = 3;

/// How far an answer has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Tokens the node logged.
    pub emitted: Vec<u32>,
    /// Events the client has.
    pub told: u64,
    /// Id of the answer.
    pub id: String,
    /// When it was begun, in seconds since 1970.
    pub created: u64,
}

/// The rest of an answer, from another node. The ticket counts it there.
pub type Rest = BoxFuture<'static, Option<(Incoming, Ticket)>>;

/// Finds another node for the rest.
pub type Elsewhere = Box<dyn FnMut(Progress) -> Rest + Send>;

/// What a node sends, as it comes or gone on with.
pub enum Upstream {
    /// As it comes.
    Plain(Incoming),
    /// Gone on with when it breaks off.
    Continued(Box<Continued>),
}

/// A stream that survives its node.
pub struct Continued {
    state: State,
    log: Log,
    elsewhere: Elsewhere,
    times: u32,
    /// Counts the rest at the node that says it.
    ticket: Option<Ticket>,
}

enum State {
    Streaming(Incoming),
    /// The break that is told when nobody can go on.
    Asking(Rest, Option<BoxError>),
}

impl Upstream {
    /// A stream with a token log, whose rest `elsewhere` finds should it break off.
    pub fn continued(body: Incoming, elsewhere: Elsewhere) -> Self {
        let log = Log::default();
        Self::Continued(Box::new(Continued {
            state: State::Streaming(body),
            log,
            elsewhere,
            times: 0,
            ticket: None,
        }))
    }
}

impl Continued {
    /// Begins to look for another node; None when there is nothing to go on with.
    fn ask(&mut self, broke: Option<BoxError>) -> Option<State> {
        if self.log.ended || self.times >= MOST || self.log.progress.id.is_empty() {
            return None;
        }
        self.times += 1;
        self.log.half.clear();
        if let Some(mut ticket) = self.ticket.take() {
            ticket.failed();
        }
        Some(State::Asking((self.elsewhere)(self.log.progress.clone()), broke))
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            match &mut self.state {
                State::Streaming(body) => {
                    let broke = match ready!(Pin::new(body).poll_frame(context)) {
                        Some(Ok(frame)) => {
                            let Ok(data) = frame.into_data() else { continue };
                            let events = self.log.read(&data);
                            if events.is_empty() {
                                continue;
                            }
                            return Poll::Ready(Some(Ok(Frame::data(events))));
                        }
                        Some(Err(error)) => Some(BoxError::from(error)),
                        None => None,
                    };
                    match self.ask(broke) {
                        Some(asking) => self.state = asking,
                        None => return Poll::Ready(None),
                    }
                }
                State::Asking(rest, broke) => match ready!(rest.as_mut().poll(context)) {
                    Some((body, ticket)) => {
                        self.ticket = Some(ticket);
                        self.state = State::Streaming(body);
                    }
                    None => {
                        let broke = broke.take();
                        self.times = MOST;
                        return Poll::Ready(broke.map(Err));
                    }
                },
            }
        }
    }
}

impl Body for Upstream {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Plain(body) => {
                Pin::new(body).poll_frame(context).map(|frame| frame.map(|frame| frame.map_err(Into::into)))
            }
            Self::Continued(continued) => continued.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Plain(body) => body.is_end_stream(),
            // To the last byte of the connection, so that it can be used again.
            Self::Continued(continued) => match &continued.state {
                State::Streaming(body) => continued.log.ended && body.is_end_stream(),
                State::Asking(..) => false,
            },
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Plain(body) => body.size_hint(),
            Self::Continued(_) => SizeHint::default(),
        }
    }
}

/// Reads a stream event by event.
#[derive(Default)]
struct Log {
    progress: Progress,
    /// What of the next event has come.
    half: Vec<u8>,
    /// The stream has come to its proper end, an error event included.
    ended: bool,
}

/// The first event names the answer.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    id: String,
    created: u64,
}

impl Log {
    /// The whole events in what has come, without the token log.
    fn read(&mut self, data: &[u8]) -> Bytes {
        self.half.extend_from_slice(data);
        let mut out = Vec::with_capacity(self.half.len());
        let mut from = 0;
        while let Some(length) = memchr::memmem::find(&self.half[from..], b"\n\n") {
            let event = from..from + length + 2;
            self.event(event.clone(), &mut out);
            from = event.end;
        }
        self.half.drain(..from);
        out.into()
    }

    fn event(&mut self, range: std::ops::Range<usize>, out: &mut Vec<u8>) {
        let event = &self.half[range];
        if event.starts_with(b":") {
            match logged_tokens(event.trim_ascii_end()) {
                Some(tokens) => self.progress.emitted.extend(tokens),
                None => out.extend_from_slice(event),
            }
            return;
        }
        out.extend_from_slice(event);
        let Some(data) = event.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else { return };
        if data == DONE.as_bytes() || data.starts_with(b"{\"error\":") {
            self.ended = true;
            return;
        }
        if self.progress.id.is_empty() {
            let head: Head = serde_json::from_slice(data).unwrap_or_default();
            (self.progress.id, self.progress.created) = (head.id, head.created);
        }
        self.progress.told += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = concat!(
        "data: {\"id\":\"chatcmpl-7\",\"created\":42,\"choices\":[]}\n\n",
        ": working\n\n",
        ": tokens 5,6\n\n",
        "data: {\"id\":\"chatcmpl-7\",\"created\":42,\"choices\":[1]}\n\n",
        ": tokens 7\n\n",
        "data: {\"id\":\"chatcmpl-7\",\"created\":42,\"choices\":[2]}\n\n",
        "data: [DONE]\n\n",
    );

    #[test]
    fn the_log_is_taken_out_and_kept_however_the_bytes_are_cut() {
        let expected: String =
            STREAM.split_inclusive("\n\n").filter(|event| !event.starts_with(": tokens")).collect();
        for size in [1, 2, 3, 7, 50, 1000] {
            let mut log = Log::default();
            let passed: Vec<u8> =
                STREAM.as_bytes().chunks(size).flat_map(|chunk| log.read(chunk).to_vec()).collect();
            assert_eq!(String::from_utf8(passed).expect("text"), expected, "in pieces of {size}");
            let progress = Progress { emitted: vec![5, 6, 7], told: 3, id: "chatcmpl-7".into(), created: 42 };
            assert_eq!((log.progress, log.ended), (progress, true));
        }
    }

    #[test]
    fn half_an_event_is_kept_back() {
        let mut log = Log::default();
        assert!(log.read(b"data: {\"id\":\"a\"").is_empty());
        assert_eq!(log.progress.told, 0);
        assert_eq!(log.read(b"}\n\ndata: {").as_ref(), b"data: {\"id\":\"a\"}\n\n");
        assert_eq!((log.progress.told, log.ended), (1, false));
        assert_eq!(log.read(b"\"error\":{}}\n\n").as_ref(), b"data: {\"error\":{}}\n\n");
        assert!(log.ended, "an error event is an end, too");
    }
}
