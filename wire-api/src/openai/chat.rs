//! Chat completions: the canonical request, the answer and its chunks.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::{Fields, mismatch};
use crate::openai::lenient;
use crate::openai::message::{Message, ThinkingBlock, take_messages};
use crate::openai::parameters::{GenerationParameters, LogprobsStyle, refuse_unhonoured};
use crate::openai::tools::{Tool, ToolChoice, WireToolCall};
use crate::openai::usage::{ChoiceLogprobs, Timings, Usage};

/// A chat request in canonical form; serialises to the OpenAI wire form.
///
/// Every dialect is read into this, so whatever comes later exists once.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ChatRequest {
    /// The model, as the client named it.
    pub model: String,
    /// The conversation, at least one message.
    pub messages: Vec<Message>,
    /// Sampling, length, stopping.
    #[serde(flatten)]
    pub parameters: GenerationParameters,
    /// What the model may call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Tool>,
    /// Which of them it must call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<ToolChoice>,
    /// Whether several calls may be made in one turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel_tool_calls: Option<bool>,
    /// The shape the answer must have.
    #[serde(skip_serializing_if = "ResponseFormat::is_text")]
    pub response_format: ResponseFormat,
    /// What the chat template is told.
    #[serde(flatten)]
    pub template: TemplateOptions,
    /// Answer in chunks.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stream: bool,
    /// End the stream with a chunk that carries the usage (`stream_options.include_usage`).
    #[serde(
        rename = "stream_options",
        skip_serializing_if = "std::ops::Not::not",
        serialize_with = "stream_options"
    )]
    pub include_usage: bool,
    /// Labels that cannot change the answer.
    #[serde(flatten)]
    pub labels: Labels,
    /// What the client sent and this type does not model. Empty after [`ChatRequest::parse`].
    #[serde(skip)]
    pub extra: Map<String, Value>,
}

/// Labels on a request: for accounting and for routing, never for the answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Labels {
    /// The client's user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The newer name of `user`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safety_identifier: Option<String>,
    /// Requests with equal keys share prompt prefixes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_cache_key: Option<String>,
}

/// What the chat template is told besides the conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct TemplateOptions {
    /// Variables handed to the template as they are. Never holds `enable_thinking`.
    pub kwargs: Map<String, Value>,
    /// Whether to think before answering; from the top level or from `chat_template_kwargs`.
    pub enable_thinking: Option<bool>,
    /// How hard to think.
    pub reasoning_effort: Option<ReasoningEffort>,
    /// The last message is the beginning of the answer.
    pub continue_final_message: bool,
    /// Whether to end the prompt with the opening of the model's turn.
    pub add_generation_prompt: bool,
}

impl Default for TemplateOptions {
    fn default() -> Self {
        Self {
            kwargs: Map::new(),
            enable_thinking: None,
            reasoning_effort: None,
            continue_final_message: false,
            add_generation_prompt: true,
        }
    }
}

/// How hard a model should think.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReasoningEffort {
    /// Not at all.
    None,
    /// As little as it can.
    Minimal,
    /// Little.
    Low,
    /// Some.
    Medium,
    /// Much.
    High,
    /// Very much.
    Xhigh,
    /// As much as it can.
    Max,
}

impl ReasoningEffort {
    /// All efforts, least first.
    pub const ALL: [Self; 7] =
        [Self::None, Self::Minimal, Self::Low, Self::Medium, Self::High, Self::Xhigh, Self::Max];

    /// The word used on the wire and in templates.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Minimal => "minimal",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Xhigh => "xhigh",
            Self::Max => "max",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|effort| effort.as_str() == word)
    }
}

impl TemplateOptions {
    /// Whether the client asked for thinking or for none; `None` leaves it to the template.
    pub fn thinking(&self) -> Option<bool> {
        self.enable_thinking.or(match self.reasoning_effort {
            Some(ReasoningEffort::None) => Some(false),
            _ => None,
        })
    }

