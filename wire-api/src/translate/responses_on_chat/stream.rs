//! The streamed answer: OpenAI chunks into the events of a response, one at a time.
//!
//! Items of a response carry their own index, so calls may grow side by side; text and thought are
//! closed when the other begins, and everything is closed at the end.

use serde_json::{Map, Value, json};

use super::ReplyContext;
use super::events::{Delta, Done, EventWriter, Item, Part, Place, Whole};
use super::request::CUSTOM_ARGUMENT;
use crate::error::{ApiError, Dialect, ErrorKind};
use crate::openai::aggregate::begins_another;
use crate::openai::chat::{ChatCompletionChunk, ChunkChoice, FinishReason, ToolCallDelta};
use crate::openai::responses::seal_reasoning;
use crate::openai::usage::Usage;
use crate::sse::{self, encode};
use crate::translate::identity;

/// Writes the events of one response. Call [`start`](Self::start) first, then
/// [`data`](Self::data) (or [`chunk`](Self::chunk)) for each frame, then [`end`](Self::end).
#[derive(Debug)]
pub struct ResponsesStream {
    context: ReplyContext,
    id: String,
    created: u64,
    events: EventWriter,
    started: bool,
    over: bool,
    /// Items by output index; absent while they grow.
    output: Vec<Option<Value>>,
    prose: Option<Prose>,
    calls: Vec<Call>,
    usage: Option<Usage>,
    finish_reason: Option<FinishReason>,
    response: Value,
}

/// Text or thought being received.
#[derive(Debug)]
struct Prose {
    kind: ProseKind,
    output_index: usize,
    item_id: String,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProseKind {
    Text,
    /// A thought shown as text.
    Thought,
    /// A thought shown as its own summary.
    Summary,
}

/// A call being received.
#[derive(Debug, Default)]
struct Call {
    server_index: u32,
    id: String,
    name: String,
    arguments: String,
    /// Index and id of its item, once announced.
    item: Option<(usize, String)>,
}

impl ProseKind {
    fn place(self) -> Place {
        match self {
            Self::Text | Self::Thought => Place::Content { content_index: 0 },
            Self::Summary => Place::Summary { summary_index: 0 },
        }
    }

    /// Names of the events: part added, delta, text done, part done.
    fn events(self) -> [&'static str; 4] {
        match self {
            Self::Text => [
                "response.content_part.added",
                "response.output_text.delta",
                "response.output_text.done",
                "response.content_part.done",
            ],
            Self::Thought => [
                "response.content_part.added",
                "response.reasoning_text.delta",
                "response.reasoning_text.done",
                "response.content_part.done",
            ],
            Self::Summary => [
                "response.reasoning_summary_part.added",
                "response.reasoning_summary_text.delta",
                "response.reasoning_summary_text.done",
                "response.reasoning_summary_part.done",
            ],
        }
    }

    fn part(self, text: &str) -> Value {
        match self {
            Self::Text => json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []}),
            Self::Thought => json!({"type": "reasoning_text", "text": text}),
            Self::Summary => json!({"type": "summary_text", "text": text}),
        }
    }

    fn logprobs(self) -> Option<[(); 0]> {
        (self == Self::Text).then_some([])
    }
}

impl ResponsesStream {
    /// A stream under the id `response_id`; `created` is in seconds since 1970.
    pub fn new(response_id: impl Into<String>, created: u64, context: ReplyContext) -> Self {
        let mut stream = Self {
            context,
            id: response_id.into(),
            created,
            events: EventWriter::default(),
            started: false,
            over: false,
            output: Vec::new(),
            prose: None,
            calls: Vec::new(),
            usage: None,
            finish_reason: None,
            response: Value::Null,
        };
        stream.response = stream.snapshot("in_progress");
        stream
    }

    /// The first two events. May be written before the server has been asked. Does nothing the
    /// second time.
    pub fn start(&mut self, out: &mut Vec<u8>) {
        if !self.started {
            self.started = true;
            self.events.write(out, "response.created", Whole { response: &self.response });
            self.events.write(out, "response.in_progress", Whole { response: &self.response });
        }
    }

    /// A sign of life. This dialect has no event for it.
    pub fn ping(&self, out: &mut Vec<u8>) {
        if !self.over {
            encode::comment(out, "ping");
        }
    }

    /// Whether the last event has been written.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// The response as it stands; whole once the stream is over.
    pub fn response(&self) -> &Value {
        &self.response
    }

