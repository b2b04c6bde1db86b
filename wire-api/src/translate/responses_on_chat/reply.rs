//! The whole answer: an OpenAI completion into a response.
//!
//! It is told to the stream as one chunk, and the response the stream ends with is the answer: the
//! two cannot differ.

use serde_json::Value;

use super::ReplyContext;
use super::stream::ResponsesStream;
use crate::error::{ApiError, ErrorKind};
use crate::openai::chat::{
    ChatCompletion, ChunkChoice, ChunkHead, Delta, FunctionCallDelta, ResponseMessage, ToolCallDelta,
};
use crate::translate::identity;

/// Writes a completion as a response.
///
/// # Errors
///
/// 502 if the completion has no answer or did not end properly.
pub fn translate(completion: ChatCompletion, context: ReplyContext) -> Result<Value, ApiError> {
    let broken = || ApiError::new(ErrorKind::BadGateway, "the server answered without an answer");
    let mut stream = ResponsesStream::new(identity::response_id(&completion.id), completion.created, context);
    let head = ChunkHead { id: completion.id, created: completion.created, model: completion.model };
    let choice = completion.choices.into_iter().next().ok_or_else(broken)?;
    let mut chunk = head.empty();
    chunk.usage = completion.usage;
    chunk.choices.push(ChunkChoice {
        delta: delta_of(choice.message),
        finish_reason: choice.finish_reason,
        stop_reason: choice.stop_reason,
        ..ChunkChoice::default()
    });
    let mut events = Vec::new();
    stream.chunk(&chunk, &mut events);
    stream.end(&mut events);
    let response = stream.response();
    if response["status"] == "failed" {
        let message = response["error"]["message"].as_str().unwrap_or("the answer is not whole");
        return Err(ApiError::new(ErrorKind::BadGateway, message).with_code("stream_interrupted"));
    }
    Ok(response.clone())
}

fn delta_of(message: ResponseMessage) -> Delta {
    let calls = message.tool_calls.into_iter().enumerate().map(|(index, call)| ToolCallDelta {
        index: index as u32,
        id: Some(call.id),
        r#type: None,
        function: Some(FunctionCallDelta {
            name: Some(call.function.name),
            arguments: Some(call.function.arguments),
        }),
    });
    Delta {
        content: message.content,
        reasoning_content: message.reasoning_content,
        reasoning: message.reasoning,
        refusal: message.refusal,
        tool_calls: calls.collect(),
        ..Delta::default()
    }
}