    fn take(request: &mut Fields) -> Result<Self, ApiError> {
        let mut kwargs = request.object("chat_template_kwargs")?.unwrap_or_default();
        let inner = match kwargs.shift_remove("enable_thinking") {
            None | Some(Value::Null) => None,
            Some(Value::Bool(flag)) => Some(flag),
            Some(other) => return Err(mismatch("chat_template_kwargs.enable_thinking", "a boolean", &other)),
        };
        let enable_thinking = request.boolean("enable_thinking")?.or(inner);
        let reasoning_effort = take_reasoning_effort(request, "reasoning_effort")?;
        let continue_final_message = request.boolean("continue_final_message")?.unwrap_or(false);
        let add_generation_prompt = request.boolean("add_generation_prompt")?;
        if continue_final_message && add_generation_prompt == Some(true) {
            let message =
                "cannot be true together with continue_final_message: a turn is either opened or continued";
            return Err(ApiError::invalid("add_generation_prompt", message));
        }
        Ok(Self {
            kwargs,
            enable_thinking,
            reasoning_effort,
            continue_final_message,
            add_generation_prompt: add_generation_prompt.unwrap_or(!continue_final_message),
        })
    }
}

/// Reads an effort by name.
pub(crate) fn take_reasoning_effort(
    fields: &mut Fields,
    name: &str,
) -> Result<Option<ReasoningEffort>, ApiError> {
    let Some(word) = fields.string(name)? else { return Ok(None) };
    match ReasoningEffort::parse(&word) {
        Some(effort) => Ok(Some(effort)),
        None => {
            let message = format!("'{word}' is not one of none, minimal, low, medium, high, xhigh, max");
            Err(ApiError::invalid(fields.at(name), message))
        }
    }
}

impl Serialize for TemplateOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(None)?;
        if !self.kwargs.is_empty() || self.enable_thinking.is_some() {
            let mut kwargs = self.kwargs.clone();
            if let Some(flag) = self.enable_thinking {
                kwargs.insert("enable_thinking".to_owned(), Value::Bool(flag));
            }
            map.serialize_entry("chat_template_kwargs", &kwargs)?;
        }
        if let Some(effort) = self.reasoning_effort {
            map.serialize_entry("reasoning_effort", &effort)?;
        }
        if self.continue_final_message {
            map.serialize_entry("continue_final_message", &true)?;
        }
        // A default that is `true` elsewhere too is left unsaid.
        if !self.add_generation_prompt {
            map.serialize_entry("add_generation_prompt", &false)?;
        }
        map.end()
    }
}

/// The shape an answer must have.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum ResponseFormat {
    /// Free text.
    #[default]
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON that obeys a schema.
    JsonSchema {
        /// Name of the schema.
        name: String,
        /// The schema.
        schema: Value,
        /// Whether obedience is a must.
        strict: Option<bool>,
    },
}

impl ResponseFormat {
    /// Whether nothing is asked.
    pub fn is_text(&self) -> bool {
        *self == Self::Text
    }

    fn take(request: &mut Fields) -> Result<Self, ApiError> {
        let Some(mut format) = request.nested("response_format")? else { return Ok(Self::Text) };
        match format.required_string("type")?.as_str() {
            "text" => Ok(Self::Text),
            "json_object" => Ok(Self::JsonObject),
            "json_schema" => {
                let path = format.at("json_schema");
                let mut inner = format.nested("json_schema")?.ok_or_else(|| crate::fields::missing(&path))?;
                Ok(Self::JsonSchema {
                    name: inner.string("name")?.unwrap_or_else(|| "response".to_owned()),
                    schema: inner.object("schema")?.map_or_else(|| json!({}), Value::Object),
                    strict: inner.boolean("strict")?,
                })
            }
            other => {
                let message = format!("'{other}' is not one of text, json_object, json_schema");
                Err(ApiError::invalid(format.at("type"), message))
            }
        }
    }
}

impl Serialize for ResponseFormat {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text => json!({"type": "text"}),
            Self::JsonObject => json!({"type": "json_object"}),
            Self::JsonSchema { name, schema, strict } => {
                let mut inner = json!({"name": name, "schema": schema});
                if let Some(strict) = strict {
                    inner["strict"] = json!(strict);
                }
                json!({"type": "json_schema", "json_schema": inner})
            }
        }
        .serialize(serializer)
    }
}

/// What a server can do beyond text, for [`ChatRequest::check_capabilities`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// The model sees images.
    pub images: bool,
    /// Answers can be held to a grammar.
    pub structured_output: bool,
    /// Calls can be forced or forbidden to come in parallel.
    pub forced_tool_choice: bool,
}

