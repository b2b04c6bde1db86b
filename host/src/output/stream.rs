//! The stages in a row: one token in, deltas out; and their fold, the whole answer.

use super::reasoning::Segment;
use super::stop::StopOutcome;
use super::tools::{ToolDelta, ToolSchema};
use super::{Detokenizer, ReasoningFormat, ReasoningParser, StopStrings, ToolFormat, ToolParser};
use crate::prompt::TextTokenizer;

/// How a model writes thoughts and calls; read once from its template.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutputFormat {
    /// Thoughts, if the model has them.
    pub reasoning: Option<ReasoningFormat>,
    /// Calls, if the model knows tools.
    pub tools: Option<ToolFormat>,
}

impl OutputFormat {
    /// The formats a chat template writes.
    pub fn of_template(source: &str) -> Self {
        Self { reasoning: ReasoningFormat::of_template(source), tools: ToolFormat::of_template(source) }
    }

    /// Plain text.
    pub const PLAIN: Self = Self { reasoning: None, tools: None };
}

/// What one request wants from its output.
#[derive(Debug, Clone, Default)]
pub struct OutputRequest {
    /// The model's formats, or [`OutputFormat::PLAIN`].
    pub format: OutputFormat,
    /// The tools offered; empty switches call parsing off.
    pub tools: Vec<ToolSchema>,
    /// The end of the prompt, to see whether a thought is open.
    pub prompt: String,
    /// What the prompt already wrote of the model's turn to force a call.
    pub forced_prefix: String,
    /// Stop strings.
    pub stop: Vec<String>,
    /// Whether the text begins here (chat) or continues the prompt (completion).
    pub from_start: bool,
    /// End the answer after its first call.
    pub one_call: bool,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// Thought.
    Reasoning(String),
    /// Answer.
    Content(String),
    /// A call begins.
    ToolCall {
        /// Which call, from 0.
        index: usize,
        /// The function.
        name: String,
    },
    /// More of a call's arguments.
    ToolArguments {
        /// Which call.
        index: usize,
        /// A piece of JSON text.
        text: String,
    },
}

/// Why the output side ended an answer before the engine did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyEnd {
    /// A stop string was found; its index in the request's list.
    StopString(usize),
    /// The one call that was allowed is complete.
    OneCall,
}

/// One sequence's output.
#[derive(Debug, Clone)]
pub struct OutputStream {
    detokenizer: Detokenizer,
    reasoning: ReasoningParser,
    stop: StopStrings,
    tools: Option<ToolParser>,
    one_call: bool,
    end: Option<EarlyEnd>,
    reasoning_tokens: u32,
}

impl OutputStream {
    /// Output of a sequence whose tokens are `tokenizer`'s.
    pub fn new(tokenizer: &TextTokenizer, request: OutputRequest) -> Self {
        let active = request.format.tools.filter(|_| !request.tools.is_empty());
        let opened = request.forced_prefix.is_empty()
            && request.format.reasoning.is_some_and(|format| format.is_open_at_end(&request.prompt));
        let mut detokenizer = Detokenizer::new(tokenizer, request.from_start, true);
        let thoughts = request.format.reasoning.iter().flat_map(|format| [format.open, format.close]);
        let calls = active.iter().flat_map(|format| format.markers().iter().copied());
        detokenizer.keep(thoughts.chain(calls).filter_map(|marker| tokenizer.token_id(marker)).collect());
        let reasoning = request.format.reasoning.filter(|_| request.forced_prefix.is_empty());
        let mut tools = active.map(|format| ToolParser::new(format, request.tools));
        if let Some(parser) = &mut tools {
            // A prefix that already names the function begins the call; what that says comes with the first token.
            parser.seed(&request.forced_prefix);
        }
        Self {
            detokenizer,
            reasoning: ReasoningParser::new(reasoning, opened),
            stop: StopStrings::new(request.stop),
            tools,
            one_call: request.one_call,
            end: None,
            reasoning_tokens: 0,
        }
    }

