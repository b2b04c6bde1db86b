//! A request in the words of the node it goes to.
//!
//! Neurons and servers of OpenAI's API are written to as the request was prepared: its own bytes, or OpenAI
//! chat. A server that speaks only Anthropic's API gets an Anthropic client's bytes as they came, and everybody
//! else's chat translated.

use std::ops::Range;

use bytes::Bytes;
use http::HeaderValue;
use wire_api::openai::chat::ChatRequest;
use wire_api::translate::{MessagesServer, chat_on_messages};
use wire_api::{ApiError, Dialect, ErrorKind};

use super::forward::Outgoing;
use super::translate::Return;
use crate::config::NodeKind;
use crate::server::api::Api;

/// Where an Anthropic server takes chat.
const MESSAGES: &str = "/v1/messages";

/// What is sent to a node, and the way back.
pub struct Wording {
    /// What is sent.
    pub outgoing: Outgoing,
    /// Where the model stands in the body.
    pub model_span: Option<Range<usize>>,
    /// From the node's dialect to OpenAI chat, where the node speaks Anthropic's.
    pub first: Option<Box<chat_on_messages::ReplyContext>>,
    /// From OpenAI chat, or what the node speaks, to the client's dialect.
    pub then: Option<Return>,
    /// The dialect the node answers in.
    pub spoken: Dialect,
    /// The node is asked for a stream.
    pub stream: bool,
    /// Fields the node will not see.
    pub dropped: Vec<String>,
}

/// A request as it was prepared for servers of OpenAI's API, and as it came.
pub struct Written<'a> {
    /// The route it came by.
    pub api: Api,
    /// As prepared.
    pub outgoing: &'a Outgoing,
    /// Where the model stands in the prepared body.
    pub model_span: Option<Range<usize>>,
    /// The way back from the prepared request.
    pub back: Option<&'a Return>,
    /// The client wants a stream.
    pub stream: bool,
    /// Fields the preparation dropped.
    pub dropped: &'a [String],
    /// Path and body as the client sent them, where the preparation changed them.
    pub original: Option<&'a (String, Bytes)>,
}

impl Written<'_> {
    /// The request in the words of a node of this kind.
    ///
    /// # Errors
    /// 422 for a route the node has not, 400 for what its dialect has no word for.
    pub fn to(&self, kind: NodeKind) -> Result<Wording, ApiError> {
        if kind != NodeKind::Anthropic {
            return Ok(self.as_prepared());
        }
        match self.api {
            Api::Messages | Api::CountTokens => Ok(self.as_it_came()),
            Api::Chat | Api::Responses => self.to_messages(),
            other => {
                let message = format!(
                    "the servers of this model speak Anthropic's API, which has no {}",
                    other.as_str()
                );
                Err(ApiError::new(ErrorKind::Unsupported, message).with_code("dialect_unsupported"))
            }
        }
    }

    fn as_prepared(&self) -> Wording {
        let folds = matches!(self.back, Some(Return::Messages(_) | Return::Responses(_)));
        Wording {
            outgoing: self.outgoing.clone(),
            model_span: self.model_span.clone(),
            first: None,
            then: self.back.cloned(),
            spoken: if self.back.is_some() { Dialect::OpenAi } else { self.api.dialect() },
            stream: self.stream || folds,
            dropped: self.dropped.to_vec(),
        }
    }

    fn as_it_came(&self) -> Wording {
        let mut outgoing = self.outgoing.clone();
        if let Some((path, body)) = self.original {
            (outgoing.path, outgoing.body) = (path.clone(), body.clone());
        }
        let model_span = wire_api::peek(&outgoing.body).ok().and_then(|peeked| peeked.model_span);
        dated(&mut outgoing);
        let stream = self.stream;
        let spoken = Dialect::Anthropic;
        Wording { outgoing, model_span, first: None, then: None, spoken, stream, dropped: Vec::new() }
    }

    fn to_messages(&self) -> Result<Wording, ApiError> {
        let request = ChatRequest::parse_lenient(&self.outgoing.body)?;
        let mut translated = chat_on_messages::request::translate(request, MessagesServer::default())?;
        // Asked for a stream even if the client wants none: both see one answer.
        translated.request.stream = true;
        // A whole answer always counts its tokens.
        translated.reply.include_usage |= !self.stream;
        let mut outgoing = self.outgoing.clone();
        outgoing.path = MESSAGES.to_owned();
        outgoing.body = translated.request.to_body().into();
        dated(&mut outgoing);
        let mut dropped = self.dropped.to_vec();
        dropped.extend(translated.dropped.into_iter().filter(|field| !self.dropped.contains(field)));
        Ok(Wording {
            model_span: wire_api::peek(&outgoing.body)?.model_span,
            outgoing,
            first: Some(Box::new(translated.reply)),
            then: self.back.cloned(),
            spoken: Dialect::Anthropic,
            stream: true,
            dropped,
        })
    }
}

/// The dialect wants to be told its version.
fn dated(outgoing: &mut Outgoing) {
    outgoing.headers.entry("anthropic-version").or_insert(HeaderValue::from_static("2023-06-01"));
}
