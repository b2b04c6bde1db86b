//! The canonical request: every dialect is read into it.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::{ResponseFormat, TemplateOptions};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::openai::message::{Message, take_messages};
use crate::openai::parameters::{GenerationParameters, LogprobsStyle, refuse_unhonoured};
use crate::openai::tools::{Tool, ToolChoice};

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
