//! How to generate: every parameter that steers sampling, length and stopping.
//!
//! `None` means that the client said nothing, so that a model's own `generation_config.json` can
//! decide. Ranges are checked here, once, for every dialect.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::fields::{self, Fields, integer_of, mismatch};

/// Most alternatives per token a client may ask for.
pub const TOP_LOGPROBS_MAXIMUM: u8 = 20;
/// Most answers one request may ask for.
pub const N_MAXIMUM: u32 = 128;
/// Most stop strings one request may carry.
pub const STOP_MAXIMUM: usize = 64;

/// Sampling, length and stop parameters, checked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GenerationParameters {
    /// 0 is greedy; at most 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Nucleus: keep the likeliest tokens up to this probability, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Keep this many tokens; 0 keeps all (clients may also write -1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Keep tokens at least this likely relative to the likeliest, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Equal seeds and requests give equal answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Texts that end the answer and are not part of it; none is empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Most tokens to generate, at least 1. `max_completion_tokens` arrives here too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Number of independent answers.
    #[serde(skip_serializing_if = "is_one")]
    pub n: u32,
    /// Report the log-probability of each token.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub logprobs: bool,
    /// Alternatives reported per token; implies `logprobs`.
    #[serde(skip_serializing_if = "is_zero")]
    pub top_logprobs: u8,
    /// Added to the logits of these tokens, -100 to 100; sorted by token, no token twice.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "logit_bias_as_map")]
    pub logit_bias: Vec<(u32, f32)>,
    /// Subtracted once from tokens that already appeared, -2 to 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f32>,
    /// Subtracted per appearance, -2 to 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f32>,
    /// Divides (or multiplies, if negative) logits of tokens seen in prompt or answer; above 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// Go on past end-of-sequence tokens.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ignore_eos: bool,
}

impl Default for GenerationParameters {
    fn default() -> Self {
        Self {
            temperature: None,
            top_p: None,
            top_k: None,
            min_p: None,
            seed: None,
            stop: Vec::new(),
            max_tokens: None,
            n: 1,
            logprobs: false,
            top_logprobs: 0,
            logit_bias: Vec::new(),
            presence_penalty: None,
            frequency_penalty: None,
            repetition_penalty: None,
            ignore_eos: false,
        }
    }
}

fn is_one(n: &u32) -> bool {
    *n == 1
}

fn is_zero(n: &u8) -> bool {
    *n == 0
}

fn logit_bias_as_map<S: serde::Serializer>(bias: &[(u32, f32)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(bias.iter().map(|(token, value)| (token.to_string(), value)))
}

/// How the two OpenAI endpoints spell `logprobs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogprobsStyle {
    /// Chat: `logprobs: bool` and `top_logprobs: 0..=20`.
    Chat,
    /// Completions: `logprobs: 0..=20`, the number of alternatives.
    Completions,
}

impl GenerationParameters {
    /// Names read here, for suggestions.
    pub(crate) const NAMES: [&str; 16] = [
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "ignore_eos",
    ];

    /// Takes the parameters out of a request.
    pub(crate) fn take(request: &mut Fields, style: LogprobsStyle) -> Result<Self, ApiError> {
        let (logprobs, top_logprobs) = take_logprobs(request, style)?;
        let max_tokens = positive(request, "max_tokens")?;
        let max_completion_tokens = positive(request, "max_completion_tokens")?;
        Ok(Self {
            temperature: within(request, "temperature", 0.0, 2.0)?,
            top_p: within(request, "top_p", 0.0, 1.0)?,
            top_k: take_top_k(request)?,
            min_p: within(request, "min_p", 0.0, 1.0)?,
            seed: request.integer("seed")?,
            stop: take_stop(request, "stop")?,
            // The newer name wins where a client sends both.
            max_tokens: max_completion_tokens.or(max_tokens),
            n: take_n(request)?,
            logprobs,
            top_logprobs,
            logit_bias: take_logit_bias(request)?,
            presence_penalty: within(request, "presence_penalty", -2.0, 2.0)?,
            frequency_penalty: within(request, "frequency_penalty", -2.0, 2.0)?,
            repetition_penalty: take_repetition_penalty(request)?,
            ignore_eos: request.boolean("ignore_eos")?.unwrap_or(false),
        })
    }
}