const CHAT_NAMES: [&str; 15] = [
    "model",
    "messages",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "chat_template_kwargs",
    "enable_thinking",
    "reasoning_effort",
    "continue_final_message",
    "add_generation_prompt",
    "stream",
    "stream_options",
    "user",
    "metadata",
];

impl ChatRequest {
    /// Reads a request and refuses, by name, everything that is not understood and could matter.
    ///
    /// # Errors
    ///
    /// 400, naming the parameter.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut request = Self::parse_lenient(body)?;
        refuse_unhonoured(&request.extra, &CHAT_NAMES)?;
        request.extra.clear();
        Ok(request)
    }

    /// Reads a request and keeps what is not understood in [`extra`](Self::extra), for a translator
    /// that reports it.
    ///
    /// # Errors
    ///
    /// 400, naming the parameter, for what is understood and wrong.
    pub fn parse_lenient(body: &[u8]) -> Result<Self, ApiError> {
        Self::read(Fields::from_body(body)?)
    }

    fn read(mut request: Fields) -> Result<Self, ApiError> {
        let model = request.required_string("model")?;
        let messages = take_messages(&mut request)?;
        let parameters = GenerationParameters::take(&mut request, LogprobsStyle::Chat)?;
        let mut tools = Tool::take_all(&mut request)?;
        let tool_choice = ToolChoice::take(&mut request, &mut tools)?;
        let parallel_tool_calls = request.boolean("parallel_tool_calls")?;
        let response_format = ResponseFormat::take(&mut request)?;
        let template = TemplateOptions::take(&mut request)?;
        if template.continue_final_message && !matches!(messages.last(), Some(Message::Assistant(_))) {
            return Err(ApiError::invalid(
                "continue_final_message",
                "the last message is not the assistant's",
            ));
        }
        let stream = request.boolean("stream")?.unwrap_or(false);
        let include_usage = take_include_usage(&mut request)?;
        let labels = Labels::take(&mut request);
        Ok(Self {
            model,
            messages,
            parameters,
            tools,
            tool_choice,
            parallel_tool_calls,
            response_format,
            template,
            stream,
            include_usage,
            labels,
            extra: request.rest(),
        })
    }

    /// The wire form, for another server.
    pub fn to_body(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a request is always representable as JSON")
    }

    /// Images of the conversation, in order.
    pub fn images(&self) -> impl Iterator<Item = &crate::openai::content::ImageUrl> {
        self.messages.iter().filter_map(Message::content).flat_map(|content| content.images())
    }

    /// Refuses, by name, what this model or server cannot do.
    ///
    /// # Errors
    ///
    /// 400, naming the parameter.
    pub fn check_capabilities(&self, model: Capabilities) -> Result<(), ApiError> {
        use crate::openai::content::{Content, ContentPart};
        for (index, message) in self.messages.iter().enumerate() {
            let Some(Content::Parts(parts)) = message.content() else { continue };
            for (part_index, part) in parts.iter().enumerate() {
                let at = || format!("messages.{index}.content.{part_index}");
                match part {
                    ContentPart::Image(_) if !model.images => {
                        let message = format!("the model '{}' does not see images", self.model);
                        return Err(ApiError::invalid(at(), message).with_code("unsupported_content_type"));
                    }
                    ContentPart::File(_) => {
                        let message = format!("the model '{}' does not read files", self.model);
                        return Err(ApiError::invalid(at(), message).with_code("unsupported_content_type"));
                    }
                    _ => {}
                }
            }
        }
        if !self.response_format.is_text() && !model.structured_output {
            let message = "only the type 'text' is supported here";
            return Err(ApiError::unsupported_parameter("response_format", message));
        }
        if matches!(self.tool_choice, Some(ToolChoice::Required | ToolChoice::Function(_)))
            && !model.forced_tool_choice
        {
            let message = "a call cannot be forced here; use auto or none";
            return Err(ApiError::unsupported_parameter("tool_choice", message));
        }
        Ok(())
    }
}

impl Labels {
    pub(crate) fn take(request: &mut Fields) -> Self {
        Self {
            user: request.label("user"),
            safety_identifier: request.label("safety_identifier"),
            prompt_cache_key: request.label("prompt_cache_key"),
        }
    }
}

