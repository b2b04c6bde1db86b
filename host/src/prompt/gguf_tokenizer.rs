//! The tokenizer inside a GGUF file.
//!
//! The file carries vocabulary, merges or scores, token types and the *name* of a pre-tokenizer. The name
//! stands for the splitting rules of the model's original tokenizer, which are data here. A name that is
//! not in the table is refused: splitting by other rules gives other tokens, and the model answers worse
//! without anyone noticing.

use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NFC, Prepend, Replace as ReplaceNormalizer, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer,
};

use super::{GgufMetadata, GgufValue, PromptError, TextTokenizer};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is cut before merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// By one regular expression.
    Regex(&'static str),
    /// By GPT-2's expression, which is the byte-level default.
    Gpt2,
    /// Single digits first, then GPT-2's expression.
    DigitsThenGpt2,
}

/// What a pre-tokenizer name stands for.
struct Rules {
    names: &'static [&'static str],
    cut: Cut,
    /// Canonical composition before anything else.
    nfc: bool,
    /// A word that is a token is not split further even if merges would not build it.
    ignore_merges: bool,
    /// Whether a first token is added when the file does not say.
    add_bos: bool,
}

const RULES: &[Rules] = &[
    Rules {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        cut: Cut::Regex(LLAMA3),
        nfc: false,
        ignore_merges: true,
        add_bos: true,
    },
    Rules {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "hunyuan-dense"],
        cut: Cut::Regex(QWEN2),
        nfc: true,
        ignore_merges: false,
        add_bos: false,
    },
    Rules {
        names: &["qwen35", "qwen3.5"],
        cut: Cut::Regex(QWEN35),
        nfc: true,
        ignore_merges: false,
        add_bos: false,
    },
    Rules { names: &["tekken"], cut: Cut::Regex(TEKKEN), nfc: false, ignore_merges: true, add_bos: true },
    Rules {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        cut: Cut::DigitsThenGpt2,
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    Rules {
        names: &["gpt-2", "gpt2", "phi-2", "mpt", "olmo", "gigachat", "roberta-bpe"],
        cut: Cut::Gpt2,
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
];

/// Token types as the file numbers them.
const TYPE_UNKNOWN: i64 = 2;
const TYPE_CONTROL: i64 = 3;
const TYPE_USER_DEFINED: i64 = 4;

/// Builds the tokenizer that `metadata` describes.
pub(super) fn tokenizer(metadata: &GgufMetadata) -> Result<TextTokenizer, PromptError> {
    let vocabulary = Vocabulary::read(metadata)?;
    let model = metadata.string("tokenizer.ggml.model").unwrap_or("(none)");
    let (mut inner, add_bos) = match model {
        "gpt2" => byte_level(metadata, &vocabulary)?,
        "llama" => sentence_piece(metadata, &vocabulary)?,
        other => {
            return Err(PromptError::Unsupported(format!(
                "the GGUF file's tokenizer model {other} is not supported (gpt2 and llama are); put a tokenizer.json beside the file"
            )));
        }
    };
    let broken =
        |error: tokenizers::Error| PromptError::Unsupported(format!("the GGUF file's tokenizer: {error}"));
    inner.add_special_tokens(vocabulary.added(TYPE_CONTROL, true)).map_err(broken)?;
    inner.add_tokens(vocabulary.added(TYPE_USER_DEFINED, false)).map_err(broken)?;
    add_outer_tokens(metadata, &vocabulary, add_bos, &mut inner)?;
    TextTokenizer::new(inner)
}

struct Vocabulary {
    tokens: Vec<String>,
    types: Vec<i64>,
    scores: Vec<f32>,
}

impl Vocabulary {
    fn read(metadata: &GgufMetadata) -> Result<Self, PromptError> {
        let tokens = texts(metadata, "tokenizer.ggml.tokens")?
            .ok_or_else(|| PromptError::Unsupported("the GGUF file has no tokenizer".into()))?;
        let types = metadata.array("tokenizer.ggml.token_type").unwrap_or_default();
        let types = types.iter().map(integer).collect::<Vec<_>>();
        let scores = metadata.array("tokenizer.ggml.scores").unwrap_or_default();
        let scores =
            scores.iter().map(|v| if let GgufValue::Float(f) = v { *f as f32 } else { 0.0 }).collect();
        if !types.is_empty() && types.len() != tokens.len() {
            return Err(malformed("tokenizer.ggml.token_type and tokens differ in length"));
        }
        Ok(Self { tokens, types, scores })
    }

    fn ids(&self) -> HashMap<String, u32> {
        // Of two equal spellings the first keeps its id.
        let mut ids = HashMap::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            ids.entry(token.clone()).or_insert(id as u32);
        }
        ids
    }

    fn kind(&self, id: usize) -> i64 {
        self.types.get(id).copied().unwrap_or(1)
    }

    fn added(&self, kind: i64, special: bool) -> Vec<AddedToken> {
        let wanted = |(id, token): (usize, &String)| {
            (self.kind(id) == kind && !token.is_empty())
                .then(|| AddedToken::from(token.clone(), special).normalized(false))
        };
        self.tokens.iter().enumerate().filter_map(wanted).collect()
    }
}