/// A number between two bounds, both included.
pub(crate) fn within(
    request: &mut Fields,
    name: &str,
    lowest: f64,
    highest: f64,
) -> Result<Option<f32>, ApiError> {
    match request.number(name)? {
        Some(number) if !(lowest..=highest).contains(&number) => {
            let message = format!("must be between {lowest} and {highest}, got {number}");
            Err(ApiError::invalid(request.at(name), message))
        }
        number => Ok(number.map(|number| number as f32)),
    }
}

/// A token count of at least one.
pub(crate) fn positive(request: &mut Fields, name: &str) -> Result<Option<u32>, ApiError> {
    match request.integer(name)? {
        None => Ok(None),
        Some(number) => match u32::try_from(number) {
            Ok(number) if number >= 1 => Ok(Some(number)),
            _ => {
                let message = format!(
                    "must be between 1 and {}, got {number}; omit it for no limit of its own",
                    u32::MAX
                );
                Err(ApiError::invalid(request.at(name), message))
            }
        },
    }
}

fn take_top_k(request: &mut Fields) -> Result<Option<u32>, ApiError> {
    match request.integer("top_k")? {
        None => Ok(None),
        Some(-1) => Ok(Some(0)),
        Some(number) => u32::try_from(number).map(Some).map_err(|_| {
            ApiError::invalid(
                request.at("top_k"),
                format!("must be at least 1, or 0 or -1 to keep all tokens, got {number}"),
            )
        }),
    }
}

fn take_n(request: &mut Fields) -> Result<u32, ApiError> {
    match request.integer("n")? {
        None => Ok(1),
        Some(number) if (1..=i64::from(N_MAXIMUM)).contains(&number) => Ok(number as u32),
        Some(number) => Err(ApiError::invalid(
            request.at("n"),
            format!("must be between 1 and {N_MAXIMUM}, got {number}"),
        )),
    }
}

fn take_repetition_penalty(request: &mut Fields) -> Result<Option<f32>, ApiError> {
    match request.number("repetition_penalty")? {
        Some(number) if !(number > 0.0 && number <= 100.0) => {
            let message = format!("must be above 0 and at most 100 (1 changes nothing), got {number}");
            Err(ApiError::invalid(request.at("repetition_penalty"), message))
        }
        number => Ok(number.map(|number| number as f32)),
    }
}

/// A stop string or a list of them.
pub(crate) fn take_stop(request: &mut Fields, name: &str) -> Result<Vec<String>, ApiError> {
    let path = request.at(name);
    let items = match request.take(name) {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(one) => vec![one],
    };
    if items.len() > STOP_MAXIMUM {
        return Err(ApiError::invalid(
            path,
            format!("at most {STOP_MAXIMUM} stop strings, got {}", items.len()),
        ));
    }
    let mut stop = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        match item {
            Value::String(text) if text.is_empty() => {
                return Err(ApiError::invalid(fields::join(&path, index), "a stop string must not be empty"));
            }
            Value::String(text) => stop.push(text),
            other => return Err(mismatch(&path, "a string or a list of strings", &other)),
        }
    }
    Ok(stop)
}

fn take_logprobs(request: &mut Fields, style: LogprobsStyle) -> Result<(bool, u8), ApiError> {
    let counted = |request: &mut Fields, name: &str| match request.integer(name)? {
        None => Ok(None),
        Some(number) if (0..=i64::from(TOP_LOGPROBS_MAXIMUM)).contains(&number) => Ok(Some(number as u8)),
        Some(number) => {
            let message = format!("must be between 0 and {TOP_LOGPROBS_MAXIMUM}, got {number}");
            Err(ApiError::invalid(request.at(name), message))
        }
    };
    match style {
        LogprobsStyle::Completions => {
            let top = counted(request, "logprobs")?;
            Ok((top.is_some(), top.unwrap_or(0)))
        }
        LogprobsStyle::Chat => {
            let logprobs = request.boolean("logprobs")?.unwrap_or(false);
            let top = counted(request, "top_logprobs")?.unwrap_or(0);
            if top > 0 && !logprobs {
                return Err(ApiError::invalid(request.at("top_logprobs"), "needs logprobs to be true"));
            }
            Ok((logprobs, top))
        }
    }
}