/// Reads `stream_options`.
pub(crate) fn take_include_usage(request: &mut Fields) -> Result<bool, ApiError> {
    let Some(mut options) = request.nested("stream_options")? else { return Ok(false) };
    let include_usage = options.boolean("include_usage")?.unwrap_or(false);
    if options.boolean("continuous_usage_stats")? == Some(true) {
        let message = "usage comes once, at the end; omit this";
        return Err(ApiError::unsupported_parameter("stream_options.continuous_usage_stats", message));
    }
    Ok(include_usage)
}

fn stream_options<S: Serializer>(include_usage: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    json!({"include_usage": include_usage}).serialize(serializer)
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// End of turn or a stop string.
    Stop,
    /// The token limit or the context.
    Length,
    /// The model called tools.
    ToolCalls,
    /// The answer was withheld.
    ContentFilter,
    /// The older spelling of `ToolCalls`.
    FunctionCall,
    /// A word of another server that stands for no proper end (`abort`, `error`).
    #[serde(other)]
    Abnormal,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatCompletion {
    /// `chatcmpl-…`.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub id: String,
    /// `chat.completion`.
    #[serde(default = "chat_completion")]
    pub object: String,
    /// Seconds since 1970.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub created: u64,
    /// The model, as the client named it.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub model: String,
    /// As many answers as were asked for.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub choices: Vec<Choice>,
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

fn chat_completion() -> String {
    "chat.completion".to_owned()
}

/// One answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Which of the `n`.
    #[serde(default)]
    pub index: u32,
    /// What the model said.
    pub message: ResponseMessage,
    /// How sure it was.
    #[serde(default)]
    pub logprobs: Option<ChoiceLogprobs>,
    /// Why it ended.
    #[serde(default)]
    pub finish_reason: Option<FinishReason>,
    /// The stop string (or token) that ended it.
    #[serde(default, alias = "matched_stop", skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<Value>,
}

/// What a model said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResponseMessage {
    /// `assistant`.
    #[serde(default = "assistant")]
    pub role: String,
    /// Text; `null` where it only called tools.
    #[serde(default)]
    pub content: Option<String>,
    /// Why it will not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// What it thought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Another spelling of `reasoning_content`, read only.
    #[serde(default, skip_serializing, deserialize_with = "lenient::text_or_nothing")]
    pub reasoning: Option<String>,
    /// Signed thoughts of an Anthropic server, for the client to send back.
    #[serde(default, deserialize_with = "lenient::or_default", skip_serializing_if = "Vec::is_empty")]
    pub thinking_blocks: Vec<ThinkingBlock>,
    /// Tools it called.
    #[serde(default, deserialize_with = "lenient::or_default", skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<WireToolCall>,
    /// The form before `tool_calls`, read only.
    #[serde(default, skip_serializing)]
    pub function_call: Option<crate::openai::tools::FunctionCall>,
}

fn assistant() -> String {
    "assistant".to_owned()
}

impl Default for ResponseMessage {
    fn default() -> Self {
        Self {
            role: assistant(),
            content: None,
            refusal: None,
            reasoning_content: None,
            reasoning: None,
            thinking_blocks: Vec::new(),
            tool_calls: Vec::new(),
            function_call: None,
        }
    }
}

/// One piece of a streamed answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatCompletionChunk {
    /// The same in every chunk of an answer.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub id: String,
    /// `chat.completion.chunk`.
    #[serde(default = "chat_completion_chunk")]
    pub object: String,
    /// Seconds since 1970; the same in every chunk.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub created: u64,
    /// The model, as the client named it.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub model: String,
    /// What is new; empty in the chunk that carries the usage.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub choices: Vec<ChunkChoice>,
    /// What it cost, in the last chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Which build answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_fingerprint: Option<String>,
    /// How long it took, in the last chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

fn chat_completion_chunk() -> String {
    "chat.completion.chunk".to_owned()
}

/// What is new in one choice.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ChunkChoice {
    /// Which of the `n`.
    #[serde(default)]
    pub index: u32,
    /// The new piece.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub delta: Delta,
    /// How sure the model was of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<ChoiceLogprobs>,
    /// Why it ended, in its last chunk; `null` before.
    #[serde(default)]
    pub finish_reason: Option<FinishReason>,
    /// The stop string (or token) that ended it.
    #[serde(default, alias = "matched_stop", skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<Value>,
}

