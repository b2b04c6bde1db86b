//! Dialects no node speaks by itself: written as OpenAI chat on the way out, and back on the way in.
//!
//! The words are `wire-api`'s; here they meet a body that arrives in pieces. The node is always asked
//! for a stream, and a client that wanted none gets the fold of it, so that both see one answer.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body as AnyBody;
use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use serde_json::Value;
use wire_api::anthropic::messages::MessagesRequest;
use wire_api::node::routes;
use wire_api::node::text::TokenizeResponse;
use wire_api::openai::aggregate::ChatAggregator;
use wire_api::openai::chat::{ChatCompletionChunk, ChunkHead};
use wire_api::openai::responses::ResponsesRequest;
use wire_api::sse::{DONE, SseDecoder, SseItem};
use wire_api::translate::chat_on_messages::{self, stream::ChatStream};
use wire_api::translate::messages_on_chat::{self, stream::MessagesStream};
use wire_api::translate::responses_on_chat::{self, stream::ResponsesStream};
use wire_api::translate::{ChatServer, identity};
use wire_api::{ApiError, ErrorKind};

use super::BoxError;
use super::relay::{UPSTREAM_IDLE, UPSTREAM_LOST};
use crate::server::api::Api;

/// The path every translated request goes to.
const CHAT: &str = "/v1/chat/completions";

/// The way back to the client's dialect.
#[derive(Debug, Clone)]
pub enum Return {
    /// To an Anthropic client.
    Messages(Box<messages_on_chat::ReplyContext>),
    /// To a client of OpenAI responses.
    Responses(Box<responses_on_chat::ReplyContext>),
    /// To a client that wants tokens counted.
    CountTokens,
}

/// A request in the words of a node.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Where it goes.
    pub path: &'static str,
    /// What is sent.
    pub body: Bytes,
    /// Whether the client wants a stream.
    pub stream: bool,
    /// The way back.
    pub back: Return,
    /// Fields the node will not see.
    pub dropped: Vec<String>,
}

