//! The streamed answer: OpenAI chunks into Anthropic events, one at a time.
//!
//! The dialect wants blocks, one after the other, each opened and closed; chunks come as they
//! please. So at most one block is open, and while it is a call whose arguments are not complete,
//! everything else waits in a queue: nothing is lost and no piece lands in the wrong block.

use std::collections::VecDeque;

use serde_json::Value;

use super::ReplyContext;
use super::reply::{Signer, ending, usage};
use crate::anthropic::reply::{Message, StopReason, no_applied_edits};
use crate::anthropic::stream::{BlockDelta, Empty, EmptyBlock, Event, MessageEnd, write_error};
use crate::error::{ApiError, ErrorKind};
use crate::openai::aggregate::begins_another;
use crate::openai::chat::{ChatCompletionChunk, ChunkChoice, FinishReason, ToolCallDelta};
use crate::sse;
use crate::translate::arguments::JsonScan;
use crate::translate::identity;

/// Writes the events of one message. Call [`start`](Self::start) first, then
/// [`data`](Self::data) (or [`chunk`](Self::chunk)) for each frame, then [`end`](Self::end).
#[derive(Debug)]
pub struct MessagesStream {
    context: ReplyContext,
    message: Message,
    started: bool,
    over: bool,
    open: Open,
    next_index: u32,
    signer: Signer,
    calls: Vec<Call>,
    queue: VecDeque<Waiting>,
    called: bool,
    refused: bool,
    finish_reason: Option<FinishReason>,
    matched: Option<Value>,
}

/// The block that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Nothing,
    Thinking,
    Text,
    /// A call, by its place in `calls`. It counts as open from its first piece, although the block
    /// is announced only when its name is known.
    Call(usize),
}

/// What waits for the open call to be complete.
#[derive(Debug)]
enum Waiting {
    Text(String),
    Thought(String),
    Call(usize),
}

/// A call being received.
#[derive(Debug, Default)]
struct Call {
    server_index: u32,
    id: String,
    name: String,
    /// Arguments not written yet.
    pending: String,
    /// Follows all arguments, written or not.
    scan: JsonScan,
    announced: bool,
    wrote_arguments: bool,
    closed: bool,
    /// Received and thrown away.
    ignored: bool,
}

impl MessagesStream {
    /// A stream under the id `message_id`. `input_tokens` is an estimate, corrected at the end.
    pub fn new(message_id: impl Into<String>, input_tokens: u64, context: ReplyContext) -> Self {
        let mut message = Message::new(message_id, &context.model);
        message.usage.input_tokens = input_tokens;
        message.usage.output_tokens = u64::from(!context.prewarm);
        Self {
            context,
            message,
            started: false,
            over: false,
            open: Open::Nothing,
            next_index: 0,
            signer: Signer::default(),
            calls: Vec::new(),
            queue: VecDeque::new(),
            called: false,
            refused: false,
            finish_reason: None,
            matched: None,
        }
    }

    /// The first two events. May be written before the server has been asked, so that a client
    /// that waits for a cold model sees life. Does nothing the second time.
    pub fn start(&mut self, out: &mut Vec<u8>) {
        if !self.started {
            self.started = true;
            Event::MessageStart { message: &self.message }.write(out);
            Event::Ping.write(out);
        }
    }

    /// A sign of life, to be written every few seconds while nothing comes.
    pub fn ping(&self, out: &mut Vec<u8>) {
        if !self.over {
            Event::Ping.write(out);
        }
    }

    /// Whether the last event has been written.
    pub fn is_over(&self) -> bool {
        self.over
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
            // An error is an object without choices, which would read as an empty chunk.
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
        if let Some(counts) = &chunk.usage {
            let floor = self.message.usage.output_tokens;
            self.message.usage = usage(counts);
            self.message.usage.output_tokens = self.message.usage.output_tokens.max(floor);
        }
        // Only one answer is ever asked for.
        for choice in chunk.choices.iter().filter(|choice| choice.index == 0) {
            self.choice(choice, out);
        }
    }