fn take_logit_bias(request: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let path = request.at("logit_bias");
    let mut biases = Vec::new();
    for (key, value) in request.object("logit_bias")?.unwrap_or_default() {
        let Ok(token) = key.parse::<u32>() else {
            return Err(ApiError::invalid(path, format!("keys must be token ids, got '{key}'")));
        };
        match value.as_f64() {
            Some(bias) if (-100.0..=100.0).contains(&bias) => biases.push((token, bias as f32)),
            Some(bias) => {
                let message = format!("must be between -100 and 100, got {bias}");
                return Err(ApiError::invalid(fields::join(&path, key), message));
            }
            None => return Err(mismatch(&fields::join(&path, key), "a number", &value)),
        }
    }
    biases.sort_by_key(|(token, _)| *token);
    // "7" and "07" are the same token.
    biases.dedup_by_key(|(token, _)| *token);
    Ok(biases)
}

/// Parameters that cannot change an answer here: dropped without a word, whatever they hold.
pub(crate) const HARMLESS: [&str; 11] = [
    "metadata",
    "user",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "prediction",
    "cache_prompt",
    "priority",
    "request_id",
    "session_id",
];

/// Values of parameters we do not have that ask for what we do anyway.
fn is_neutral(name: &str, value: &Value) -> bool {
    match name {
        "store" | "echo" | "include_stop_str_in_output" | "use_beam_search" | "return_token_ids" => {
            *value == Value::Bool(false)
        }
        "skip_special_tokens" | "spaces_between_special_tokens" => *value == Value::Bool(true),
        "modalities" => value.as_array().is_some_and(|items| items.iter().all(|item| item == "text")),
        "verbosity" => value == "medium",
        "best_of" => integer_of(value) == Some(1),
        "min_tokens" => integer_of(value) == Some(0),
        "length_penalty" | "typical_p" => value.as_f64() == Some(1.0),
        "suffix" => value == "",
        "functions" | "tools" | "stop_token_ids" | "bad_words" | "documents" => {
            value.as_array().is_some_and(Vec::is_empty)
        }
        _ => false,
    }
}

/// Parameters other servers have, so that a refusal can say "not here" instead of "unknown".
const KNOWN_ELSEWHERE: [&str; 31] = [
    "audio",
    "bad_words",
    "best_of",
    "chat_template",
    "documents",
    "echo",
    "function_call",
    "functions",
    "grammar",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "include_stop_str_in_output",
    "json_schema",
    "length_penalty",
    "min_tokens",
    "mirostat",
    "modalities",
    "prompt_logprobs",
    "skip_special_tokens",
    "stop_token_ids",
    "store",
    "structured_outputs",
    "suffix",
    "tfs_z",
    "truncate_prompt_tokens",
    "typical_p",
    "use_beam_search",
    "verbosity",
    "web_search_options",
];

/// Refuses, by name, the first leftover parameter that would change the answer.
///
/// `known` are the names this endpoint reads, for the suggestion.
pub(crate) fn refuse_unhonoured(extra: &Map<String, Value>, known: &[&str]) -> Result<(), ApiError> {
    for (name, value) in extra {
        if HARMLESS.contains(&name.as_str()) || is_neutral(name, value) {
            continue;
        }
        if KNOWN_ELSEWHERE.contains(&name.as_str()) {
            let message = "this parameter is not supported here; omit it";
            return Err(ApiError::unsupported_parameter(name, message));
        }
        let candidates = known.iter().copied().chain(GenerationParameters::NAMES);
        let message = match fields::nearest(name, candidates) {
            Some(near) => format!("unknown parameter; did you mean '{near}'?"),
            None => "unknown parameter; omit it".to_owned(),
        };
        return Err(ApiError::invalid(name, message).with_code("unknown_parameter"));
    }
    Ok(())
}
