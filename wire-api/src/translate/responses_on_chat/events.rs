//! The events of a streamed response, as they are written.

use serde::Serialize;
use serde_json::Value;

use crate::sse::encode;

/// What every event begins with, and what follows.
#[derive(Serialize)]
struct Numbered<'a, T> {
    r#type: &'a str,
    sequence_number: u64,
    #[serde(flatten)]
    body: T,
}

/// Numbers the events of one response.
#[derive(Debug, Default)]
pub(super) struct EventWriter {
    next: u64,
}

impl EventWriter {
    /// Appends one event.
    pub(super) fn write<T: Serialize>(&mut self, out: &mut Vec<u8>, kind: &str, body: T) {
        encode::json_event(out, kind, &Numbered { r#type: kind, sequence_number: self.next, body });
        self.next += 1;
    }
}

/// The whole response as it stands.
#[derive(Serialize)]
pub(super) struct Whole<'a> {
    pub(super) response: &'a Value,
}

/// An item begins or ends.
#[derive(Serialize)]
pub(super) struct Item<'a> {
    pub(super) output_index: usize,
    pub(super) item: &'a Value,
}

/// A part of a message or a thought begins or ends.
#[derive(Serialize)]
pub(super) struct Part<'a> {
    pub(super) item_id: &'a str,
    pub(super) output_index: usize,
    #[serde(flatten)]
    pub(super) place: Place,
    pub(super) part: Value,
}

/// Where in an item a piece belongs.
#[derive(Clone, Copy, Serialize)]
#[serde(untagged)]
pub(super) enum Place {
    Content { content_index: u32 },
    Summary { summary_index: u32 },
    Whole {},
}

/// A piece of text.
#[derive(Serialize)]
pub(super) struct Delta<'a> {
    pub(super) item_id: &'a str,
    pub(super) output_index: usize,
    #[serde(flatten)]
    pub(super) place: Place,
    pub(super) delta: &'a str,
    /// Always empty, and there for text only: official clients look for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) logprobs: Option<[(); 0]>,
}

/// A text is complete. The field it stands in depends on the event.
#[derive(Serialize)]
pub(super) struct Done<'a> {
    pub(super) item_id: &'a str,
    pub(super) output_index: usize,
    #[serde(flatten)]
    pub(super) place: Place,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) arguments: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) input: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) logprobs: Option<[(); 0]>,
}