    fn choice(&mut self, choice: &ChunkChoice, out: &mut Vec<u8>) {
        self.finish_reason = choice.finish_reason.or(self.finish_reason);
        if choice.stop_reason.is_some() {
            self.matched.clone_from(&choice.stop_reason);
        }
        if self.context.prewarm {
            return;
        }
        let delta = &choice.delta;
        if let Some(thought) =
            delta.reasoning_text().filter(|text| !text.is_empty() && !self.context.hide_thinking)
        {
            self.thought(thought, out);
        }
        if let Some(refusal) = delta.refusal.as_deref().filter(|text| !text.is_empty()) {
            self.refused = true;
            self.text(refusal, out);
        }
        if let Some(text) = delta.content.as_deref().filter(|text| !text.is_empty()) {
            self.text(text, out);
        }
        for piece in &delta.tool_calls {
            self.call_piece(piece, out);
        }
    }

    fn thought(&mut self, piece: &str, out: &mut Vec<u8>) {
        match self.open {
            Open::Call(_) => match self.queue.back_mut() {
                Some(Waiting::Thought(waiting)) => waiting.push_str(piece),
                _ => self.queue.push_back(Waiting::Thought(piece.to_owned())),
            },
            Open::Thinking => self.write_thought(piece, out),
            Open::Nothing | Open::Text => {
                self.close(out);
                self.open = Open::Thinking;
                let content_block = EmptyBlock::Thinking { thinking: "", signature: "" };
                Event::ContentBlockStart { index: self.next_index, content_block }.write(out);
                self.write_thought(piece, out);
            }
        }
    }

    fn write_thought(&mut self, piece: &str, out: &mut Vec<u8>) {
        self.signer.extend(piece);
        let delta = BlockDelta::ThinkingDelta { thinking: piece };
        Event::ContentBlockDelta { index: self.next_index, delta }.write(out);
    }

    fn text(&mut self, piece: &str, out: &mut Vec<u8>) {
        match self.open {
            Open::Call(_) => {
                match self.queue.back_mut() {
                    Some(Waiting::Text(waiting)) => waiting.push_str(piece),
                    _ => self.queue.push_back(Waiting::Text(piece.to_owned())),
                }
                return;
            }
            Open::Text => {}
            Open::Nothing | Open::Thinking => {
                self.close(out);
                self.open = Open::Text;
                let content_block = EmptyBlock::Text { text: "" };
                Event::ContentBlockStart { index: self.next_index, content_block }.write(out);
            }
        }
        let delta = BlockDelta::TextDelta { text: piece };
        Event::ContentBlockDelta { index: self.next_index, delta }.write(out);
    }

    fn call_piece(&mut self, piece: &ToolCallDelta, out: &mut Vec<u8>) {
        let place = self.place_of(piece);
        let is_new = place == self.calls.len();
        if is_new {
            let ignored = self.context.single_tool_call && place > 0;
            self.calls.push(Call { server_index: piece.index, ignored, ..Call::default() });
        }
        let call = &mut self.calls[place];
        if call.ignored || call.closed {
            return;
        }
        call.take(piece);
        if is_new {
            match self.open {
                Open::Call(_) => self.queue.push_back(Waiting::Call(place)),
                _ => {
                    self.close(out);
                    self.open = Open::Call(place);
                }
            }
        }
        if self.open == Open::Call(place) {
            self.advance(place, out);
        }
    }

    /// The place of the call a piece belongs to; one past the last if it begins a new one.
    fn place_of(&self, piece: &ToolCallDelta) -> usize {
        self.calls
            .iter()
            .rposition(|call| {
                call.server_index == piece.index && !begins_another(&call.id, &call.name, piece)
            })
            .unwrap_or(self.calls.len())
    }

    /// Writes what is known of the open call; if that completes it, what waited comes next.
    fn advance(&mut self, place: usize, out: &mut Vec<u8>) {
        self.write_call(place, false, out);
        if self.calls[place].announced && self.calls[place].scan.is_complete() {
            self.close(out);
            self.drain(out);
        }
    }