    /// Takes one token. Once [`Self::early_end`] is set, nothing more comes out.
    pub fn push(&mut self, tokenizer: &TextTokenizer, id: u32) -> Vec<Delta> {
        if self.end.is_some() {
            return Vec::new();
        }
        if self.reasoning.is_thinking() {
            self.reasoning_tokens += 1;
        }
        let text = self.detokenizer.push(tokenizer, id);
        let segments = self.reasoning.push(&text);
        self.segments(segments)
    }

    /// What is held back, when no more tokens come.
    pub fn finish(&mut self) -> Vec<Delta> {
        if self.end.is_some() {
            return Vec::new();
        }
        let text = self.detokenizer.finish();
        let mut segments = self.reasoning.push(&text);
        segments.extend(self.reasoning.finish());
        let mut deltas = self.segments(segments);
        if self.end.is_none() {
            let rest = self.stop.finish();
            deltas.extend(self.answer(&rest));
            if let Some(parser) = &mut self.tools {
                deltas.extend(parser.finish().into_iter().filter_map(delta));
            }
        }
        deltas
    }

    /// Why the answer ended here, if it did.
    pub fn early_end(&self) -> Option<EarlyEnd> {
        self.end
    }

    /// Calls that have begun.
    pub fn tool_calls(&self) -> usize {
        self.tools.as_ref().map_or(0, ToolParser::calls)
    }

    /// Tokens that were thought.
    pub fn reasoning_tokens(&self) -> u32 {
        self.reasoning_tokens
    }

    fn segments(&mut self, segments: Vec<Segment>) -> Vec<Delta> {
        let mut deltas = Vec::new();
        for segment in segments {
            match segment {
                Segment::Reasoning(text) => deltas.push(Delta::Reasoning(text)),
                // Stop strings are looked for in the answer only: a thought must not end what has not begun.
                Segment::Answer(text) => match self.stop.push(&text) {
                    StopOutcome::Continue(text) => deltas.extend(self.answer(&text)),
                    StopOutcome::Stopped { text, index } => {
                        deltas.extend(self.answer(&text));
                        if let Some(parser) = &mut self.tools {
                            deltas.extend(parser.finish().into_iter().filter_map(delta));
                        }
                        self.end.get_or_insert(EarlyEnd::StopString(index));
                        break;
                    }
                },
            }
            if self.end.is_some() {
                break;
            }
        }
        deltas
    }

    fn answer(&mut self, text: &str) -> Vec<Delta> {
        let Some(parser) = &mut self.tools else {
            return if text.is_empty() { Vec::new() } else { vec![Delta::Content(text.to_owned())] };
        };
        let mut deltas = Vec::new();
        for piece in parser.push(text) {
            let ended = matches!(piece, ToolDelta::End { .. });
            deltas.extend(delta(piece));
            if ended && self.one_call {
                self.end = Some(EarlyEnd::OneCall);
                break;
            }
        }
        deltas
    }
}

fn delta(piece: ToolDelta) -> Option<Delta> {
    match piece {
        ToolDelta::Text(text) => Some(Delta::Content(text)),
        ToolDelta::Start { index, name } => Some(Delta::ToolCall { index, name }),
        ToolDelta::Arguments { index, text } => Some(Delta::ToolArguments { index, text }),
        ToolDelta::End { .. } => None,
    }
}

/// A whole answer: the fold of its deltas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Thought.
    pub reasoning: String,
    /// Answer.
    pub content: String,
    /// Calls in order.
    pub tool_calls: Vec<ToolCallText>,
}

/// A call, as the model wrote it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolCallText {
    /// The function.
    pub name: String,
    /// JSON text.
    pub arguments: String,
}