fn byte_level(metadata: &GgufMetadata, vocabulary: &Vocabulary) -> Result<(Tokenizer, bool), PromptError> {
    let name = metadata.string("tokenizer.ggml.pre").unwrap_or("gpt-2");
    let rules = RULES.iter().find(|rules| rules.names.contains(&name)).ok_or_else(|| {
        PromptError::Unsupported(format!(
            "the GGUF file's pre-tokenizer {name} is not known; put the model's tokenizer.json beside the file"
        ))
    })?;
    let merges = texts(metadata, "tokenizer.ggml.merges")?
        .ok_or_else(|| malformed("tokenizer.ggml.merges is missing"))?
        .into_iter()
        // A merge is "left right"; the left part may itself begin with the separator's stand-in but never with a space.
        .map(|merge| merge.split_once(' ').map(|(l, r)| (l.to_owned(), r.to_owned())))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| malformed("a merge without a space"))?;
    let model = BPE::builder()
        .vocab_and_merges(vocabulary.ids().into_iter().collect::<Vocab>(), merges)
        .ignore_merges(rules.ignore_merges)
        .build()
        .map_err(|error| malformed(&error.to_string()))?;
    let mut inner = Tokenizer::new(model);
    if rules.nfc {
        set_normalizer(&mut inner, NFC.into())?;
    }
    inner.with_pre_tokenizer(Some(pre_tokenizer(rules.cut)?));
    inner.with_decoder(Some(ByteLevel::new(false, true, false)));
    Ok((inner, rules.add_bos))
}