    /// Announces the open call once its name is known and writes its arguments. Some servers give
    /// no id; when arguments come or the call ends (`last`), one is made.
    fn write_call(&mut self, place: usize, last: bool, out: &mut Vec<u8>) {
        let call = &mut self.calls[place];
        if !call.announced {
            let id_is_due = last || !call.pending.is_empty();
            if call.name.is_empty() || (call.id.is_empty() && !id_is_due) {
                return;
            }
            let id = identity::tool_use_id(&call.id, &format!("{}/{place}", self.message.id));
            let name = self.context.tool_names.restore(&call.name);
            let content_block = EmptyBlock::ToolUse { id: &id, name, input: Empty {} };
            Event::ContentBlockStart { index: self.next_index, content_block }.write(out);
            call.announced = true;
            self.called = true;
        }
        if last && !call.wrote_arguments && call.pending.trim().is_empty() {
            call.pending.clear();
            call.pending.push_str("{}");
        }
        if !call.pending.is_empty() {
            let delta = BlockDelta::InputJsonDelta { partial_json: &call.pending };
            Event::ContentBlockDelta { index: self.next_index, delta }.write(out);
            call.wrote_arguments = true;
            call.pending.clear();
        }
    }

    /// Writes what has waited, until another call that is not complete is open.
    fn drain(&mut self, out: &mut Vec<u8>) {
        while !matches!(self.open, Open::Call(_)) {
            match self.queue.pop_front() {
                None => return,
                Some(Waiting::Text(text)) => self.text(&text, out),
                Some(Waiting::Thought(thought)) => self.thought(&thought, out),
                Some(Waiting::Call(place)) => {
                    self.close(out);
                    self.open = Open::Call(place);
                    self.write_call(place, false, out);
                    if self.calls[place].announced && self.calls[place].scan.is_complete() {
                        self.close(out);
                    }
                }
            }
        }
    }

    /// Ends the open block.
    fn close(&mut self, out: &mut Vec<u8>) {
        match std::mem::replace(&mut self.open, Open::Nothing) {
            Open::Nothing => return,
            Open::Text => {}
            Open::Thinking => {
                let signature = self.signer.finish();
                let delta = BlockDelta::SignatureDelta { signature: &signature };
                Event::ContentBlockDelta { index: self.next_index, delta }.write(out);
            }
            Open::Call(place) => {
                self.write_call(place, true, out);
                self.calls[place].closed = true;
                if !self.calls[place].announced {
                    // A call that never got a name is none.
                    return;
                }
            }
        }
        Event::ContentBlockStop { index: self.next_index }.write(out);
        self.next_index += 1;
    }

    /// The server has said all: writes the last events, or an error if it broke off.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        if self.over {
            return;
        }
        self.start(out);
        if !self.context.prewarm
            && let Err(error) = ending(self.finish_reason, None, false, false)
        {
            return self.fail(&error, out);
        }
        while self.open != Open::Nothing || !self.queue.is_empty() {
            self.close(out);
            self.drain(out);
        }
        let (stop_reason, stop_sequence) = if self.context.prewarm {
            self.message.usage.output_tokens = 0;
            (StopReason::MaxTokens, None)
        } else {
            match ending(self.finish_reason, self.matched.as_ref(), self.called, self.refused) {
                Ok(ending) => ending,
                Err(error) => return self.fail(&error, out),
            }
        };
        let edits = self.context.context_management.then(no_applied_edits);
        Event::MessageDelta {
            delta: MessageEnd { stop_reason: Some(stop_reason), stop_sequence: stop_sequence.as_deref() },
            usage: &self.message.usage,
            context_management: edits.as_ref(),
        }
        .write(out);
        Event::MessageStop.write(out);
        self.over = true;
    }

    /// Writes an error; nothing follows it.
    pub fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        if !self.over {
            write_error(out, error, None);
            self.over = true;
        }
    }
}

impl Call {
    fn take(&mut self, piece: &ToolCallDelta) {
        if let Some(id) = piece.id.as_deref().filter(|_| self.id.is_empty() && !self.announced) {
            self.id.push_str(id);
        }
        let Some(function) = &piece.function else { return };
        if let Some(name) = function.name.as_deref().filter(|_| self.name.is_empty()) {
            self.name.push_str(name);
        }
        // Whatever follows a complete object is not part of it.
        if let Some(fragment) = function.arguments.as_deref().filter(|_| !self.scan.is_complete()) {
            self.pending.push_str(fragment);
            self.scan.extend(fragment);
        }
    }
}
