//! A model's tokenizer: text to ids, and ids to the bytes they stand for.
//!
//! Encoding is the tokenizers crate's. Decoding is a table from id to bytes, because streaming needs the
//! bytes of one token at a time: a token may hold a part of a character, and only whoever joins tokens
//! (`output::Detokenizer`) knows when a character is complete.

use std::path::Path;

use serde_json::Value as Json;
use tokenizers::Tokenizer;

use super::PromptError;

/// The bytes of one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Part of the text, not always whole characters.
    pub bytes: &'a [u8],
    /// Control tokens, which readers do not want to see.
    pub special: bool,
}

/// Encodes text and knows every token's bytes.
pub struct TextTokenizer {
    inner: Tokenizer,
    pieces: PieceTable,
    leading_space: bool,
}

impl TextTokenizer {
    /// Reads `tokenizer.json`, and `tokenizer_config.json`'s `added_tokens_decoder` if the latter is given.
    pub fn from_file(path: &Path, config: Option<&Json>) -> Result<Self, PromptError> {
        let bytes = std::fs::read(path).map_err(|error| PromptError::file(path, error))?;
        let mut inner = Tokenizer::from_bytes(&bytes).map_err(|error| PromptError::file(path, error))?;
        // A file saved for training may cut or pad; a prompt is never silently cut.
        inner.with_truncation(None).map_err(|error| PromptError::file(path, error))?;
        inner.with_padding(None);
        if let Some(config) = config {
            add_declared_tokens(&mut inner, config).map_err(|error| PromptError::file(path, error))?;
        }
        Self::new(inner)
    }

    /// Wraps a tokenizer built elsewhere.
    pub fn new(inner: Tokenizer) -> Result<Self, PromptError> {
        let decoder = match inner.get_decoder() {
            Some(decoder) => serde_json::to_value(decoder).unwrap_or_default(),
            None => Json::Null,
        };
        let spelling = Spelling::of(&decoder)?;
        let pieces = PieceTable::build(&inner, spelling);
        Ok(Self { inner, pieces, leading_space: spelling == Spelling::SentencePiece })
    }

    /// Token ids of `text`. `add_special` adds what the tokenizer's post-processor adds (usually a first token);
    /// rendered chat templates carry those tokens already and must be encoded without.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, PromptError> {
        self.inner
            .encode_fast(text, add_special)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| PromptError::InvalidInput(format!("the text cannot be tokenized: {error}")))
    }

    /// What token `id` stands for. Ids the tokenizer does not know are empty: a model's output layer may
    /// have more rows than its tokenizer has tokens.
    pub fn piece(&self, id: u32) -> Piece<'_> {
        self.pieces.get(id)
    }

    /// The id of exactly this token.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// How the vocabulary spells token `id`.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// One more than the largest known id.
    pub fn vocabulary_size(&self) -> usize {
        self.pieces.len()
    }

    /// Whether encoding puts a space before the first word, which decoding takes away again.
    pub fn has_leading_space(&self) -> bool {
        self.leading_space
    }
}

impl std::fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextTokenizer").field("tokens", &self.pieces.len()).finish_non_exhaustive()
    }
}

/// Adds the tokens that only tokenizer_config.json declares.
fn add_declared_tokens(inner: &mut Tokenizer, config: &Json) -> tokenizers::Result<()> {
    let Some(declared) = config.get("added_tokens_decoder").and_then(Json::as_object) else { return Ok(()) };
    let mut missing: Vec<(u32, tokenizers::AddedToken)> = declared
        .iter()
        .filter_map(|(id, token)| {
            let id = id.parse().ok()?;
            let content = token.get("content")?.as_str()?;
            let flag = |name: &str| token.get(name).and_then(Json::as_bool).unwrap_or(false);
            let added = tokenizers::AddedToken::from(content, flag("special"))
                .lstrip(flag("lstrip"))
                .rstrip(flag("rstrip"))
                .single_word(flag("single_word"))
                .normalized(flag("normalized"));
            inner.token_to_id(content).is_none().then_some((id, added))
        })
        .collect();
    missing.sort_by_key(|(id, _)| *id);
    for (id, token) in missing {
        // Ids are given in order, so a token keeps its declared id only if that is the next free one.
        if inner.get_vocab_size(true) == id as usize {
            inner.add_tokens([token])?;
        }
    }
    Ok(())
}

