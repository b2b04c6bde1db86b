//! Thought and answer, told apart while they stream.
//!
//! A thought stands between two markers at the start of the model's turn. The opening marker may be in the
//! prompt already (the template wrote it), the closing one may never come (the budget ran out, and then
//! everything is thought). Markers may be cut anywhere by tokens, so text that could be the beginning of one
//! waits. White space around the markers belongs to them.

use super::stop::longest_open_end;

/// The markers of a model family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReasoningFormat {
    /// Opens a thought.
    pub open: &'static str,
    /// Closes it.
    pub close: &'static str,
}

const FORMATS: [ReasoningFormat; 2] = [
    ReasoningFormat { open: "<think>", close: "</think>" },
    ReasoningFormat { open: "[THINK]", close: "[/THINK]" },
];

impl ReasoningFormat {
    /// The format a chat template writes, if it knows thoughts at all.
    pub fn of_template(source: &str) -> Option<Self> {
        FORMATS.into_iter().find(|format| source.contains(format.close))
    }

    /// Whether `prompt` ends inside a thought, so that the model's turn begins with one.
    pub fn is_open_at_end(&self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(self.open)
    }
}

/// A piece of the model's turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Part of a thought.
    Reasoning(String),
    /// Part of the answer.
    Answer(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Only white space so far: a thought may still open. `opened` says that the prompt opened one.
    Start { opened: bool },
    /// The model itself opened a thought; white space before its first word is dropped.
    Opened,
    /// Inside a thought.
    Thinking,
    /// The thought is closed; white space before the answer is dropped.
    Closed,
    /// In the answer, for good.
    Answering,
}

/// Splits one turn.
#[derive(Debug, Clone)]
pub struct ReasoningParser {
    format: Option<ReasoningFormat>,
    state: State,
    held: String,
}

impl ReasoningParser {
    /// `opened` says that the prompt ends inside a thought. Without a format everything is answer.
    pub fn new(format: Option<ReasoningFormat>, opened: bool) -> Self {
        let state = if format.is_some() { State::Start { opened } } else { State::Answering };
        Self { format, state, held: String::new() }
    }

