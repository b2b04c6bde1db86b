//! A sequence's state: its tokens, and what they say comes next.

use std::sync::Arc;

use crate::vocabulary::{ASSISTANT, END, IMAGE, USER};

/// One sequence.
pub struct Sequence {
    tokens: Vec<u32>,
    /// Of each prefix, the length of its longest proper prefix that is also its suffix (Knuth, Morris, Pratt).
    borders: Vec<u32>,
    images: Vec<Seen>,
    bytes_per_token: u64,
}

/// An image that was fed.
#[derive(Clone)]
struct Seen {
    position: usize,
    caption: Arc<str>,
}

impl Sequence {
    pub(crate) fn new(bytes_per_token: u64) -> Self {
        Self { tokens: Vec::new(), borders: Vec::new(), images: Vec::new(), bytes_per_token }
    }

    /// A second sequence with the first `length` tokens.
    pub(crate) fn fork(&self, length: usize) -> Self {
        let mut forked = Self::new(self.bytes_per_token);
        forked.tokens.extend(&self.tokens[..length]);
        forked.borders.extend(&self.borders[..length]);
        forked.images.extend(self.images.iter().filter(|seen| seen.position < length).cloned());
        forked
    }

    pub(crate) fn trim(&mut self, length: usize) {
        self.tokens.truncate(length);
        self.borders.truncate(length);
        self.images.retain(|seen| seen.position < length);
    }

    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.tokens.len() as u64 * self.bytes_per_token
    }

    pub(crate) fn push(&mut self, token: u32) {
        let mut border = self.borders.last().map_or(0, |&border| border as usize);
        while border > 0 && self.tokens[border] != token {
            border = self.borders[border - 1] as usize;
        }
        let extends = !self.tokens.is_empty() && self.tokens[border] == token;
        self.borders.push((border + usize::from(extends)) as u32);
        self.tokens.push(token);
    }

    pub(crate) fn see(&mut self, position: usize, caption: Arc<str>) {
        if !self.images.iter().any(|seen| seen.position == position) {
            self.images.push(Seen { position, caption });
        }
    }

    /// The token that comes after the first `length` tokens (at least one).
    pub(crate) fn next(&self, length: usize, script: Option<&str>) -> u32 {
        let tokens = &self.tokens[..length];
        let Some(marker) = tokens.iter().rposition(|&token| token == ASSISTANT) else {
            return match script {
                Some(script) if !script.is_empty() => u32::from(script.as_bytes()[length % script.len()]),
                _ => tokens[self.borders[length - 1] as usize],
            };
        };
        let said = length - marker - 1;
        match script {
            Some(script) => script.as_bytes().get(said).map_or(END, |&byte| u32::from(byte)),
            None => self.users_turn(marker).nth(said).unwrap_or(END),
        }
    }

    /// What the user said last before `marker`; an image is told by its caption.
    fn users_turn(&self, marker: usize) -> impl Iterator<Item = u32> {
        let begin =
            self.tokens[..marker].iter().rposition(|&token| token == USER).map_or(marker, |at| at + 1);
        let turn = &self.tokens[begin..marker];
        let end = turn.iter().position(|&token| token == END).unwrap_or(turn.len());
        turn[..end].iter().enumerate().flat_map(move |(place, &token)| {
            let caption = if token == IMAGE { self.caption(begin + place) } else { "" };
            let own = if token == IMAGE { None } else { Some(token) };
            own.into_iter().chain(caption.bytes().map(u32::from))
        })
    }

    fn caption(&self, position: usize) -> &str {
        self.images.iter().find(|seen| seen.position == position).map_or("", |seen| &seen.caption)
    }

    /// Whether the sequence holds this text.
    pub(crate) fn contains(&self, text: &str) -> bool {
        let text: Vec<u32> = text.bytes().map(u32::from).collect();
        text.is_empty() || self.tokens.windows(text.len()).any(|window| window == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::{BEGIN, SYSTEM};

    fn fed(tokens: impl IntoIterator<Item = u32>) -> Sequence {
        let mut sequence = Sequence::new(8);
        tokens.into_iter().for_each(|token| sequence.push(token));
        sequence
    }

    fn continued(mut sequence: Sequence, count: usize, script: Option<&str>) -> String {
        let mut text = Vec::new();
        for _ in 0..count {
            let token = sequence.next(sequence.len(), script);
            if token == END {
                break;
            }
            text.push(token as u8);
            sequence.push(token);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    fn bytes(text: &str) -> impl Iterator<Item = u32> {
        text.bytes().map(u32::from)
    }

    #[test]
    fn text_without_markers_is_repeated_for_ever() {
        for text in ["abc", "hello ", "a", "aab", "abacaba "] {
            let expected: String = text.chars().cycle().take(20).collect();
            assert_eq!(continued(fed(bytes(text)), 20, None), expected, "{text}");
        }
    }

    #[test]
    fn the_users_last_turn_is_the_answer() {
        let chat = |turn: &str| {
            fed([BEGIN, SYSTEM]
                .into_iter()
                .chain(bytes("be brief"))
                .chain([END, USER])
                .chain(bytes("first"))
                .chain([END, ASSISTANT])
                .chain(bytes("first"))
                .chain([END, USER])
                .chain(bytes(turn))
                .chain([END, ASSISTANT]))
        };
        assert_eq!(continued(chat("second"), 99, None), "second");
        assert_eq!(continued(chat("ä😀"), 99, None), "ä😀");
        assert_eq!(continued(chat(""), 99, None), "");
        assert_eq!(continued(chat("second"), 99, Some("by heart")), "by heart");
    }
}
