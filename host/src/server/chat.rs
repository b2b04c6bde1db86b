//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use wire_api::ApiError;
use wire_api::openai::aggregate::ChatAggregator;
use wire_api::openai::chat::{
    ChatCompletion, ChatCompletionChunk, ChatRequest, ChunkHead, Delta as Wire, ToolCallDelta,
};
use wire_api::openai::usage::ChoiceLogprobs;

use super::continuity::Continuity;
use super::error::Refused;
use super::payload::{Payload, json};
use super::stream::{Fold, Pieces, answer_within, served};
use super::turn_log::TurnLog;
use super::{House, unix_seconds};
use crate::generation::{Turn, TurnEvent};
use crate::output::Delta;

/// Answers a conversation.
pub async fn create(
    State(house): State<Arc<House>>,
    headers: HeaderMap,
    Payload(body): Payload,
) -> Result<Response, Refused> {
    let request = ChatRequest::parse(&body)?;
    drop(body); // may hold many megabytes of images, decoded by now
    Ok(begin(house, request, Continuity::of_headers(&headers)).await?)
}

/// Goes on with an answer that another node began.
pub async fn resume(State(house): State<Arc<House>>, Payload(body): Payload) -> Result<Response, Refused> {
    let (request, continuity) = Continuity::of_order(json(&body)?)?;
    Ok(begin(house, request, continuity).await?)
}

async fn begin(
    house: Arc<House>,
    mut request: ChatRequest,
    continuity: Continuity,
) -> Result<Response, ApiError> {
    let id = house.next_id();
    let log = TurnLog::new(&id, &request.model, "chat", request.stream);
    let mut pieces = Chunks::new(&id, &request);
    if let Some((id, created)) = &continuity.head {
        (pieces.head.id, pieces.head.created) = (id.clone(), *created);
    }
    continuity.settle(&mut request);
    let (stream, emitted) = (request.stream, continuity.emitted.clone());
    let preparing = async move {
        let served = served(&house, &request.model).await?;
        house.generator.chat_after(&served, &request, emitted).await
    };
    answer_within(stream, preparing, pieces, ChatAggregator::new(), log, &continuity).await
}

impl Fold<ChatCompletionChunk> for ChatAggregator {
    type Whole = ChatCompletion;

    fn push(&mut self, chunk: ChatCompletionChunk) {
        Self::push(self, chunk);
    }

    fn finish(self) -> Result<ChatCompletion, ApiError> {
        Self::finish(self)
    }
}

/// A turn as chunks of the OpenAI chat stream.
struct Chunks {
    head: ChunkHead,
    choices: u32,
    logprobs: bool,
}

impl Chunks {
    fn new(id: &str, request: &ChatRequest) -> Self {
        let head =
            ChunkHead { id: format!("chatcmpl-{id}"), created: unix_seconds(), model: request.model.clone() };
        Self { head, choices: request.parameters.n, logprobs: request.parameters.logprobs }
    }

    fn call_id(&self, choice: u32, call: usize) -> String {
        let answer = self.head.id.trim_start_matches("chatcmpl-");
        format!("call_{answer}_{choice}_{call}")
    }

    fn delta(&self, choice: u32, delta: Delta) -> Wire {
        match delta {
            Delta::Reasoning(text) => Wire::thought(text),
            Delta::Content(text) => Wire::text(text),
            Delta::ToolCall { index, name } => {
                Wire::tool_call(ToolCallDelta::open(index as u32, self.call_id(choice, index), name))
            }
            Delta::ToolArguments { index, text } => {
                Wire::tool_call(ToolCallDelta::arguments(index as u32, text))
            }
        }
    }
}

impl Pieces for Chunks {
    type Piece = ChatCompletionChunk;

    fn open(&mut self) -> Vec<ChatCompletionChunk> {
        (0..self.choices).map(|choice| self.head.delta(choice, Wire::opening())).collect()
    }

    fn event(&mut self, event: TurnEvent) -> Vec<ChatCompletionChunk> {
        match event {
            TurnEvent::Started => Vec::new(),
            TurnEvent::Delta { choice, delta, logprobs } => {
                let delta = delta.map_or_else(Wire::default, |delta| self.delta(choice, delta));
                let mut chunk = self.head.delta(choice, delta);
                if self.logprobs && !logprobs.is_empty() {
                    chunk.choices[0].logprobs = Some(ChoiceLogprobs { content: Some(logprobs) });
                }
                vec![chunk]
            }
            TurnEvent::Ended { choice, ended } => {
                vec![self.head.finish(choice, ended.reason, ended.stop.map(Into::into))]
            }
        }
    }

    fn close(&mut self, turn: &Turn) -> Vec<ChatCompletionChunk> {
        // Said to everyone, asked or not: clients that count tokens otherwise believe that nothing was used.
        vec![self.head.usage(turn.usage(), turn.timings())]
    }
}