    /// Takes the payload of a frame: a chunk, an error or the end mark.
    pub fn data(&mut self, payload: &str, out: &mut Vec<u8>) {
        if self.over {
            return;
        }
        if payload.trim() == sse::DONE {
            return self.end(out);
        }
        match serde_json::from_str::<ChatCompletionChunk>(payload) {
            Ok(chunk) if !chunk.choices.is_empty() || chunk.usage.is_some() => self.chunk(&chunk, out),
            parsed => match (ApiError::from_event(payload), parsed) {
                (Some(error), _) => self.fail(&error, out),
                (None, Ok(_)) => {}
                (None, Err(error)) => {
                    let message = format!("the server sent a chunk that cannot be read: {error}");
                    self.fail(&ApiError::new(ErrorKind::BadGateway, message), out);
                }
            },
        }
    }

    /// Takes a chunk.
    pub fn chunk(&mut self, chunk: &ChatCompletionChunk, out: &mut Vec<u8>) {
        if self.over {
            return;
        }
        self.start(out);
        if chunk.usage.is_some() {
            self.usage.clone_from(&chunk.usage);
        }
        // Only one answer is ever asked for.
        for choice in chunk.choices.iter().filter(|choice| choice.index == 0) {
            self.choice(choice, out);
        }
    }

    fn choice(&mut self, choice: &ChunkChoice, out: &mut Vec<u8>) {
        self.finish_reason = choice.finish_reason.or(self.finish_reason);
        let delta = &choice.delta;
        let thought = if self.context.wants_summary { ProseKind::Summary } else { ProseKind::Thought };
        self.prose(thought, delta.reasoning_text(), out);
        self.prose(ProseKind::Text, delta.refusal.as_deref(), out);
        self.prose(ProseKind::Text, delta.content.as_deref(), out);
        for piece in &delta.tool_calls {
            self.call_piece(piece, out);
        }
    }

    fn prose(&mut self, kind: ProseKind, piece: Option<&str>, out: &mut Vec<u8>) {
        let Some(piece) = piece.filter(|piece| !piece.is_empty()) else { return };
        if self.prose.as_ref().is_none_or(|open| open.kind != kind) {
            self.close_prose("completed", out);
            self.open_prose(kind, out);
        }
        let Some(open) = &mut self.prose else { return };
        open.text.push_str(piece);
        let body = Delta {
            item_id: &open.item_id,
            output_index: open.output_index,
            place: kind.place(),
            delta: piece,
            logprobs: kind.logprobs(),
        };
        self.events.write(out, kind.events()[1], body);
    }

    fn open_prose(&mut self, kind: ProseKind, out: &mut Vec<u8>) {
        let output_index = self.output.len();
        self.output.push(None);
        let prefix = if kind == ProseKind::Text { "msg" } else { "rs" };
        let item_id = self.item_id(prefix, output_index);
        let item = match kind {
            ProseKind::Text => {
                json!({"id": item_id, "type": "message", "status": "in_progress", "role": "assistant", "content": []})
            }
            ProseKind::Thought | ProseKind::Summary => {
                json!({"id": item_id, "type": "reasoning", "summary": []})
            }
        };
        self.events.write(out, "response.output_item.added", Item { output_index, item: &item });
        let part = Part { item_id: &item_id, output_index, place: kind.place(), part: kind.part("") };
        self.events.write(out, kind.events()[0], part);
        self.prose = Some(Prose { kind, output_index, item_id, text: String::new() });
    }

    fn close_prose(&mut self, status: &str, out: &mut Vec<u8>) {
        let Some(Prose { kind, output_index, item_id, text }) = self.prose.take() else { return };
        let [_, _, text_done, part_done] = kind.events();
        let done = Done {
            item_id: &item_id,
            output_index,
            place: kind.place(),
            name: None,
            text: Some(&text),
            arguments: None,
            input: None,
            logprobs: kind.logprobs(),
        };
        self.events.write(out, text_done, done);
        let part = kind.part(&text);
        let body = Part { item_id: &item_id, output_index, place: kind.place(), part: part.clone() };
        self.events.write(out, part_done, body);
        let mut item = match kind {
            ProseKind::Text => {
                json!({"id": item_id, "type": "message", "status": status, "role": "assistant", "content": [part]})
            }
            ProseKind::Thought => {
                json!({"id": item_id, "type": "reasoning", "summary": [], "content": [part]})
            }
            ProseKind::Summary => json!({"id": item_id, "type": "reasoning", "summary": [part]}),
        };
        if kind != ProseKind::Text && self.context.wants_encrypted_reasoning {
            item["encrypted_content"] = json!(seal_reasoning(&text));
        }
        self.finish_item(output_index, item, out);
    }

    fn finish_item(&mut self, output_index: usize, item: Value, out: &mut Vec<u8>) {
        self.events.write(out, "response.output_item.done", Item { output_index, item: &item });
        self.output[output_index] = Some(item);
    }

