//! Tool calls, found in the model's own markup and handed on while they are written.
//!
//! How a model writes a call is a property of its family and is read from its chat template: the words the
//! template uses for calls of the past are the words the model will use. The formats are data; one parser
//! drives them. Markup never reaches the reader as text, and text is never swallowed: what begins like a
//! call and turns out not to be one is given back as text.

mod json_call;
mod xml_call;

use serde_json::Value;

use self::json_call::JsonCall;
use self::xml_call::XmlCall;
use super::stop::longest_open_end;

/// How a model family writes tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// One JSON object with `name` and `arguments` between `<tool_call>` and `</tool_call>`.
    TaggedJson,
    /// `<function=NAME>` with `<parameter=KEY>` elements between `<tool_call>` and `</tool_call>`.
    TaggedXml,
    /// A bare JSON object with `name` and `parameters` as the whole answer, or after `<|python_tag|>`.
    BareJson,
}

/// One call's markup.
#[derive(Debug, Clone, Copy)]
struct Markup {
    /// Any of these opens a call. The first is the regular one.
    opens: &'static [&'static str],
    /// Closes it; empty when the call's own end does.
    close: &'static str,
}

impl ToolFormat {
    /// The format a chat template writes, if it knows tools at all.
    pub fn of_template(source: &str) -> Option<Self> {
        if source.contains("<tool_call>") {
            return Some(if source.contains("<function=") { Self::TaggedXml } else { Self::TaggedJson });
        }
        let llama = source.contains("<|python_tag|>") || source.contains("\"parameters\": dictionary");
        (llama && source.contains("tools")).then_some(Self::BareJson)
    }

    /// Control tokens that are markup here and must not be skipped as invisible.
    pub fn markers(self) -> &'static [&'static str] {
        match self {
            Self::TaggedJson | Self::TaggedXml => &["<tool_call>", "</tool_call>"],
            Self::BareJson => &["<|python_tag|>"],
        }
    }

    /// What the model's turn must begin with so that it can only be a call, of `function` if given.
    pub fn forced_prefix(self, function: Option<&str>) -> String {
        let quoted = |name: &str| Value::String(name.to_owned()).to_string();
        match (self, function) {
            (Self::TaggedJson, None) => "<tool_call>\n{\"name\": \"".to_owned(),
            (Self::TaggedJson, Some(name)) => {
                format!("<tool_call>\n{{\"name\": {}, \"arguments\": {{", quoted(name))
            }
            (Self::TaggedXml, None) => "<tool_call>\n<function=".to_owned(),
            (Self::TaggedXml, Some(name)) => format!("<tool_call>\n<function={name}>\n"),
            (Self::BareJson, None) => "{\"name\": \"".to_owned(),
            (Self::BareJson, Some(name)) => format!("{{\"name\": {}, \"parameters\": {{", quoted(name)),
        }
    }

    fn markup(self) -> Markup {
        match self {
            Self::TaggedJson => Markup { opens: &["<tool_call>"], close: "</tool_call>" },
            Self::TaggedXml => Markup { opens: &["<tool_call>", "<function="], close: "</tool_call>" },
            Self::BareJson => Markup { opens: &["<|python_tag|>"], close: "" },
        }
    }
}

/// What the answer turned out to contain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolDelta {
    /// Text for the reader.
    Text(String),
    /// A call begins. Calls count from 0.
    Start {
        /// Which call.
        index: usize,
        /// The function.
        name: String,
    },
    /// The next piece of a call's arguments, which together are JSON.
    Arguments {
        /// Which call.
        index: usize,
        /// A piece of JSON text.
        text: String,
    },
    /// A call is complete.
    End {
        /// Which call.
        index: usize,
    },
}

/// A tool, as far as parsing its calls needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolSchema {
    /// Name.
    pub name: String,
    /// JSON schema of its parameters.
    pub parameters: Option<Value>,
}

/// Where a call's parser stands after a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// More text is needed.
    Pending,
    /// The call is complete.
    Complete,
    /// This is no call; what was read belongs to the reader.
    NotACall,
}

#[derive(Debug, Clone)]
enum Call {
    Json(JsonCall),
    Xml(XmlCall),
}

#[derive(Debug, Clone)]
enum State {
    /// Text. `fresh` until the first character that is not white space: a bare call can only begin there.
    Text { fresh: bool },
    /// In a call. `raw` is all its text so far while it may still turn out to be none.
    Call { call: Call, raw: String, started: bool },
    /// A call is complete; white space and the closing marker are skipped.
    AfterCall,
}

/// Takes calls out of one answer.
#[derive(Debug, Clone)]
pub struct ToolParser {
    format: ToolFormat,
    tools: Vec<ToolSchema>,
    state: State,
    held: String,
    calls: usize,
}

impl ToolParser {
    /// For a request that offers `tools` to a model of this format.
    pub fn new(format: ToolFormat, tools: Vec<ToolSchema>) -> Self {
        Self { format, tools, state: State::Text { fresh: true }, held: String::new(), calls: 0 }
    }

    /// Calls that have begun so far.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Takes text that the prompt already wrote for the model. What it begins comes out with the next push.
    pub fn seed(&mut self, text: &str) {
        self.held.push_str(text);
    }

    /// Takes the next piece of the answer.
    pub fn push(&mut self, text: &str) -> Vec<ToolDelta> {
        self.held.push_str(text);
        let mut out = Vec::new();
        while self.advance(&mut out) {}
        merge(out)
    }