fn pre_tokenizer(cut: Cut) -> Result<PreTokenizerWrapper, PromptError> {
    let mut parts: Vec<PreTokenizerWrapper> = Vec::new();
    match cut {
        Cut::Regex(expression) => {
            let pattern = SplitPattern::Regex(expression.to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                .map_err(|error| PromptError::Unsupported(format!("the splitting expression: {error}")))?;
            parts.push(split.into());
        }
        Cut::DigitsThenGpt2 => parts.push(Digits::new(true).into()),
        Cut::Gpt2 => {}
    }
    let own_expression = !matches!(cut, Cut::Regex(_));
    parts.push(ByteLevel::new(false, true, own_expression).into());
    Ok(PreTokenizers::new(parts).into())
}

fn sentence_piece(
    metadata: &GgufMetadata,
    vocabulary: &Vocabulary,
) -> Result<(Tokenizer, bool), PromptError> {
    if vocabulary.scores.len() != vocabulary.tokens.len() {
        return Err(malformed("tokenizer.ggml.scores and tokens differ in length"));
    }
    let ids = vocabulary.ids();
    let merges = merges_from_scores(vocabulary, &ids);
    let mut builder = BPE::builder()
        .vocab_and_merges(ids.into_iter().collect::<Vocab>(), merges)
        .fuse_unk(true)
        .byte_fallback(true);
    if let Some(unknown) = (0..vocabulary.tokens.len()).find(|id| vocabulary.kind(*id) == TYPE_UNKNOWN) {
        builder = builder.unk_token(vocabulary.tokens[unknown].clone());
    }
    let mut inner = Tokenizer::new(builder.build().map_err(|error| malformed(&error.to_string()))?);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    if metadata.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true) {
        normalizers.push(Prepend::new("▁".to_owned()).into());
    }
    let spaces = ReplaceNormalizer::new(" ".to_owned(), "▁".to_owned())
        .map_err(|error| malformed(&error.to_string()))?;
    normalizers.push(spaces.into());
    set_normalizer(&mut inner, Normalizers::new(normalizers).into())?;
    inner.with_decoder(Some(DecoderWrapper::ByteFallback(Default::default())));
    Ok((inner, true))
}

/// SentencePiece joins the pair whose result scores best; as a list of merges that is every way to cut a
/// token in two known ones, best result first.
fn merges_from_scores(vocabulary: &Vocabulary, ids: &HashMap<String, u32>) -> Vec<(String, String)> {
    let mut found: Vec<(f32, u32, u32, &str, &str)> = Vec::new();
    for (id, token) in vocabulary.tokens.iter().enumerate() {
        if vocabulary.kind(id) != 1 {
            continue;
        }
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                found.push((vocabulary.scores[id], *l, *r, left, right));
            }
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    found.into_iter().map(|(_, _, _, left, right)| (left.to_owned(), right.to_owned())).collect()
}

/// The tokens that encoding puts around a text.
fn add_outer_tokens(
    metadata: &GgufMetadata,
    vocabulary: &Vocabulary,
    add_bos: bool,
    inner: &mut Tokenizer,
) -> Result<(), PromptError> {
    let token = |flag: &str, key: &str, default: bool| {
        let id = metadata.u32(key)?;
        let wanted = metadata.bool(flag).unwrap_or(default);
        wanted.then(|| vocabulary.tokens.get(id as usize).map(|text| (text.clone(), id))).flatten()
    };
    let first = token("tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id", add_bos);
    let last = token("tokenizer.ggml.add_eos_token", "tokenizer.ggml.eos_token_id", false);
    if first.is_none() && last.is_none() {
        return Ok(());
    }
    let mut shape: Vec<String> = first.iter().map(|(text, _)| text.clone()).collect();
    shape.push("$A".into());
    shape.extend(last.iter().map(|(text, _)| text.clone()));
    let tokens: Vec<(String, u32)> = first.into_iter().chain(last).collect();
    let processor = TemplateProcessing::builder()
        .try_single(shape)
        .map_err(|error| malformed(&error))?
        .special_tokens(tokens)
        .build()
        .map_err(|error| malformed(&error.to_string()))?;
    inner.with_post_processor(Some(processor));
    Ok(())
}

fn set_normalizer(inner: &mut Tokenizer, normalizer: NormalizerWrapper) -> Result<(), PromptError> {
    inner.with_normalizer(Some(normalizer)).map(|_| ()).map_err(|error| malformed(&error.to_string()))
}

fn texts(metadata: &GgufMetadata, key: &str) -> Result<Option<Vec<String>>, PromptError> {
    let Some(items) = metadata.array(key) else { return Ok(None) };
    let text = |item: &GgufValue| match item {
        GgufValue::String(text) => Some(text.clone()),
        _ => None,
    };
    items
        .iter()
        .map(text)
        .collect::<Option<Vec<_>>>()
        .map(Some)
        .ok_or_else(|| malformed(&format!("{key} holds other things than text")))
}

