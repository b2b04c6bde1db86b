//! A call written as `<function=NAME>` with `<parameter=KEY>` elements.
//!
//! Values are plain text between the markers, with one line break of layout on either side. The tool's
//! schema turns them into JSON. Text values are handed on while they are written (a file may be long);
//! everything else when it is complete.

use serde_json::Value;

use super::super::coerce::Kinds;
use super::super::stop::longest_open_end;
use super::{Progress, ToolDelta, ToolSchema};

const FUNCTION: &str = "<function=";
const PARAMETER: &str = "<parameter=";
const END_OF_PARAMETER: &str = "</parameter>";
const END_OF_FUNCTION: &str = "</function>";
const END_OF_CALL: &str = "</tool_call>";
/// What ends a value, should the model forget the regular end. Both markers, because one alone may be text.
const ABRUPT_END: &str = "</function>\n</tool_call>";

#[derive(Debug, Clone)]
enum State {
    /// Before `<function=NAME>`.
    Name,
    /// Between parameters.
    Between,
    /// In a value; `begun` once its first piece was handed on.
    Value { key: String, kinds: Kinds, begun: bool },
}

/// One function element being read.
#[derive(Debug, Clone)]
pub(super) struct XmlCall {
    state: State,
    schema: Option<Value>,
    parameters: usize,
}

/// What one step did.
enum Step {
    /// Used this many bytes.
    Used(usize),
    /// Used this many bytes; the call is complete.
    Complete(usize),
    /// Needs more text.
    Wait,
    /// Not a call.
    NotACall,
}

impl XmlCall {
    pub fn new() -> Self {
        Self { state: State::Name, schema: None, parameters: 0 }
    }

    /// Reads as much of `text` as can be decided.
    pub fn push(
        &mut self,
        text: &str,
        index: usize,
        tools: &[ToolSchema],
        out: &mut Vec<ToolDelta>,
    ) -> (Progress, usize) {
        let mut used = 0;
        loop {
            let rest = &text[used..];
            let step = match &self.state {
                State::Name => self.name(rest, index, tools, out),
                State::Between => self.between(rest, index, out),
                State::Value { .. } => self.value(rest, index, out),
            };
            match step {
                Step::Used(bytes) => used += bytes,
                Step::Complete(bytes) => return (Progress::Complete, used + bytes),
                Step::Wait => return (Progress::Pending, used),
                Step::NotACall => return (Progress::NotACall, used),
            }
        }
    }

    /// The text ended inside the call: what is sure of the value still goes out.
    pub fn finish(&mut self, held: &str, index: usize, out: &mut Vec<ToolDelta>) {
        if let State::Value { kinds, begun: true, .. } = &self.state
            && kinds.is_text()
        {
            out.push(ToolDelta::Arguments { index, text: escaped(held) });
        }
    }

    fn name(&mut self, text: &str, index: usize, tools: &[ToolSchema], out: &mut Vec<ToolDelta>) -> Step {
        let word = text.trim_start();
        let Some(rest) = word.strip_prefix(FUNCTION) else {
            return if FUNCTION.starts_with(word) { Step::Wait } else { Step::NotACall };
        };
        let Some(end) = rest.find(['>', '\n']) else { return Step::Wait };
        let name = rest[..end].trim().trim_matches('"').to_owned();
        if name.is_empty() {
            return Step::NotACall;
        }
        self.schema = tools.iter().find(|tool| tool.name == name).and_then(|tool| tool.parameters.clone());
        out.push(ToolDelta::Start { index, name });
        self.state = State::Between;
        Step::Used(text.len() - rest.len() + end + 1)
    }

    fn between(&mut self, text: &str, index: usize, out: &mut Vec<ToolDelta>) -> Step {
        let markers = [PARAMETER, END_OF_FUNCTION, END_OF_CALL];
        let found = markers.iter().filter_map(|marker| Some((text.find(marker)?, *marker))).min();
        let Some((at, marker)) = found else { return Step::Wait };
        if marker != PARAMETER {
            let last = if self.parameters == 0 { "{}" } else { "}" };
            out.push(ToolDelta::Arguments { index, text: last.to_owned() });
            return Step::Complete(if marker == END_OF_FUNCTION { at + marker.len() } else { at });
        }
        let rest = &text[at + PARAMETER.len()..];
        let Some(end) = rest.find('>') else { return Step::Wait };
        let key = rest[..end].trim().trim_matches('"').to_owned();
        let kinds = Kinds::of_parameter(self.schema.as_ref(), &key);
        self.state = State::Value { key, kinds, begun: false };
        Step::Used(at + PARAMETER.len() + end + 1)
    }

    fn value(&mut self, text: &str, index: usize, out: &mut Vec<ToolDelta>) -> Step {
        let State::Value { key, kinds, begun } = &mut self.state else { return Step::Wait };
        if !*begun && text.is_empty() {
            return Step::Wait;
        }
        let head = if *begun { 0 } else { usize::from(text.starts_with('\n')) };
        let regular = text.find(END_OF_PARAMETER).map(|at| (at, at + END_OF_PARAMETER.len()));
        let end = regular.or_else(|| text.find(ABRUPT_END).map(|at| (at, at)));
        let prefix = if self.parameters == 0 { "{" } else { ", " };
        let label = format!("{prefix}{}: ", Value::String(key.clone()));
        if let Some((at, used)) = end {
            let body = &text[head.min(at)..at];
            let body = body.strip_suffix('\n').unwrap_or(body);
            let piece = match (kinds.is_text(), *begun) {
                (true, true) => format!("{}\"", escaped(body)),
                (true, false) => format!("{label}\"{}\"", escaped(body)),
                (false, _) => format!("{label}{}", kinds.coerce(body)),
            };
            out.push(ToolDelta::Arguments { index, text: piece });
            self.parameters += 1;
            self.state = State::Between;
            return Step::Used(used);
        }
        if !kinds.is_text() {
            return Step::Wait;
        }
        let ends = ["\n</parameter>", END_OF_PARAMETER, "\n</function>\n</tool_call>", ABRUPT_END];
        let sure = text.len() - longest_open_end(text, ends.into_iter());
        if sure <= head {
            return Step::Wait;
        }
        let piece = escaped(&text[head..sure]);
        let piece = if *begun { piece } else { format!("{label}\"{piece}") };
        *begun = true;
        out.push(ToolDelta::Arguments { index, text: piece });
        Step::Used(sure)
    }
}

/// `text` as the inside of a JSON string.
fn escaped(text: &str) -> String {
    let quoted = Value::String(text.to_owned()).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}
