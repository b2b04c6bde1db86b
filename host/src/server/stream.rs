//! Server-sent events: frames as they come, and a comment every second while none does.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use tokio::time::{Instant, timeout, timeout_at};
use wire_api::node::continuation::{LOG_HEADER, token_comment};
use wire_api::{ApiError, ErrorKind, sse};

use super::House;
use super::continuity::Continuity;
use super::turn_log::TurnLog;
use crate::generation::{Served, Turn, TurnEvent};

/// Clients take a connection that says nothing for dead; some after little more than a second.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// How long an answer may be prepared before the response begins without it. Errors found within come with a
/// status of their own; later ones come as an event.
const PREPARATION: Duration = Duration::from_millis(400);

/// What an answer is called in one dialect: the pieces a stream is made of, which folded are the whole.
pub trait Pieces: Send + 'static {
    /// One piece; what a `data:` line holds.
    type Piece: Serialize + Send;

    /// The pieces that open the answer.
    fn open(&mut self) -> Vec<Self::Piece>;
    /// The pieces of one event.
    fn event(&mut self, event: TurnEvent) -> Vec<Self::Piece>;
    /// The pieces that end a complete answer.
    fn close(&mut self, turn: &Turn) -> Vec<Self::Piece>;
}

/// How pieces are folded into the whole.
pub trait Fold<Piece> {
    /// The whole.
    type Whole: Serialize;

    /// Adds the next piece.
    fn push(&mut self, piece: Piece);
    /// The whole, once every piece has come.
    fn finish(self) -> Result<Self::Whole, ApiError>;
}

/// A turn that is being prepared.
type Preparing = Pin<Box<dyn Future<Output = Result<Turn, ApiError>> + Send>>;

enum Stage {
    Preparing(Preparing),
    /// An event that came before the response began, then the rest.
    Speaking(Box<Turn>, Option<TurnEvent>),
    Over,
}

/// Waits until `name` serves, for as long as the server has patience.
pub async fn served(house: &House, name: &str) -> Result<Served, ApiError> {
    let patience = house.settings.model_patience;
    match timeout(patience, house.generator.serve(name)).await {
        Ok(served) => served,
        Err(_) => {
            let message = format!("the model '{name}' is not ready after {} s", patience.as_secs());
            Err(ApiError::new(ErrorKind::Loading, message).with_retry_after(10))
        }
    }
}

/// Answers with a stream, or with the whole of what the stream would have been.
pub async fn answer<P: Pieces>(
    stream: bool,
    preparing: impl Future<Output = Result<Turn, ApiError>> + Send + 'static,
    pieces: P,
    fold: impl Fold<P::Piece>,
    log: TurnLog,
) -> Result<Response, ApiError> {
    answer_within(stream, preparing, pieces, fold, log, &Continuity::default()).await
}

/// As [`answer`], where another node began the answer or may have to go on with it.
pub async fn answer_within<P: Pieces>(
    stream: bool,
    preparing: impl Future<Output = Result<Turn, ApiError>> + Send + 'static,
    pieces: P,
    mut fold: impl Fold<P::Piece>,
    mut log: TurnLog,
    continuity: &Continuity,
) -> Result<Response, ApiError> {
    if stream {
        return streamed(preparing, pieces, log, continuity).await;
    }
    let told = whole(preparing, pieces, &mut log, |piece| fold.push(piece)).await;
    match told.and_then(|()| fold.finish()) {
        Ok(whole) => {
            log.done();
            Ok(Json(whole).into_response())
        }
        Err(error) => {
            log.failed(&error);
            Err(error)
        }
    }
}

/// Folds the pieces a stream would be made of.
async fn whole<P: Pieces>(
    preparing: impl Future<Output = Result<Turn, ApiError>>,
    mut pieces: P,
    log: &mut TurnLog,
    mut fold: impl FnMut(P::Piece),
) -> Result<(), ApiError> {
    let mut turn = preparing.await?;
    pieces.open().into_iter().for_each(&mut fold);
    while let Some(event) = turn.next().await? {
        if matches!(event, TurnEvent::Delta { .. }) {
            log.spoke();
        }
        log.count(&turn);
        pieces.event(event).into_iter().for_each(&mut fold);
    }
    pieces.close(&turn).into_iter().for_each(&mut fold);
    log.count(&turn);
    Ok(())
}

