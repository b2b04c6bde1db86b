//! Completions: text in, text out, no template.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::fields::{Fields, join, mismatch, missing};
use crate::openai::chat::{FinishReason, Labels, take_include_usage};
use crate::openai::lenient;
use crate::openai::parameters::{GenerationParameters, LogprobsStyle, refuse_unhonoured};
use crate::openai::usage::{Timings, Usage};

/// A completion request in canonical form.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CompletionRequest {
    /// The model, as the client named it.
    pub model: String,
    /// One answer (times `n`) per prompt, at least one.
    #[serde(rename = "prompt", serialize_with = "one_or_many")]
    pub prompts: Vec<Prompt>,
    /// Sampling, length, stopping. `top_logprobs` counts the alternatives `logprobs` asks for.
    #[serde(skip)]
    pub parameters: GenerationParameters,
    /// Answer in chunks.
    pub stream: bool,
    /// End the stream with a chunk that carries the usage.
    #[serde(skip)]
    pub include_usage: bool,
    /// Labels that cannot change the answer.
    #[serde(flatten)]
    pub labels: Labels,
}

/// What to complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Prompt {
    /// Text to be tokenized.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

fn one_or_many<S: Serializer>(prompts: &[Prompt], serializer: S) -> Result<S::Ok, S::Error> {
    match prompts {
        [one] => one.serialize(serializer),
        many => many.serialize(serializer),
    }
}

/// Most prompts one request may carry.
pub const PROMPTS_MAXIMUM: usize = 128;

const COMPLETION_NAMES: [&str; 5] = ["model", "prompt", "stream", "stream_options", "user"];

impl CompletionRequest {
    /// Reads a request and refuses, by name, everything that is not understood and could matter.
    ///
    /// # Errors
    ///
    /// 400, naming the parameter.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut request = Fields::from_body(body)?;
        let parsed = Self {
            model: request.required_string("model")?,
            prompts: take_prompts(&mut request)?,
            parameters: GenerationParameters::take(&mut request, LogprobsStyle::Completions)?,
            stream: request.boolean("stream")?.unwrap_or(false),
            include_usage: take_include_usage(&mut request)?,
            labels: Labels::take(&mut request),
        };
        refuse_unhonoured(&request.rest(), &COMPLETION_NAMES)?;
        Ok(parsed)
    }

    /// The wire form, for another server.
    pub fn to_body(&self) -> Value {
        let mut body = serde_json::to_value(self).expect("a request is always representable as JSON");
        let parameters =
            serde_json::to_value(&self.parameters).expect("parameters are always representable as JSON");
        if let (Value::Object(body), Value::Object(mut parameters)) = (&mut body, parameters) {
            parameters.shift_remove("top_logprobs");
            if self.parameters.logprobs {
                parameters.insert("logprobs".to_owned(), self.parameters.top_logprobs.into());
            }
            body.append(&mut parameters);
            if self.include_usage {
                body.insert("stream_options".to_owned(), serde_json::json!({"include_usage": true}));
            }
        }
        body
    }
}

fn take_prompts(request: &mut Fields) -> Result<Vec<Prompt>, ApiError> {
    let path = request.at("prompt");
    let value = request.take("prompt").ok_or_else(|| missing(&path))?;
    let prompts = read_prompts(&path, value)?;
    if prompts.is_empty() {
        return Err(ApiError::invalid(path, "at least one prompt is required"));
    }
    if prompts.len() > PROMPTS_MAXIMUM {
        let message = format!("at most {PROMPTS_MAXIMUM} prompts, got {}", prompts.len());
        return Err(ApiError::invalid(path, message));
    }
    Ok(prompts)
}

/// A string, a list of strings, a list of token ids, or a list of lists of token ids.
pub(crate) fn read_prompts(path: &str, value: Value) -> Result<Vec<Prompt>, ApiError> {
    let items = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(items) => items,
        other => return Err(mismatch(path, "a string, a list of strings or token ids", &other)),
    };
    if items.first().is_some_and(Value::is_number) {
        return Ok(vec![Prompt::Tokens(read_tokens(path, items)?)]);
    }
    let mut prompts = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let path = join(path, index);
        prompts.push(match item {
            Value::String(text) => Prompt::Text(text),
            Value::Array(tokens) => Prompt::Tokens(read_tokens(&path, tokens)?),
            other => return Err(mismatch(&path, "a string or a list of token ids", &other)),
        });
    }
    Ok(prompts)
}

fn read_tokens(path: &str, items: Vec<Value>) -> Result<Vec<u32>, ApiError> {
    if items.is_empty() {
        return Err(ApiError::invalid(path, "a list of token ids must not be empty"));
    }
    let read = |(index, item): (usize, Value)| match item.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(token) => Ok(token),
        None => Err(mismatch(&join(path, index), "a token id", &item)),
    };
    items.into_iter().enumerate().map(read).collect()
}

/// An answer, or one chunk of it: both have the same form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// `cmpl-…`.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub id: String,
    /// `text_completion`.
    #[serde(default = "text_completion")]
    pub object: String,
    /// Seconds since 1970.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub created: u64,
    /// The model, as the client named it.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub model: String,
    /// The answers; empty in the chunk that carries the usage.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub choices: Vec<CompletionChoice>,
    /// What it cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Which build answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_fingerprint: Option<String>,
    /// How long it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

fn text_completion() -> String {
    "text_completion".to_owned()
}

impl Default for Completion {
    fn default() -> Self {
        Self {
            id: String::new(),
            object: text_completion(),
            created: 0,
            model: String::new(),
            choices: Vec::new(),
            usage: None,
            system_fingerprint: None,
            timings: None,
        }
    }
}

/// One answer, or a piece of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CompletionChoice {
    /// `prompt index * n + answer index`.
    #[serde(default)]
    pub index: u32,
    /// The text.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub text: String,
    /// How sure the model was.
    #[serde(default)]
    pub logprobs: Option<CompletionLogprobs>,
    /// Why it ended; `null` before.
    #[serde(default)]
    pub finish_reason: Option<FinishReason>,
    /// The stop string (or token) that ended it.
    #[serde(default, alias = "matched_stop", skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<Value>,
}

/// Log-probabilities as this endpoint has always written them: four lists of equal length.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CompletionLogprobs {
    /// The tokens.
    #[serde(default)]
    pub tokens: Vec<String>,
    /// Their log-probabilities.
    #[serde(default)]
    pub token_logprobs: Vec<Option<f32>>,
    /// Alternatives: text to log-probability.
    #[serde(default)]
    pub top_logprobs: Option<Vec<Map<String, Value>>>,
    /// Where each token begins in the text, in characters.
    #[serde(default)]
    pub text_offset: Vec<u64>,
}
