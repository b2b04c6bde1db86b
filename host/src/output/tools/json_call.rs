//! A call written as one JSON object, read character by character.
//!
//! The arguments are handed on exactly as the model writes them, as soon as the name is known; nothing is
//! parsed twice and nothing is rewritten. Arguments that come before the name wait for it.

use serde_json::Value;

use super::{Progress, ToolDelta, ToolSchema};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the object.
    Outside,
    /// In the object, between its members.
    Between,
    /// In a key.
    Key,
    /// After a key, before its value.
    Colon,
    /// In a value.
    Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Member {
    Name,
    Arguments,
    /// A wrapper object that itself holds name and arguments.
    Function,
    Other,
}

/// One object being read.
#[derive(Debug, Clone)]
pub(super) struct JsonCall {
    place: Place,
    member: Member,
    key: String,
    name: Option<String>,
    value: String,
    /// Brackets open inside the current value.
    depth: u32,
    /// Wrapper objects that were entered.
    wrappers: u32,
    in_string: bool,
    escaped: bool,
    /// Arguments read before the name was known, or a string that holds them.
    waiting: String,
    /// The current arguments are handed on as they come.
    streams: bool,
    started: bool,
    had_arguments: bool,
}

impl JsonCall {
    pub fn new() -> Self {
        Self {
            place: Place::Outside,
            member: Member::Other,
            key: String::new(),
            name: None,
            value: String::new(),
            depth: 0,
            wrappers: 0,
            in_string: false,
            escaped: false,
            waiting: String::new(),
            streams: false,
            started: false,
            had_arguments: false,
        }
    }

    /// Reads as much of `text` as belongs to the call. With `known`, only those names make a call.
    pub fn push(
        &mut self,
        text: &str,
        index: usize,
        known: Option<&[ToolSchema]>,
        out: &mut Vec<ToolDelta>,
    ) -> (Progress, usize) {
        for (at, c) in text.char_indices() {
            // A closing marker where a member should be: the model forgot a bracket.
            if c == '<' && self.place == Place::Between && self.started {
                let _ = self.end(index, out);
                return (Progress::Complete, at);
            }
            let progress = self.character(c, index, known, out);
            if progress != Progress::Pending {
                return (progress, at + c.len_utf8());
            }
        }
        (Progress::Pending, text.len())
    }

    fn character(
        &mut self,
        c: char,
        index: usize,
        known: Option<&[ToolSchema]>,
        out: &mut Vec<ToolDelta>,
    ) -> Progress {
        match self.place {
            Place::Outside => match c {
                '{' => {
                    self.place = Place::Between;
                    Progress::Pending
                }
                c if c.is_whitespace() => Progress::Pending,
                _ => Progress::NotACall,
            },
            Place::Between => self.between(c, index, out),
            Place::Key => {
                if self.string_goes_on(c) {
                    self.key.push(c);
                } else {
                    self.in_string = false;
                    self.place = Place::Colon;
                    self.member = match self.key.as_str() {
                        "name" => Member::Name,
                        "arguments" | "parameters" => Member::Arguments,
                        "function" => Member::Function,
                        _ => Member::Other,
                    };
                }
                Progress::Pending
            }
            Place::Colon => self.before_value(c, index, known, out),
            Place::Value => self.in_value(c, index, known, out),
        }
    }

    fn between(&mut self, c: char, index: usize, out: &mut Vec<ToolDelta>) -> Progress {
        match c {
            '"' => {
                self.key.clear();
                self.in_string = true;
                self.place = Place::Key;
                Progress::Pending
            }
            '}' if self.wrappers > 0 => {
                self.wrappers -= 1;
                Progress::Pending
            }
            '}' => self.end(index, out),
            ',' => Progress::Pending,
            c if c.is_whitespace() => Progress::Pending,
            _ if self.started => Progress::Pending,
            _ => Progress::NotACall,
        }
    }