/// Answers with a stream. What goes wrong while the turn is prepared is an error with a status, unless
/// preparing takes so long that the response has to begin before.
async fn streamed<P: Pieces>(
    preparing: impl Future<Output = Result<Turn, ApiError>> + Send + 'static,
    pieces: P,
    log: TurnLog,
    continuity: &Continuity,
) -> Result<Response, ApiError> {
    let stage = prepare(Box::pin(preparing)).await?;
    let (log_tokens, told) = (continuity.log, continuity.told);
    let conversation = Conversation { stage, pieces, log, opened: false, log_tokens, told };
    let body = stream::unfold(conversation, |mut conversation| async move {
        let bytes = conversation.next_bytes().await?;
        Some((Ok::<_, Infallible>(Bytes::from(bytes)), conversation))
    });
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8"), (header::CACHE_CONTROL, "no-cache")];
    let mut response = (headers, Body::from_stream(body)).into_response();
    if log_tokens {
        response.headers_mut().insert(LOG_HEADER, HeaderValue::from_static("1"));
    }
    Ok(response)
}

/// Prepares for a while; admission tells of prompts the engine refuses, a place in the queue may take longer.
async fn prepare(mut preparing: Preparing) -> Result<Stage, ApiError> {
    let deadline = Instant::now() + PREPARATION;
    let Ok(turn) = timeout_at(deadline, &mut preparing).await else {
        return Ok(Stage::Preparing(preparing));
    };
    let mut turn = Box::new(turn?);
    match timeout_at(deadline, turn.next()).await {
        Err(_) => Ok(Stage::Speaking(turn, None)),
        Ok(event) => {
            let event = event?;
            Ok(Stage::Speaking(turn, event))
        }
    }
}

/// A streamed answer, from the first frame to the last.
struct Conversation<P> {
    stage: Stage,
    pieces: P,
    log: TurnLog,
    opened: bool,
    /// Tokens are written into the stream, as comments before the events made of them.
    log_tokens: bool,
    /// Events the client has already.
    told: u64,
}

impl<P: Pieces> Conversation<P> {
    /// The next frames; `None` after the last.
    async fn next_bytes(&mut self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        if !self.opened {
            self.opened = true;
            let pieces = self.pieces.open();
            write(&mut out, pieces, &mut self.told);
            if !out.is_empty() {
                return Some(out);
            }
        }
        while out.is_empty() {
            match self.advance(&mut out).await {
                Ok(true) => {}
                Ok(false) => return (!out.is_empty()).then_some(out),
                Err(error) => {
                    self.log.failed(&error);
                    self.stage = Stage::Over;
                    sse::encode::json_data(&mut out, &error.openai_body());
                }
            }
        }
        Some(out)
    }

    /// One step: an event, a sign of life, or the end (`false`).
    async fn advance(&mut self, out: &mut Vec<u8>) -> Result<bool, ApiError> {
        match &mut self.stage {
            Stage::Over => return Ok(false),
            Stage::Preparing(preparing) => match timeout(SIGN_OF_LIFE, preparing).await {
                Err(_) => sse::encode::comment(out, "waiting for the model"),
                Ok(turn) => self.stage = Stage::Speaking(Box::new(turn?), None),
            },
            Stage::Speaking(turn, held) => {
                let event = match held.take() {
                    Some(event) => Some(event),
                    None => match timeout(SIGN_OF_LIFE, turn.next()).await {
                        Err(_) => {
                            sse::encode::comment(out, "working");
                            return Ok(true);
                        }
                        Ok(event) => event?,
                    },
                };
                self.log.count(turn);
                let tokens = turn.take_log();
                if self.log_tokens && !tokens.is_empty() {
                    sse::encode::comment(out, &token_comment(&tokens));
                }
                match event {
                    Some(event) => {
                        if matches!(event, TurnEvent::Delta { .. }) {
                            self.log.spoke();
                        }
                        write(out, self.pieces.event(event), &mut self.told);
                    }
                    None => {
                        write(out, self.pieces.close(turn), &mut self.told);
                        sse::encode::done(out);
                        self.log.done();
                        self.stage = Stage::Over;
                    }
                }
            }
        }
        Ok(true)
    }
}

/// Writes pieces, but for the first `told`.
fn write<T: Serialize>(out: &mut Vec<u8>, pieces: Vec<T>, told: &mut u64) {
    for piece in pieces {
        if *told > 0 {
            *told -= 1;
            continue;
        }
        sse::encode::json_data(out, &piece);
    }
}