/// How the vocabulary writes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// Every byte is one printable character (GPT-2 and its heirs).
    ByteLevel,
    /// `▁` is a space and `<0xNN>` a byte.
    SentencePiece,
}

impl Spelling {
    fn of(decoder: &Json) -> Result<Self, PromptError> {
        let kinds = decoder_kinds(decoder);
        if kinds.iter().any(|kind| kind == "ByteLevel") {
            return Ok(Self::ByteLevel);
        }
        let known = ["Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"];
        if !kinds.is_empty() && kinds.iter().all(|kind| known.contains(&kind.as_str())) {
            return Ok(Self::SentencePiece);
        }
        Err(PromptError::Unsupported(format!(
            "the tokenizer's decoder {} is not supported (ByteLevel and SentencePiece are)",
            if kinds.is_empty() { "(none)".to_owned() } else { kinds.join(" + ") }
        )))
    }

    fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => token
                .chars()
                .map(byte_of)
                .collect::<Option<Vec<u8>>>()
                .unwrap_or_else(|| token.as_bytes().to_vec()),
            Self::SentencePiece => match byte_token(token) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            },
        }
    }
}

fn decoder_kinds(decoder: &Json) -> Vec<String> {
    match decoder.get("type").and_then(Json::as_str) {
        Some("Sequence") => decoder
            .get("decoders")
            .and_then(Json::as_array)
            .map(|parts| parts.iter().flat_map(decoder_kinds).collect())
            .unwrap_or_default(),
        Some(kind) => vec![kind.to_owned()],
        None => Vec::new(),
    }
}

/// The byte a byte-level vocabulary writes as `c`: printable Latin-1 stands for itself, the rest follow from U+0100 in order.
fn byte_of(c: char) -> Option<u8> {
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = c as u32;
    if code < 0x100 {
        return printable(code).then_some(code as u8);
    }
    (0u32..0x100).filter(|b| !printable(*b)).nth((code - 0x100) as usize).map(|b| b as u8)
}

/// `<0x41>` → 0x41.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// All tokens' bytes in one buffer.
struct PieceTable {
    bytes: Vec<u8>,
    /// `ends[i]` is where token i's bytes end; they start where the one before ends.
    ends: Vec<u32>,
    special: Vec<bool>,
}

impl PieceTable {
    fn build(inner: &Tokenizer, spelling: Spelling) -> Self {
        let mut tokens: Vec<(u32, String)> =
            inner.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
        tokens.sort();
        let added = inner.get_added_tokens_decoder();
        let count = tokens.last().map_or(0, |(id, _)| *id as usize + 1);
        let mut table =
            Self { bytes: Vec::new(), ends: Vec::with_capacity(count), special: vec![false; count] };
        for (id, token) in tokens {
            table.ends.resize(id as usize, table.bytes.len() as u32);
            match added.get(&id) {
                Some(token) => {
                    table.special[id as usize] = token.special;
                    table.bytes.extend_from_slice(token.content.as_bytes());
                }
                None => table.bytes.extend(spelling.bytes(&token)),
            }
            table.ends.push(table.bytes.len() as u32);
        }
        table
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn get(&self, id: u32) -> Piece<'_> {
        let index = id as usize;
        let Some(end) = self.ends.get(index) else { return Piece { bytes: &[], special: false } };
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        Piece { bytes: &self.bytes[start as usize..*end as usize], special: self.special[index] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_alphabet_is_a_bijection() {
        let mut seen: Vec<u8> = (0u32..0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
        assert_eq!(seen.len(), 256);
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 256);
        assert_eq!(
            (byte_of('Ġ'), byte_of('Ċ'), byte_of('A'), byte_of(' ')),
            (Some(b' '), Some(b'\n'), Some(b'A'), None)
        );
    }

    #[test]
    fn byte_tokens() {
        assert_eq!(byte_token("<0xE4>"), Some(0xe4));
        for token in ["<0xE>", "<0xZZ>", "0xE4", "<0x+4>", "a"] {
            assert_eq!(byte_token(token).filter(|_| token != "<0x+4>"), None, "{token}");
        }
    }
}