impl Answer {
    /// Adds one delta.
    pub fn push(&mut self, delta: Delta) {
        match delta {
            Delta::Reasoning(text) => self.reasoning.push_str(&text),
            Delta::Content(text) => self.content.push_str(&text),
            Delta::ToolCall { name, .. } => {
                self.tool_calls.push(ToolCallText { name, arguments: String::new() })
            }
            Delta::ToolArguments { index, text } => {
                if let Some(call) = self.tool_calls.get_mut(index) {
                    call.arguments.push_str(&text);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::ModelText;
    use proptest::prelude::*;
    use std::path::Path;
    use std::sync::LazyLock;

    static TEXT: LazyLock<ModelText> = LazyLock::new(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/models/tiny-qwen3_5-text");
        ModelText::open(&folder).unwrap()
    });

    fn request() -> OutputRequest {
        OutputRequest {
            format: OutputFormat::of_template(TEXT.template().unwrap().source()),
            tools: vec![ToolSchema { name: "lookup".into(), parameters: None }],
            prompt: "<|im_start|>assistant\n<think>\n".into(),
            from_start: true,
            ..Default::default()
        }
    }

    fn run(request: OutputRequest, text: &str) -> (Answer, Option<EarlyEnd>) {
        let tokenizer = TEXT.tokenizer();
        let mut output = OutputStream::new(tokenizer, request);
        let mut answer = Answer::default();
        for id in tokenizer.encode(text, false).unwrap() {
            output.push(tokenizer, id).into_iter().for_each(|delta| answer.push(delta));
        }
        output.finish().into_iter().for_each(|delta| answer.push(delta));
        (answer, output.early_end())
    }

    const TURN: &str = "weather?\n</think>\n\nLooking. 🌧\n\n<tool_call>\n<function=lookup>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=lookup>\n</function>\n</tool_call>";

    #[test]
    fn thought_answer_and_calls_are_told_apart() {
        let (answer, end) = run(request(), TURN);
        let call = |arguments: &str| ToolCallText { name: "lookup".into(), arguments: arguments.into() };
        let expected = Answer {
            reasoning: "weather?".into(),
            content: "Looking. 🌧".into(),
            tool_calls: vec![call("{\"city\": \"Oslo\"}"), call("{}")],
        };
        assert_eq!((answer, end), (expected, None));
    }

    #[test]
    fn one_call_is_enough_when_asked() {
        let (answer, end) = run(OutputRequest { one_call: true, ..request() }, TURN);
        assert_eq!((answer.tool_calls.len(), end), (1, Some(EarlyEnd::OneCall)));
    }

    #[test]
    fn stop_strings_count_in_the_answer_only() {
        let stop = OutputRequest { stop: vec!["nothing".into(), "Look".into()], ..request() };
        let (answer, end) = run(stop, "Look at it\n</think>\n\nNow Look here");
        assert_eq!((answer.reasoning.as_str(), answer.content.as_str()), ("Look at it", "Now "));
        assert_eq!(end, Some(EarlyEnd::StopString(1)));
    }

    #[test]
    fn without_tools_markup_is_text() {
        let (answer, _) =
            run(OutputRequest { tools: Vec::new(), prompt: String::new(), ..request() }, "a <tool_call> b");
        assert_eq!(answer.content, "a <tool_call> b");
    }

    #[test]
    fn a_forced_call_goes_on_from_its_prefix() {
        let forced_prefix = ToolFormat::TaggedXml.forced_prefix(Some("lookup"));
        let rest = "<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>";
        let (answer, _) = run(OutputRequest { forced_prefix, ..request() }, rest);
        let call = ToolCallText { name: "lookup".into(), arguments: "{\"city\": \"Oslo\"}".into() };
        assert_eq!(answer, Answer { tool_calls: vec![call], ..Default::default() });
    }

    proptest! {
        #[test]
        fn any_tokens_pass(ids in proptest::collection::vec(0u32..540, 0..80), prompt in prop_oneof![Just(""), Just("<think>\n")]) {
            let mut output = OutputStream::new(TEXT.tokenizer(), OutputRequest { prompt: prompt.into(), ..request() });
            for id in ids {
                output.push(TEXT.tokenizer(), id);
            }
            output.finish();
        }
    }
}