    fn item_id(&self, prefix: &str, output_index: usize) -> String {
        let tail = self.id.strip_prefix("resp_").unwrap_or(&self.id);
        format!("{prefix}_{tail}_{output_index}")
    }

    fn call_piece(&mut self, piece: &ToolCallDelta, out: &mut Vec<u8>) {
        let known = self.calls.iter().rposition(|call| {
            call.server_index == piece.index && !begins_another(&call.id, &call.name, piece)
        });
        let place = known.unwrap_or_else(|| {
            self.calls.push(Call { server_index: piece.index, ..Call::default() });
            self.calls.len() - 1
        });
        let call = &mut self.calls[place];
        if let Some(id) = piece.id.as_deref().filter(|_| call.id.is_empty() && call.item.is_none()) {
            call.id.push_str(id);
        }
        let function = piece.function.as_ref();
        if let Some(name) =
            function.and_then(|function| function.name.as_deref()).filter(|_| call.name.is_empty())
        {
            call.name.push_str(name);
        }
        let fragment = function.and_then(|function| function.arguments.as_deref()).unwrap_or_default();
        call.arguments.push_str(fragment);
        let was_announced = call.item.is_some();
        if !was_announced {
            self.announce(place, false, out);
        } else if !fragment.is_empty() {
            self.arguments_delta(place, fragment, out);
        }
    }

    /// Announces a call once its name is known, and writes the arguments that came before. A server
    /// that gives no id gets one when arguments come or the answer ends (`last`).
    fn announce(&mut self, place: usize, last: bool, out: &mut Vec<u8>) {
        let call = &self.calls[place];
        if call.name.is_empty() || (call.id.is_empty() && call.arguments.is_empty() && !last) {
            return;
        }
        self.close_prose("completed", out);
        let output_index = self.output.len();
        self.output.push(None);
        let item_id = self.item_id("fc", output_index);
        if self.calls[place].id.is_empty() {
            self.calls[place].id = identity::tool_use_id("", &item_id).replacen("toolu_", "call_", 1);
        }
        let item = self.call_item(place, &item_id, "in_progress", "");
        self.events.write(out, "response.output_item.added", Item { output_index, item: &item });
        self.calls[place].item = Some((output_index, item_id));
        let arguments = self.calls[place].arguments.clone();
        if !arguments.is_empty() {
            self.arguments_delta(place, &arguments, out);
        }
    }

    fn arguments_delta(&mut self, place: usize, fragment: &str, out: &mut Vec<u8>) {
        let call = &self.calls[place];
        let Some((output_index, item_id)) = &call.item else { return };
        // Free text is inside a JSON string; it is written whole once that is complete.
        if self.context.tools.get(&call.name).custom {
            return;
        }
        let body = Delta {
            item_id,
            output_index: *output_index,
            place: Place::Whole {},
            delta: fragment,
            logprobs: None,
        };
        self.events.write(out, "response.function_call_arguments.delta", body);
    }

    fn call_item(&self, place: usize, item_id: &str, status: &str, payload: &str) -> Value {
        let call = &self.calls[place];
        let tool = self.context.tools.get(&call.name);
        if tool.custom {
            return json!({"id": item_id, "type": "custom_tool_call", "status": status, "call_id": call.id, "name": tool.name, "input": payload});
        }
        let mut item = json!({"id": item_id, "type": "function_call", "status": status, "call_id": call.id, "name": tool.name, "arguments": payload});
        if let Some(namespace) = tool.namespace {
            item["namespace"] = json!(namespace);
        }
        item
    }

    fn close_call(&mut self, place: usize, status: &str, out: &mut Vec<u8>) {
        if self.calls[place].item.is_none() {
            self.announce(place, true, out);
        }
        let call = &self.calls[place];
        // A call that never got a name is none.
        let Some((output_index, item_id)) = call.item.clone() else { return };
        let tool = self.context.tools.get(&call.name);
        let payload =
            if tool.custom { free_text(&call.arguments) } else { arguments_or_empty(&call.arguments) };
        let place_in_item = Place::Whole {};
        if tool.custom {
            let delta = Delta {
                item_id: &item_id,
                output_index,
                place: place_in_item,
                delta: &payload,
                logprobs: None,
            };
            self.events.write(out, "response.custom_tool_call_input.delta", delta);
        } else if call.arguments.trim().is_empty() {
            let delta = Delta {
                item_id: &item_id,
                output_index,
                place: place_in_item,
                delta: &payload,
                logprobs: None,
            };
            self.events.write(out, "response.function_call_arguments.delta", delta);
        }
        let done = Done {
            item_id: &item_id,
            output_index,
            place: place_in_item,
            name: (!tool.custom).then_some(tool.name.as_str()),
            text: None,
            arguments: (!tool.custom).then_some(payload.as_str()),
            input: tool.custom.then_some(payload.as_str()),
            logprobs: None,
        };
        let kind = if tool.custom {
            "response.custom_tool_call_input.done"
        } else {
            "response.function_call_arguments.done"
        };
        self.events.write(out, kind, done);
        let item = self.call_item(place, &item_id, status, &payload);
        self.finish_item(output_index, item, out);
    }

