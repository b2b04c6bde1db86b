//! `POST /v1/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value};
use wire_api::ApiError;
use wire_api::openai::aggregate::CompletionAggregator;
use wire_api::openai::completions::{Completion, CompletionChoice, CompletionLogprobs, CompletionRequest};
use wire_api::openai::usage::TokenLogprob;

use super::error::Refused;
use super::payload::Payload;
use super::stream::{Fold, Pieces, answer, served};
use super::turn_log::TurnLog;
use super::{House, unix_seconds};
use crate::generation::{Turn, TurnEvent};
use crate::output::Delta;

/// Continues texts.
pub async fn create(State(house): State<Arc<House>>, Payload(body): Payload) -> Result<Response, Refused> {
    let request = CompletionRequest::parse(&body)?;
    let id = house.next_id();
    let log = TurnLog::new(&id, &request.model, "completion", request.stream);
    let pieces = Chunks::new(&id, &request);
    let stream = request.stream;
    let preparing = async move {
        let served = served(&house, &request.model).await?;
        house.generator.complete(&served, &request).await
    };
    Ok(answer(stream, preparing, pieces, CompletionAggregator::new(), log).await?)
}

impl Fold<Completion> for CompletionAggregator {
    type Whole = Completion;

    fn push(&mut self, piece: Completion) {
        Self::push(self, piece);
    }

    fn finish(self) -> Result<Completion, ApiError> {
        Self::finish(self)
    }
}

/// A turn as chunks of the completion stream.
struct Chunks {
    head: Completion,
    /// Characters said so far, per choice.
    offsets: Vec<u64>,
    logprobs: bool,
}

impl Chunks {
    fn new(id: &str, request: &CompletionRequest) -> Self {
        let head = Completion {
            id: format!("cmpl-{id}"),
            created: unix_seconds(),
            model: request.model.clone(),
            ..Completion::default()
        };
        let choices = request.prompts.len() * request.parameters.n as usize;
        Self { head, offsets: vec![0; choices], logprobs: request.parameters.logprobs }
    }

    fn chunk(&self, choice: CompletionChoice) -> Completion {
        Completion { choices: vec![choice], ..self.head.clone() }
    }

    /// The four lists of this endpoint. Offsets count the characters of the tokens' own text.
    fn lists(&mut self, choice: u32, logprobs: Vec<TokenLogprob>) -> CompletionLogprobs {
        let mut lists = CompletionLogprobs { top_logprobs: Some(Vec::new()), ..Default::default() };
        for entry in logprobs {
            if let Some(offset) = self.offsets.get_mut(choice as usize) {
                lists.text_offset.push(*offset);
                *offset += entry.token.chars().count() as u64;
            }
            let top: Map<String, Value> =
                entry.top_logprobs.into_iter().map(|top| (top.token, top.logprob.into())).collect();
            lists.top_logprobs.get_or_insert_default().push(top);
            lists.token_logprobs.push(Some(entry.logprob));
            lists.tokens.push(entry.token);
        }
        lists
    }
}

impl Pieces for Chunks {
    type Piece = Completion;

    fn open(&mut self) -> Vec<Completion> {
        let first = |index| self.chunk(CompletionChoice { index, ..CompletionChoice::default() });
        (0..self.offsets.len() as u32).map(first).collect()
    }

    fn event(&mut self, event: TurnEvent) -> Vec<Completion> {
        match event {
            TurnEvent::Started => Vec::new(),
            TurnEvent::Delta { choice, delta, logprobs } => {
                let text = match delta {
                    Some(Delta::Content(text) | Delta::Reasoning(text)) => text,
                    Some(Delta::ToolCall { .. } | Delta::ToolArguments { .. }) | None => String::new(),
                };
                let logprobs = (self.logprobs && !logprobs.is_empty()).then(|| self.lists(choice, logprobs));
                vec![self.chunk(CompletionChoice { index: choice, text, logprobs, ..Default::default() })]
            }
            TurnEvent::Ended { choice, ended } => vec![self.chunk(CompletionChoice {
                index: choice,
                finish_reason: Some(ended.reason),
                stop_reason: ended.stop.map(Into::into),
                ..Default::default()
            })],
        }
    }

    fn close(&mut self, turn: &Turn) -> Vec<Completion> {
        vec![Completion { usage: Some(turn.usage()), timings: turn.timings(), ..self.head.clone() }]
    }
}