    /// What is held back, when no more comes. A call that was cut short keeps the arguments it has.
    pub fn finish(&mut self) -> Vec<ToolDelta> {
        let held = std::mem::take(&mut self.held);
        let mut out = Vec::new();
        match std::mem::replace(&mut self.state, State::AfterCall) {
            State::Text { .. } => out.push(ToolDelta::Text(held)),
            State::Call { started: false, raw, .. } => out.push(ToolDelta::Text(raw + &held)),
            State::Call { mut call, .. } => {
                let index = self.calls - 1;
                if let Call::Xml(xml) = &mut call {
                    xml.finish(&held, index, &mut out);
                }
            }
            State::AfterCall => {}
        }
        merge(out)
    }

    /// One step of the machine; false when it needs more text.
    fn advance(&mut self, out: &mut Vec<ToolDelta>) -> bool {
        if self.held.is_empty() {
            return false;
        }
        match &mut self.state {
            State::Text { fresh } => {
                let fresh = *fresh;
                self.text(fresh, out)
            }
            State::Call { .. } => self.call(out),
            State::AfterCall => self.after_call(),
        }
    }

    fn text(&mut self, fresh: bool, out: &mut Vec<ToolDelta>) -> bool {
        let markup = self.format.markup();
        if fresh && self.format == ToolFormat::BareJson && self.held.trim_start().starts_with('{') {
            let raw = self.held.len() - self.held.trim_start().len();
            self.begin(raw);
            return true;
        }
        let found = markup.opens.iter().filter_map(|open| Some((self.held.find(open)?, *open))).min();
        if let Some((at, open)) = found {
            // White space between text and a call is layout, not text.
            let before = self.held[..at].trim_end();
            if !before.is_empty() {
                out.push(ToolDelta::Text(before.to_owned()));
            }
            self.held.drain(..at);
            // `<function=` is part of the call itself, the other markers only announce it.
            let skip = if open == "<function=" { 0 } else { open.len() };
            self.begin(skip);
            return true;
        }
        let open_end = longest_open_end(&self.held, markup.opens.iter().copied());
        let sure = self.held[..self.held.len() - open_end].trim_end().len();
        if sure > 0 {
            out.push(ToolDelta::Text(self.held.drain(..sure).collect()));
            self.state = State::Text { fresh: false };
        }
        false
    }

    /// Enters a call whose marker is the first `marker` bytes held.
    fn begin(&mut self, marker: usize) {
        let raw: String = self.held.drain(..marker).collect();
        let call = match self.format {
            ToolFormat::TaggedXml => Call::Xml(XmlCall::new()),
            ToolFormat::TaggedJson => Call::Json(JsonCall::new()),
            ToolFormat::BareJson => Call::Json(JsonCall::new()),
        };
        self.state = State::Call { call, raw, started: false };
    }

    fn call(&mut self, out: &mut Vec<ToolDelta>) -> bool {
        let State::Call { call, raw, started } = &mut self.state else { return false };
        let was_started = *started;
        let index = self.calls - usize::from(was_started);
        let bare = self.format == ToolFormat::BareJson;
        let known: &[ToolSchema] = &self.tools;
        let mut deltas = Vec::new();
        let (progress, used) = match call {
            Call::Json(json) => json.push(&self.held, index, bare.then_some(known), &mut deltas),
            Call::Xml(xml) => xml.push(&self.held, index, known, &mut deltas),
        };
        if deltas.iter().any(|delta| matches!(delta, ToolDelta::Start { .. })) {
            *started = true;
        }
        if !*started {
            raw.push_str(&self.held[..used]);
        }
        let started = *started;
        self.calls = index + usize::from(started);
        self.held.drain(..used);
        out.extend(deltas);
        match progress {
            Progress::Pending => used > 0 && !self.held.is_empty(),
            Progress::Complete => {
                out.push(ToolDelta::End { index });
                self.state = State::AfterCall;
                true
            }
            Progress::NotACall => {
                if let State::Call { raw, .. } =
                    std::mem::replace(&mut self.state, State::Text { fresh: false })
                    && !started
                {
                    out.push(ToolDelta::Text(raw));
                }
                true
            }
        }
    }

    /// Skips to whatever follows a complete call.
    fn after_call(&mut self) -> bool {
        let bare = self.format == ToolFormat::BareJson;
        let close = self.format.markup().close;
        let rest = self.held.trim_start_matches(|c: char| c.is_whitespace() || (bare && c == ';'));
        let layout = self.held.len() - rest.len();
        self.held.drain(..layout);
        if self.held.is_empty() {
            return false;
        }
        if !close.is_empty() {
            if let Some(rest) = self.held.strip_prefix(close) {
                self.held = rest.to_owned();
                return true;
            }
            if close.starts_with(self.held.as_str()) {
                return false;
            }
        }
        self.state = State::Text { fresh: bare };
        true
    }
}

/// Joins neighbours of one kind, so that cutting the input differently gives fewer differences to look at.
fn merge(deltas: Vec<ToolDelta>) -> Vec<ToolDelta> {
    let mut out: Vec<ToolDelta> = Vec::with_capacity(deltas.len());
    for delta in deltas {
        match (out.last_mut(), &delta) {
            (_, ToolDelta::Text(text)) if text.is_empty() => {}
            (_, ToolDelta::Arguments { text, .. }) if text.is_empty() => {}
            (Some(ToolDelta::Text(last)), ToolDelta::Text(text)) => last.push_str(text),
            (Some(ToolDelta::Arguments { text: last, .. }), ToolDelta::Arguments { text, .. }) => {
                last.push_str(text)
            }
            _ => out.push(delta),
        }
    }
    out
}

#[cfg(test)]
mod tests;
