//! Which tokens end an answer.
//!
//! Checkpoints disagree with themselves: config.json, generation_config.json, the tokenizer and the chat
//! template each know some of the tokens that close a turn, and a model that runs past its own end fills
//! the whole budget. The union is right, because none of these tokens is ever part of an answer.

use serde_json::Value;

use super::{GgufMetadata, TextTokenizer};

/// Tokens that close a turn in some family. One counts if the chat template writes it and the vocabulary has it.
const TURN_ENDS: &[&str] = &[
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|eot|>",
    "<|return|>",
    "<|END_OF_TURN_TOKEN|>",
    "<eos>",
    "</s>",
];

/// The sources that may name end tokens.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct EndSources<'a> {
    pub config: Option<&'a Value>,
    pub generation_config: Option<&'a Value>,
    pub eos_token: Option<&'a str>,
    pub template: Option<&'a str>,
    pub gguf: Option<&'a GgufMetadata>,
}

/// All tokens that end an answer, ascending.
pub(super) fn stop_tokens(sources: EndSources<'_>, tokenizer: &TextTokenizer) -> Vec<u32> {
    let mut ids = Vec::new();
    for config in [sources.config, sources.generation_config].into_iter().flatten() {
        ids.extend(declared(config));
        if let Some(text) = config.get("text_config") {
            ids.extend(declared(text));
        }
    }
    ids.extend(sources.eos_token.and_then(|token| tokenizer.token_id(token)));
    if let Some(gguf) = sources.gguf {
        let keys = ["eos", "eot", "eom"].map(|name| format!("tokenizer.ggml.{name}_token_id"));
        ids.extend(keys.iter().filter_map(|key| gguf.u32(key)));
    }
    if let Some(template) = sources.template {
        let written = TURN_ENDS.iter().filter(|token| template.contains(**token));
        ids.extend(written.filter_map(|token| tokenizer.token_id(token)));
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn declared(config: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match config.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}

/// Positions right after each end-of-turn token of a prompt. Behind such a token the text before can never
/// be merged with what follows, so a later prompt that repeats the turn repeats exactly these ids.
pub(super) fn boundaries(ids: &[u32], ends: &[u32]) -> Vec<u32> {
    let after = |(index, id): (usize, &u32)| ends.contains(id).then_some(index as u32 + 1);
    ids.iter().enumerate().filter_map(after).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_spellings_of_eos_are_read() {
        assert_eq!(declared(&json!({"eos_token_id": 3})), [3]);
        assert_eq!(declared(&json!({"eos_token_id": [3, 4]})), [3, 4]);
        assert_eq!(declared(&json!({"eos_token_id": null})), [0u32; 0]);
    }

    #[test]
    fn boundaries_follow_end_tokens() {
        assert_eq!(boundaries(&[1, 9, 2, 3, 9, 4], &[9, 10]), [2, 5]);
        assert_eq!(boundaries(&[1, 2], &[9]), [0u32; 0]);
    }
}