/// A piece of a message.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// `assistant`, in the first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// More text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// More thought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Another spelling of `reasoning_content`, read only.
    #[serde(default, skip_serializing, deserialize_with = "lenient::text_or_nothing")]
    pub reasoning: Option<String>,
    /// More of a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// A signed thought of an Anthropic server, once it is complete.
    #[serde(default, deserialize_with = "lenient::or_default", skip_serializing_if = "Vec::is_empty")]
    pub thinking_blocks: Vec<ThinkingBlock>,
    /// More of tool calls.
    #[serde(default, deserialize_with = "lenient::or_default", skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

/// A piece of a tool call. Id and name come whole, in the first piece.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCallDelta {
    /// Which call of the turn.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub index: u32,
    /// Correlates call and result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// Name or more arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionCallDelta>,
}

/// A piece of a function call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionCallDelta {
    /// The function called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the arguments' JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
}

impl ToolCallDelta {
    /// The first piece of a call.
    pub fn open(index: u32, id: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            index,
            id: Some(id.into()),
            r#type: Some("function".to_owned()),
            function: Some(FunctionCallDelta { name: Some(name.into()), arguments: Some(String::new()) }),
        }
    }

    /// More arguments of a call.
    pub fn arguments(index: u32, fragment: impl Into<String>) -> Self {
        let function = Some(FunctionCallDelta { name: None, arguments: Some(fragment.into()) });
        Self { index, function, ..Self::default() }
    }
}

impl Delta {
    /// The first piece of an answer.
    pub fn opening() -> Self {
        Self { role: Some(assistant()), content: Some(String::new()), ..Self::default() }
    }

    /// More text.
    pub fn text(text: impl Into<String>) -> Self {
        Self { content: Some(text.into()), ..Self::default() }
    }

    /// More thought.
    pub fn thought(text: impl Into<String>) -> Self {
        Self { reasoning_content: Some(text.into()), ..Self::default() }
    }

    /// A piece of a tool call.
    pub fn tool_call(call: ToolCallDelta) -> Self {
        Self { tool_calls: vec![call], ..Self::default() }
    }

    /// The thought in it, under either name.
    pub fn reasoning_text(&self) -> Option<&str> {
        self.reasoning_content.as_deref().or(self.reasoning.as_deref())
    }
}

impl ResponseMessage {
    /// The thought in it, under either name.
    pub fn reasoning_text(&self) -> Option<&str> {
        self.reasoning_content.as_deref().or(self.reasoning.as_deref())
    }
}

/// What all chunks of one answer share; makes chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkHead {
    /// `chatcmpl-…`.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model, as the client named it.
    pub model: String,
}

impl ChunkHead {
    /// A chunk without choices.
    pub fn empty(&self) -> ChatCompletionChunk {
        ChatCompletionChunk {
            id: self.id.clone(),
            object: chat_completion_chunk(),
            created: self.created,
            model: self.model.clone(),
            choices: Vec::new(),
            usage: None,
            system_fingerprint: None,
            timings: None,
        }
    }

    /// A chunk with a piece of choice `index`.
    pub fn delta(&self, index: u32, delta: Delta) -> ChatCompletionChunk {
        ChatCompletionChunk {
            choices: vec![ChunkChoice { index, delta, ..ChunkChoice::default() }],
            ..self.empty()
        }
    }

    /// The chunk that ends choice `index`.
    pub fn finish(
        &self,
        index: u32,
        reason: FinishReason,
        stop_reason: Option<Value>,
    ) -> ChatCompletionChunk {
        let choice =
            ChunkChoice { index, finish_reason: Some(reason), stop_reason, ..ChunkChoice::default() };
        ChatCompletionChunk { choices: vec![choice], ..self.empty() }
    }

    /// The chunk that carries the usage, after all choices have ended.
    pub fn usage(&self, usage: Usage, timings: Option<Timings>) -> ChatCompletionChunk {
        ChatCompletionChunk { usage: Some(usage), timings, ..self.empty() }
    }

    /// A whole answer.
    pub fn completion(&self, choices: Vec<Choice>, usage: Option<Usage>) -> ChatCompletion {
        ChatCompletion {
            id: self.id.clone(),
            object: chat_completion(),
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
            system_fingerprint: None,
            timings: None,
        }
    }
}