    /// The server has said all: writes the last events, or a failure if it broke off.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        if self.over {
            return;
        }
        let (status, reason) = match self.finish_reason {
            None | Some(FinishReason::Abnormal) => {
                let message = "the answer broke off before its end";
                let error = ApiError::new(ErrorKind::BadGateway, message).with_code("stream_interrupted");
                return self.fail(&error, out);
            }
            Some(FinishReason::Length) => ("incomplete", Some("max_output_tokens")),
            Some(FinishReason::ContentFilter) => ("incomplete", Some("content_filter")),
            Some(_) => ("completed", None),
        };
        self.start(out);
        self.close_prose(status, out);
        for place in 0..self.calls.len() {
            self.close_call(place, status, out);
        }
        self.response = self.snapshot(status);
        if let Some(reason) = reason {
            self.response["incomplete_details"] = json!({ "reason": reason });
        }
        let kind = if status == "completed" { "response.completed" } else { "response.incomplete" };
        self.events.write(out, kind, Whole { response: &self.response });
        self.over = true;
    }

    /// Writes a failure; nothing follows it.
    pub fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        if self.over {
            return;
        }
        self.start(out);
        self.response = self.snapshot("failed");
        self.response["error"] = json!({"code": error.code, "message": error.sentence(), "type": error.kind.type_name(Dialect::OpenAi)});
        self.events.write(out, "response.failed", Whole { response: &self.response });
        self.over = true;
    }

    /// The response with what is complete. All fields official clients look for are there.
    fn snapshot(&self, status: &str) -> Value {
        let echoed = |name: &str, absent: Value| self.context.echo.get(name).cloned().unwrap_or(absent);
        let output: Vec<&Value> = self.output.iter().flatten().collect();
        let mut response = Map::new();
        let mut put = |name: &str, value: Value| response.insert(name.to_owned(), value);
        put("id", json!(self.id));
        put("object", json!("response"));
        put("created_at", json!(self.created));
        put("status", json!(status));
        put("background", json!(false));
        put("error", Value::Null);
        put("incomplete_details", Value::Null);
        put("instructions", echoed("instructions", Value::Null));
        put("max_output_tokens", echoed("max_output_tokens", Value::Null));
        put("model", json!(self.context.model));
        put("output", json!(output));
        put("parallel_tool_calls", echoed("parallel_tool_calls", json!(true)));
        put("previous_response_id", Value::Null);
        put("reasoning", echoed("reasoning", json!({"effort": null, "summary": null})));
        put("store", json!(false));
        put("temperature", echoed("temperature", Value::Null));
        put("text", echoed("text", json!({"format": {"type": "text"}})));
        put("tool_choice", echoed("tool_choice", json!("auto")));
        put("tools", echoed("tools", json!([])));
        put("top_p", echoed("top_p", Value::Null));
        put("truncation", json!("disabled"));
        put("usage", self.usage.as_ref().map_or(Value::Null, usage));
        put("user", echoed("user", Value::Null));
        put("metadata", echoed("metadata", json!({})));
        for name in ["prompt_cache_key", "safety_identifier", "service_tier", "max_tool_calls"] {
            if let Some(value) = self.context.echo.get(name) {
                put(name, value.clone());
            }
        }
        Value::Object(response)
    }
}

fn arguments_or_empty(arguments: &str) -> String {
    if arguments.trim().is_empty() { "{}".to_owned() } else { arguments.to_owned() }
}

/// The text a model wrote for a tool of free text; a model that forgot the JSON around it meant the
/// text itself.
fn free_text(arguments: &str) -> String {
    match serde_json::from_str::<Value>(arguments) {
        Ok(Value::Object(map)) => match map.get(CUSTOM_ARGUMENT) {
            Some(Value::String(text)) => text.clone(),
            _ => arguments.to_owned(),
        },
        Ok(Value::String(text)) => text,
        _ => arguments.to_owned(),
    }
}

fn usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens(),
            "cache_write_tokens": usage.cache_write_tokens(),
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens().unwrap_or(0)},
        "total_tokens": usage.total_tokens,
    })
}