fn integer(value: &GgufValue) -> i64 {
    match value {
        GgufValue::Signed(v) => *v,
        GgufValue::Unsigned(v) => i64::try_from(*v).unwrap_or(0),
        _ => 0,
    }
}

fn malformed(reason: &str) -> PromptError {
    PromptError::Unsupported(format!("the GGUF file's tokenizer is malformed: {reason}"))
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use serde_json::Value;

    use super::*;
    use crate::prompt::gguf::build;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/models").join(name)
    }

    fn read(entries: &[(&str, GgufValue)]) -> GgufMetadata {
        let bytes = build::file(entries);
        GgufMetadata::read(bytes.as_slice(), bytes.len() as u64).unwrap()
    }

    fn strings(items: impl IntoIterator<Item = String>) -> GgufValue {
        GgufValue::Array(items.into_iter().map(GgufValue::String).collect())
    }

    /// The metadata llama.cpp's converter writes for a tokenizer.json of the byte-level kind.
    fn converted(tokenizer: &Value, pre: &str, bos: Option<u32>) -> GgufMetadata {
        let mut tokens: Vec<(u64, String, i64)> = tokenizer["model"]["vocab"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(token, id)| (id.as_u64().unwrap(), token.clone(), 1))
            .collect();
        for token in tokenizer["added_tokens"].as_array().unwrap() {
            let kind = if token["special"].as_bool().unwrap() { TYPE_CONTROL } else { TYPE_USER_DEFINED };
            tokens.push((token["id"].as_u64().unwrap(), token["content"].as_str().unwrap().to_owned(), kind));
        }
        tokens.sort();
        let merges = tokenizer["model"]["merges"].as_array().unwrap().iter().map(|merge| match merge {
            Value::String(text) => text.clone(),
            pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        });
        let mut entries = vec![
            ("tokenizer.ggml.model", GgufValue::String("gpt2".into())),
            ("tokenizer.ggml.pre", GgufValue::String(pre.into())),
            ("tokenizer.ggml.tokens", strings(tokens.iter().map(|(_, token, _)| token.clone()))),
            (
                "tokenizer.ggml.token_type",
                GgufValue::Array(tokens.iter().map(|t| GgufValue::Signed(t.2)).collect()),
            ),
            ("tokenizer.ggml.merges", strings(merges)),
        ];
        entries.extend(bos.map(|id| ("tokenizer.ggml.bos_token_id", GgufValue::Unsigned(id.into()))));
        read(&entries)
    }

    #[test]
    fn the_same_tokens_as_from_tokenizer_json() {
        for (name, pre, bos) in [
            ("tiny-llama", "llama-bpe", Some(512)),
            ("tiny-qwen3-tied", "qwen2", None),
            ("tiny-qwen3_5-text", "qwen35", None),
        ] {
            let folder = fixture(name);
            let json: Value =
                serde_json::from_slice(&std::fs::read(folder.join("tokenizer.json")).unwrap()).unwrap();
            let ours = tokenizer(&converted(&json, pre, bos)).unwrap();
            let expected: Value =
                serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
            for case in expected["tokenizer"]["encode"].as_array().unwrap() {
                let text = case["text"].as_str().unwrap();
                for (special, key) in [(false, "ids"), (true, "ids_with_special")] {
                    let ids: Vec<u32> = serde_json::from_value(case[key].clone()).unwrap();
                    assert_eq!(ours.encode(text, special).unwrap(), ids, "{name} {text:?}");
                }
            }
        }
    }

    #[test]
    fn digits_are_cut_one_by_one_before_words() {
        let tokens = ["1", "2", "12", "a", "b", "ab", "Ġ", "Ġa", "<|im_end|>"];
        let kinds = [1, 1, 1, 1, 1, 1, 1, 1, TYPE_CONTROL];
        let metadata = read(&[
            ("tokenizer.ggml.model", GgufValue::String("gpt2".into())),
            ("tokenizer.ggml.pre", GgufValue::String("smollm".into())),
            ("tokenizer.ggml.tokens", strings(tokens.map(str::to_owned))),
            ("tokenizer.ggml.token_type", GgufValue::Array(kinds.map(GgufValue::Signed).to_vec())),
            ("tokenizer.ggml.merges", strings(["1 2", "a b", "Ġ a"].map(str::to_owned))),
        ]);
        let tokenizer = tokenizer(&metadata).unwrap();
        assert_eq!(tokenizer.encode("ab12 a<|im_end|>", true).unwrap(), [5, 0, 1, 7, 8]);
        assert!(tokenizer.piece(8).special);
    }

    #[test]
    fn sentence_piece_joins_the_best_scored_pair_and_falls_back_to_bytes() {
        let mut tokens: Vec<(String, f32, i64)> = vec![
            ("<unk>".into(), 0.0, TYPE_UNKNOWN),
            ("<s>".into(), 0.0, TYPE_CONTROL),
            ("</s>".into(), 0.0, TYPE_CONTROL),
        ];
        tokens.extend((0..256).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)));
        let pieces = [
            ("▁", -9.0),
            ("h", -8.0),
            ("e", -8.0),
            ("l", -8.0),
            ("o", -8.0),
            ("he", -3.0),
            ("el", -1.0),
            ("▁h", -4.0),
            ("ell", -2.0),
            ("▁hello", -5.0),
            ("ello", -2.5),
        ];
        tokens.extend(pieces.map(|(piece, score)| (piece.to_owned(), score, 1)));
        let metadata = read(&[
            ("tokenizer.ggml.model", GgufValue::String("llama".into())),
            ("tokenizer.ggml.tokens", strings(tokens.iter().map(|t| t.0.clone()))),
            (
                "tokenizer.ggml.scores",
                GgufValue::Array(tokens.iter().map(|t| GgufValue::Float(t.1.into())).collect()),
            ),
            (
                "tokenizer.ggml.token_type",
                GgufValue::Array(tokens.iter().map(|t| GgufValue::Signed(t.2)).collect()),
            ),
            ("tokenizer.ggml.bos_token_id", GgufValue::Unsigned(1)),
        ]);
        let tokenizer = tokenizer(&metadata).unwrap();
        let spell = |ids: &[u32]| ids.iter().map(|id| tokens[*id as usize].0.clone()).collect::<Vec<_>>();
        // el (-1) before he (-3), then ell, ello, ▁h, and the whole word.
        assert_eq!(spell(&tokenizer.encode("hello", true).unwrap()), ["<s>", "▁hello"]);
        assert_eq!(spell(&tokenizer.encode("hell", false).unwrap()), ["▁h", "ell"]);
        assert_eq!(spell(&tokenizer.encode("é", false).unwrap()), ["▁", "<0xC3>", "<0xA9>"]);
        let ids = tokenizer.encode("hello é", false).unwrap();
        let mut detokenizer = crate::output::Detokenizer::new(&tokenizer, true, true);
        let mut text: String = ids.iter().map(|id| detokenizer.push(&tokenizer, *id)).collect();
        text.push_str(&detokenizer.finish());
        assert_eq!(text, "hello é");
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let refuse = |model: &str, pre: &str| {
            let metadata = read(&[
                ("tokenizer.ggml.model", GgufValue::String(model.into())),
                ("tokenizer.ggml.pre", GgufValue::String(pre.into())),
                ("tokenizer.ggml.tokens", strings(["a".to_owned()])),
                ("tokenizer.ggml.merges", strings([])),
            ]);
            tokenizer(&metadata).unwrap_err().to_string()
        };
        assert!(refuse("gpt2", "martian").contains("martian"));
        assert!(refuse("wordpiece", "x").contains("wordpiece"));
        assert!(tokenizer(&read(&[])).is_err());
    }
}