    fn before_value(
        &mut self,
        c: char,
        index: usize,
        known: Option<&[ToolSchema]>,
        out: &mut Vec<ToolDelta>,
    ) -> Progress {
        if c == ':' || c.is_whitespace() {
            return Progress::Pending;
        }
        if self.member == Member::Function && c == '{' {
            self.wrappers += 1;
            self.place = Place::Between;
            return Progress::Pending;
        }
        // Some write `"function": "name"`.
        if self.member == Member::Function {
            self.member = Member::Name;
        }
        self.value.clear();
        self.depth = 0;
        self.place = Place::Value;
        self.in_value(c, index, known, out)
    }

    fn in_value(
        &mut self,
        c: char,
        index: usize,
        known: Option<&[ToolSchema]>,
        out: &mut Vec<ToolDelta>,
    ) -> Progress {
        if self.in_string {
            self.in_string = self.string_goes_on(c);
            self.take(c, index, out);
            return if self.depth == 0 && !self.in_string {
                self.value_ends(index, known, out)
            } else {
                Progress::Pending
            };
        }
        match c {
            ',' | '}' if self.depth == 0 => {
                // A number or a word has no closing character of its own.
                let progress = self.value_ends(index, known, out);
                if progress == Progress::Pending { self.between(c, index, out) } else { progress }
            }
            '"' => {
                self.in_string = true;
                self.take(c, index, out);
                Progress::Pending
            }
            '{' | '[' => {
                self.depth += 1;
                self.take(c, index, out);
                Progress::Pending
            }
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                self.take(c, index, out);
                if self.depth == 0 { self.value_ends(index, known, out) } else { Progress::Pending }
            }
            _ => {
                self.take(c, index, out);
                Progress::Pending
            }
        }
    }

    /// One character of a value.
    fn take(&mut self, c: char, index: usize, out: &mut Vec<ToolDelta>) {
        if self.member != Member::Arguments {
            self.value.push(c);
            return;
        }
        if self.value.is_empty() {
            // Only how the value begins is kept: it decides whether it can be handed on as it comes.
            self.value.push(c);
            self.streams = self.started && matches!(c, '{' | '[');
        }
        if self.streams {
            self.emit(index, c, out);
        } else {
            self.waiting.push(c);
        }
    }

    fn emit(&mut self, index: usize, c: char, out: &mut Vec<ToolDelta>) {
        self.had_arguments = true;
        match out.last_mut() {
            Some(ToolDelta::Arguments { text, .. }) => text.push(c),
            _ => out.push(ToolDelta::Arguments { index, text: c.to_string() }),
        }
    }

    fn value_ends(
        &mut self,
        index: usize,
        known: Option<&[ToolSchema]>,
        out: &mut Vec<ToolDelta>,
    ) -> Progress {
        self.place = Place::Between;
        if self.member == Member::Name && self.name.is_none() {
            let Ok(Value::String(name)) = serde_json::from_str(&self.value) else {
                return Progress::NotACall;
            };
            if known.is_some_and(|tools| !tools.iter().any(|tool| tool.name == name)) {
                return Progress::NotACall;
            }
            out.push(ToolDelta::Start { index, name: name.clone() });
            self.started = true;
            self.name = Some(name);
        }
        if self.started && !self.waiting.is_empty() {
            self.release(index, out);
        }
        Progress::Pending
    }

    /// Hands on arguments that waited, unwrapping them if the model wrote them as a string.
    fn release(&mut self, index: usize, out: &mut Vec<ToolDelta>) {
        let waiting = std::mem::take(&mut self.waiting);
        let text = match serde_json::from_str(&waiting) {
            Ok(Value::String(inner)) => inner,
            Ok(Value::Null) => "{}".to_owned(),
            _ => waiting,
        };
        self.had_arguments = true;
        out.push(ToolDelta::Arguments { index, text });
    }

    fn end(&mut self, index: usize, out: &mut Vec<ToolDelta>) -> Progress {
        if !self.started {
            return Progress::NotACall;
        }
        if !self.had_arguments {
            out.push(ToolDelta::Arguments { index, text: "{}".to_owned() });
        }
        Progress::Complete
    }

    /// Whether the string goes on after `c`.
    fn string_goes_on(&mut self, c: char) -> bool {
        let closes = c == '"' && !self.escaped;
        self.escaped = c == '\\' && !self.escaped;
        !closes
    }
}