/// Writes a request for a node; None where nodes speak the dialect themselves.
///
/// # Errors
/// 400, naming the path, for what a node cannot be told.
pub fn prepare(api: Api, body: &[u8]) -> Result<Option<Prepared>, ApiError> {
    let server = ChatServer::default();
    let prepared = match api {
        Api::Messages => {
            let request = MessagesRequest::parse(body)?;
            let translated = messages_on_chat::request::translate(request, server)?;
            Prepared {
                path: CHAT,
                body: translated.request.to_body().into(),
                stream: translated.reply.stream,
                back: Return::Messages(Box::new(translated.reply)),
                dropped: translated.dropped,
            }
        }
        Api::Responses => {
            let request = ResponsesRequest::parse(body)?;
            let translated = responses_on_chat::request::translate(request, server)?;
            Prepared {
                path: CHAT,
                body: translated.request.to_body().into(),
                stream: translated.reply.stream,
                back: Return::Responses(Box::new(translated.reply)),
                dropped: translated.dropped,
            }
        }
        Api::CountTokens => {
            let request = MessagesRequest::parse_count_tokens(body)?;
            let translated = messages_on_chat::request::translate(request, server)?;
            Prepared {
                path: routes::TOKENIZE,
                body: translated.request.to_body().into(),
                stream: false,
                back: Return::CountTokens,
                dropped: translated.dropped,
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(prepared))
}

/// The whole answer in the client's dialect, folded from a stream of OpenAI chat; without a way back, in that.
///
/// # Errors
/// What the node said went wrong, or 502 when its answer is none.
pub async fn fold(mut chat: AnyBody, back: Option<&Return>) -> Result<Value, ApiError> {
    if let Some(Return::CountTokens) = back {
        let body = chat.collect().await.map_err(|error| broken(&error.to_string()))?.to_bytes();
        let counted: TokenizeResponse =
            serde_json::from_slice(&body).map_err(|error| broken(&error.to_string()))?;
        return Ok(serde_json::json!({"input_tokens": counted.count}));
    }
    let mut fold = ChatAggregator::new();
    let mut decoder = SseDecoder::new();
    while let Some(frame) = chat.frame().await {
        let frame = frame.map_err(|error| broken(&error.to_string()))?;
        let bytes: &[u8] = frame.data_ref().map_or(&[], |bytes| bytes);
        decoder.feed(bytes).map_err(|error| broken(&error.to_string()))?;
        while let Some(item) = decoder.next_item() {
            let SseItem::Event { data, .. } = item else { continue };
            if data.trim() == DONE {
                continue;
            }
            match (serde_json::from_str::<ChatCompletionChunk>(data), ApiError::from_event(data)) {
                (_, Some(error)) => return Err(as_it_was(error)),
                (Ok(chunk), None) => fold.push(chunk),
                (Err(error), None) => return Err(broken(&error.to_string())),
            }
        }
    }
    let completion = fold.finish()?;
    match back {
        Some(Return::Messages(context)) => {
            let message = messages_on_chat::reply::translate(completion, context)?;
            Ok(serde_json::to_value(message).expect("a wire type is always representable as JSON"))
        }
        Some(Return::Responses(context)) => {
            responses_on_chat::reply::translate(completion, (**context).clone())
        }
        Some(Return::CountTokens) | None => {
            Ok(serde_json::to_value(completion).expect("a wire type is always representable as JSON"))
        }
    }
}

/// An error event holds less than the error did: the relay's own kinds are told by their codes.
fn as_it_was(mut error: ApiError) -> ApiError {
    match error.code.as_str() {
        UPSTREAM_LOST => error.kind = ErrorKind::BadGateway,
        UPSTREAM_IDLE => error.kind = ErrorKind::Timeout,
        _ => {}
    }
    error
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn broken(reason: &str) -> ApiError {
    ApiError::new(ErrorKind::BadGateway, format!("the node's answer cannot be read: {reason}"))
        .with_code("upstream_malformed")
}

/// The pen that writes the client's dialect.
enum Pen {
    Messages(Box<MessagesStream>),
    Responses(Box<ResponsesStream>),
    Chat(Box<ChatStream>),
}

impl Pen {
    fn start(&mut self, out: &mut Vec<u8>) {
        match self {
            Self::Messages(stream) => stream.start(out),
            Self::Responses(stream) => stream.start(out),
            // The node's own first event begins it.
            Self::Chat(_) => {}
        }
    }

    fn ping(&self, out: &mut Vec<u8>) {
        match self {
            Self::Messages(stream) => stream.ping(out),
            Self::Responses(stream) => stream.ping(out),
            Self::Chat(_) => wire_api::sse::encode::comment(out, "ping"),
        }
    }

    fn data(&mut self, payload: &str, out: &mut Vec<u8>) {
        match self {
            Self::Messages(stream) => stream.data(payload, out),
            Self::Responses(stream) => stream.data(payload, out),
            Self::Chat(stream) => stream.event(payload, &mut |piece| piece.write(out)),
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        match self {
            Self::Messages(stream) => stream.end(out),
            Self::Responses(stream) => stream.end(out),
            Self::Chat(stream) => stream.end(&mut |piece| piece.write(out)),
        }
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        match self {
            Self::Messages(stream) => stream.fail(error, out),
            Self::Responses(stream) => stream.fail(error, out),
            Self::Chat(stream) => stream.fail(error.clone(), &mut |piece| piece.write(out)),
        }
    }
}

/// A node's stream on its way to a client of another dialect.
pub struct TranslatedStream {
    said: AnyBody,
    decoder: SseDecoder,
    pen: Pen,
    out: Vec<u8>,
    over: bool,
}

impl TranslatedStream {
    /// Translates a stream of OpenAI chat; `input_tokens` is an estimate that the end corrects. None when the
    /// way back is no stream.
    pub fn new(chat: AnyBody, back: &Return, request_id: &str, input_tokens: u64) -> Option<Self> {
        let mut pen = match back {
            Return::Messages(context) => {
                let id = identity::message_id(request_id);
                Pen::Messages(Box::new(MessagesStream::new(id, input_tokens, (**context).clone())))
            }
            Return::Responses(context) => {
                let id = identity::response_id(request_id);
                Pen::Responses(Box::new(ResponsesStream::new(id, unix_seconds(), (**context).clone())))
            }
            Return::CountTokens => return None,
        };
        let mut out = Vec::with_capacity(1024);
        pen.start(&mut out);
        Some(Self { said: chat, decoder: SseDecoder::new(), pen, out, over: false })
    }

    /// Translates a stream of Anthropic events into OpenAI chat.
    pub fn into_chat(events: AnyBody, context: &chat_on_messages::ReplyContext, request_id: &str) -> Self {
        let id = identity::completion_id(request_id);
        let head = ChunkHead { id, created: unix_seconds(), model: context.model.clone() };
        let pen = Pen::Chat(Box::new(ChatStream::new(head, context.clone())));
        Self { said: events, decoder: SseDecoder::new(), pen, out: Vec::new(), over: false }
    }

    fn read(&mut self, bytes: &[u8]) {
        if let Err(error) = self.decoder.feed(bytes) {
            self.over = true;
            return self.pen.fail(&broken(&error.to_string()), &mut self.out);
        }
        while let Some(item) = self.decoder.next_item() {
            match item {
                SseItem::Event { data, .. } => self.pen.data(data, &mut self.out),
                SseItem::Comment(_) => self.pen.ping(&mut self.out),
            }
        }
    }
}

impl Body for TranslatedStream {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        loop {
            if !this.out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.out).into()))));
            }
            if this.over {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut this.said).poll_frame(context)) {
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        this.read(&bytes);
                    }
                }
                Some(Err(error)) => {
                    this.over = true;
                    this.pen.fail(&broken(&error.to_string()), &mut this.out);
                }
                None => {
                    this.over = true;
                    this.pen.end(&mut this.out);
                }
            }
        }
    }
}
