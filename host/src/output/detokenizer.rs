//! Tokens to text, one at a time, without ever splitting a character.
//!
//! A token's bytes may end inside a UTF-8 sequence; what is complete is handed out at once and the rest
//! waits for the next token. Bytes that can never become a character turn into U+FFFD exactly where a
//! conversion of all bytes at once would put it, so the pieces always add up to the whole. Grapheme
//! clusters (an emoji with joiners) may arrive in several pieces; every piece is whole characters.

use crate::prompt::TextTokenizer;

/// Joins the bytes of one sequence's tokens.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    /// The start of a character whose end has not come yet: at most 3 bytes.
    pending: Vec<u8>,
    /// Whether a leading space of the next text is the tokenizer's and not the model's.
    strip_space: bool,
    skip_special: bool,
    /// Control tokens that are shown all the same, because a parser reads them.
    kept: Vec<u32>,
}

impl Detokenizer {
    /// For a sequence of `tokenizer`. `from_start` says that the text begins here and does not continue a
    /// prompt, in which case a space that encoding would have put in front is taken away. With
    /// `skip_special`, control tokens leave no trace.
    pub fn new(tokenizer: &TextTokenizer, from_start: bool, skip_special: bool) -> Self {
        Self {
            pending: Vec::new(),
            strip_space: from_start && tokenizer.has_leading_space(),
            skip_special,
            kept: Vec::new(),
        }
    }

    /// Shows the control tokens `ids` all the same.
    pub fn keep(&mut self, ids: Vec<u32>) {
        self.kept = ids;
    }

    /// The text that token `id` completes; often empty.
    pub fn push(&mut self, tokenizer: &TextTokenizer, id: u32) -> String {
        let piece = tokenizer.piece(id);
        if piece.special && self.skip_special && !self.kept.contains(&id) {
            return String::new();
        }
        let mut bytes = piece.bytes;
        if self.strip_space && !bytes.is_empty() {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            self.strip_space = false;
        }
        self.pending.extend_from_slice(bytes);
        self.take_complete()
    }

    /// What is left when no more tokens come: nothing, or one U+FFFD for an unfinished character.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.pending);
        String::from_utf8_lossy(&rest).into_owned()
    }

    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        let mut start = 0;
        loop {
            let rest = &self.pending[start..];
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    start = self.pending.len();
                    break;
                }
                Err(error) => {
                    let valid = &rest[..error.valid_up_to()];
                    text.push_str(std::str::from_utf8(valid).expect("validated just above"));
                    start += valid.len();
                    let Some(bad) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    start += bad;
                }
            }
        }
        self.pending.drain(..start);
        text
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
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/models/tiny-llama");
        ModelText::open(&folder).unwrap()
    });

    fn pieces(ids: &[u32]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(TEXT.tokenizer(), true, true);
        let mut out: Vec<String> = ids.iter().map(|id| detokenizer.push(TEXT.tokenizer(), *id)).collect();
        out.push(detokenizer.finish());
        out
    }

    fn whole(ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids
            .iter()
            .map(|id| TEXT.tokenizer().piece(*id))
            .filter(|piece| !piece.special)
            .flat_map(|piece| piece.bytes.to_vec())
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[test]
    fn characters_stay_whole() {
        let text = "naïve 👩‍👩‍👧‍👦 家族 🇳🇴 हिन्दी é";
        let ids = TEXT.tokenizer().encode(text, false).unwrap();
        let pieces = pieces(&ids);
        assert_eq!(pieces.concat(), text);
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')));
        assert!(pieces.iter().any(String::is_empty), "the tokens of this text do split characters");
    }

    #[test]
    fn unfinished_characters_are_marked_at_the_end() {
        let ids = TEXT.tokenizer().encode("a🙂", false).unwrap();
        assert_eq!(pieces(&ids[..ids.len() - 1]).concat(), "a\u{fffd}");
    }

    #[test]
    fn unknown_ids_are_empty() {
        assert_eq!(pieces(&[u32::MAX, 1_000_000]).concat(), "");
    }

    proptest! {
        #[test]
        fn pieces_add_up_to_the_whole(ids in proptest::collection::vec(0u32..600, 0..60)) {
            prop_assert_eq!(pieces(&ids).concat(), whole(&ids));
        }

        #[test]
        fn any_text_comes_back(text in "\\PC{0,40}") {
            let ids = TEXT.tokenizer().encode(&text, false).unwrap();
            prop_assert_eq!(pieces(&ids).concat(), text);
        }
    }
}
