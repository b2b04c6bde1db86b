//! Stop strings, found wherever they begin and end.
//!
//! A stop string may begin in one token and end three tokens later, so text that could be its beginning is
//! held back until it is clear that it is not. Nothing of the stop string is ever handed out.

/// What became of a piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopOutcome {
    /// Text that can be shown; more may be held back.
    Continue(String),
    /// A stop string was found: the text before it, and which one it was.
    Stopped {
        /// The last text of the answer.
        text: String,
        /// Index of the stop string in the caller's list.
        index: usize,
    },
}

/// Watches one text for any of several strings.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    strings: Vec<String>,
    held: String,
}

impl StopStrings {
    /// Watches for `strings`; empty ones are ignored.
    pub fn new(strings: Vec<String>) -> Self {
        Self { strings, held: String::new() }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        if self.strings.is_empty() {
            return StopOutcome::Continue(text.to_owned());
        }
        self.held.push_str(text);
        if let Some((at, index)) = self.first_match() {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(at);
            return StopOutcome::Stopped { text, index };
        }
        let keep = self.undecided();
        let rest = self.held.split_off(self.held.len() - keep);
        StopOutcome::Continue(std::mem::replace(&mut self.held, rest))
    }

    /// The text held back, when no more comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The match that is complete first, as it would be found character by character; of several the longest.
    fn first_match(&self) -> Option<(usize, usize)> {
        self.strings
            .iter()
            .enumerate()
            .filter(|(_, stop)| !stop.is_empty())
            .filter_map(|(index, stop)| Some((self.held.find(stop)?, index)))
            .min_by_key(|(at, index)| (at + self.strings[*index].len(), *at))
    }

    /// Length of the longest end of the held text that begins a stop string.
    fn undecided(&self) -> usize {
        longest_open_end(&self.held, self.strings.iter().map(String::as_str))
    }
}

/// Length in bytes of the longest end of `text` that is a proper beginning of one of `patterns`.
pub(super) fn longest_open_end<'a>(text: &str, patterns: impl Iterator<Item = &'a str>) -> usize {
    let open_end = |pattern: &str| {
        let longest = pattern.len().saturating_sub(1).min(text.len());
        (1..=longest)
            .rev()
            .find(|length| {
                text.is_char_boundary(text.len() - length)
                    && pattern.as_bytes().starts_with(&text.as_bytes()[text.len() - length..])
            })
            .unwrap_or(0)
    };
    patterns.map(open_end).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<usize>) {
        let mut watch = StopStrings::new(stops.iter().map(|s| (*s).to_owned()).collect());
        let mut out = String::new();
        for piece in pieces {
            match watch.push(piece) {
                StopOutcome::Continue(text) => out.push_str(&text),
                StopOutcome::Stopped { text, index } => {
                    out.push_str(&text);
                    return (out, Some(index));
                }
            }
        }
        out.push_str(&watch.finish());
        (out, None)
    }

    #[test]
    fn across_pieces() {
        type Case = (&'static [&'static str], &'static [&'static str], &'static str, Option<usize>);
        let cases: &[Case] = &[
            (&["END"], &["a E", "N", "D b"], "a ", Some(0)),
            (&["END"], &["a E", "N", "d"], "a ENd", None),
            (&["END"], &["a EN"], "a EN", None),
            (&["aab"], &["aaa", "b"], "a", Some(0)),
            (&["x", "xy"], &["1xy"], "1", Some(0)),
            (&["abcd", "bc"], &["abcd"], "a", Some(1)),
            (&["b", "a"], &["ab"], "", Some(1)),
            (&["家族"], &["大家", "族x"], "大", Some(0)),
            (&[""], &["abc"], "abc", None),
            (&[], &["abc"], "abc", None),
        ];
        for (stops, pieces, text, index) in cases {
            assert_eq!(run(stops, pieces), ((*text).to_owned(), *index), "{stops:?} {pieces:?}");
        }
    }

    #[test]
    fn text_that_cannot_match_is_not_held() {
        let mut watch = StopStrings::new(vec!["\n\n".into()]);
        assert_eq!(watch.push("one\n"), StopOutcome::Continue("one".into()));
        assert_eq!(watch.push("two"), StopOutcome::Continue("\ntwo".into()));
    }

    proptest! {
        #[test]
        fn equals_a_search_in_the_whole(pieces in proptest::collection::vec("[ab日]{0,3}", 0..12), stop in "[ab日]{1,4}") {
            let whole = pieces.concat();
            let expected = match whole.find(&stop) {
                Some(at) => (whole[..at].to_owned(), Some(0)),
                None => (whole, None),
            };
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(run(&[&stop], &pieces), expected);
        }
    }
}