    /// Whether the turn is, as far as known, inside a thought.
    pub fn is_thinking(&self) -> bool {
        matches!(self.state, State::Thinking | State::Opened | State::Start { opened: true })
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Vec<Segment> {
        let Some(format) = self.format else {
            return if text.is_empty() { Vec::new() } else { vec![Segment::Answer(text.to_owned())] };
        };
        self.held.push_str(text);
        let mut segments = Vec::new();
        while self.advance(format, &mut segments) {}
        segments
    }

    /// What is held back, when no more comes.
    pub fn finish(&mut self) -> Vec<Segment> {
        let rest = std::mem::take(&mut self.held);
        let segment = match self.state {
            State::Opened => Segment::Reasoning(String::new()),
            State::Thinking | State::Start { opened: true } => Segment::Reasoning(rest.trim_end().to_owned()),
            State::Start { opened: false } | State::Answering => Segment::Answer(rest),
            State::Closed => Segment::Answer(String::new()),
        };
        match &segment {
            Segment::Reasoning(text) | Segment::Answer(text) if text.is_empty() => Vec::new(),
            _ => vec![segment],
        }
    }

    /// One step of the machine; false when it needs more text.
    fn advance(&mut self, format: ReasoningFormat, segments: &mut Vec<Segment>) -> bool {
        match self.state {
            State::Start { opened } => self.start(format, opened),
            State::Opened => self.skip_space_to(State::Thinking),
            State::Thinking => self.thinking(format, segments),
            State::Closed => self.skip_space_to(State::Answering),
            State::Answering => {
                if !self.held.is_empty() {
                    segments.push(Segment::Answer(std::mem::take(&mut self.held)));
                }
                false
            }
        }
    }

    fn skip_space_to(&mut self, next: State) -> bool {
        let skip = self.held.len() - self.held.trim_start().len();
        self.held.drain(..skip);
        if self.held.is_empty() {
            return false;
        }
        self.state = next;
        true
    }

    fn start(&mut self, format: ReasoningFormat, opened: bool) -> bool {
        let word = self.held.trim_start();
        if let Some(rest) = word.strip_prefix(format.open) {
            self.held = rest.to_owned();
            self.state = State::Opened;
            return true;
        }
        if format.open.starts_with(word) {
            return false;
        }
        if opened {
            self.held = word.to_owned();
            self.state = State::Thinking;
        } else {
            self.state = State::Answering;
        }
        true
    }

    fn thinking(&mut self, format: ReasoningFormat, segments: &mut Vec<Segment>) -> bool {
        if let Some(at) = self.held.find(format.close) {
            let thought = self.held[..at].trim_end();
            if !thought.is_empty() {
                segments.push(Segment::Reasoning(thought.to_owned()));
            }
            self.held.drain(..at + format.close.len());
            self.state = State::Closed;
            return true;
        }
        let open_end = longest_open_end(&self.held, std::iter::once(format.close));
        let sure = self.held[..self.held.len() - open_end].trim_end().len();
        if sure > 0 {
            segments.push(Segment::Reasoning(self.held.drain(..sure).collect()));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(opened: bool, pieces: &[&str]) -> (String, String) {
        let format = ReasoningFormat::of_template("… </think> …");
        let mut parser = ReasoningParser::new(format, opened);
        let mut out = (String::new(), String::new());
        let mut segments: Vec<Segment> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
        segments.extend(parser.finish());
        for segment in segments {
            match segment {
                Segment::Reasoning(text) => out.0.push_str(&text),
                Segment::Answer(text) => out.1.push_str(&text),
            }
        }
        out
    }

    #[test]
    fn opened_or_not_closed_or_not() {
        let cases = [
            (false, "<think>\nwhy\n</think>\n\nyes", "why", "yes"),
            (false, "\n<think>why</think>yes", "why", "yes"),
            (true, "why\n</think>\n\nyes", "why", "yes"),
            (true, "\nwhy not\n\nso </think> yes </think>", "why not\n\nso", "yes </think>"),
            (true, "<think>\nwhy</think>yes", "why", "yes"),
            (true, "still thinking\n", "still thinking", ""),
            (false, "<think>still </thin", "still </thin", ""),
            (false, "yes", "", "yes"),
            (false, "  yes <think>no</think>", "", "  yes <think>no</think>"),
            (false, "<thi", "", "<thi"),
            (true, "</think>\n\n", "", ""),
            (false, "<think>\n\n</think>\n\nyes", "", "yes"),
            (true, "", "", ""),
            (false, " \n", "", " \n"),
        ];
        for (opened, text, reasoning, answer) in cases {
            let expected = (reasoning.to_owned(), answer.to_owned());
            assert_eq!(run(opened, &[text]), expected, "{opened} {text:?} whole");
            let singles: Vec<String> = text.chars().map(String::from).collect();
            let singles: Vec<&str> = singles.iter().map(String::as_str).collect();
            assert_eq!(run(opened, &singles), expected, "{opened} {text:?} by character");
        }
    }

    #[test]
    fn prompts_that_end_inside_a_thought() {
        let format = ReasoningFormat::of_template("<think></think>").unwrap();
        assert!(format.is_open_at_end("<|im_start|>assistant\n<think>\n"));
        assert!(!format.is_open_at_end("<|im_start|>assistant\n<think>\n\n</think>\n\n"));
        assert!(!format.is_open_at_end("<|im_start|>assistant\n"));
        assert_eq!(ReasoningFormat::of_template("{{ messages }}"), None);
    }

    #[test]
    fn thoughts_stream() {
        let mut parser = ReasoningParser::new(ReasoningFormat::of_template("</think>"), true);
        assert_eq!(parser.push("first "), vec![Segment::Reasoning("first".into())]);
        assert_eq!(parser.push("second"), vec![Segment::Reasoning(" second".into())]);
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(
            opened in any::<bool>(),
            words in proptest::collection::vec(prop_oneof![
                Just("<think>"), Just("</think>"), Just("\n"), Just(" "), Just("<"), Just("a"), Just("日"), Just("</th"),
            ], 0..12),
            cuts in proptest::collection::vec(0usize..80, 0..8),
        ) {
            let whole = words.concat();
            let mut at: Vec<usize> = cuts.into_iter().filter(|c| *c <= whole.len() && whole.is_char_boundary(*c)).collect();
            at.extend([0, whole.len()]);
            at.sort_unstable();
            let pieces: Vec<&str> = at.windows(2).map(|w| &whole[w[0]..w[1]]).collect();
            prop_assert_eq!(run(opened, &pieces), run(opened, &[&whole]));
        }
    }
}
