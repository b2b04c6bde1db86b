//! Responses: OpenAI's item-based dialect, without state.
//!
//! Nothing is stored here, so what refers to stored things (`previous_response_id`, `conversation`,
//! item references) is refused by name: a client must send the whole history, as Codex does.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::fields::{Fields, join, mismatch, missing};
use crate::openai::chat::{Labels, ReasoningEffort, ResponseFormat, take_reasoning_effort};
use crate::openai::content::Content;
use crate::openai::parameters::{positive, within};

/// A responses request in canonical form.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ResponsesRequest {
    /// The model, as the client named it.
    pub model: String,
    /// Instructions that come before everything.
    pub instructions: Option<String>,
    /// The conversation, at least one item.
    pub input: Vec<InputItem>,
    /// What the model may call.
    pub tools: Vec<ToolItem>,
    /// Which of them it must call.
    pub tool_choice: Option<Value>,
    /// Whether several calls may be made in one turn.
    pub parallel_tool_calls: Option<bool>,
    /// How hard to think.
    pub effort: Option<ReasoningEffort>,
    /// The client wants to see a summary of the thoughts.
    pub wants_summary: bool,
    /// The client wants the thoughts in a form it can send back.
    pub wants_encrypted_reasoning: bool,
    /// Most tokens to generate.
    pub max_output_tokens: Option<u32>,
    /// 0 to 2.
    pub temperature: Option<f32>,
    /// Nucleus.
    pub top_p: Option<f32>,
    /// The shape the answer must have.
    pub response_format: ResponseFormat,
    /// Answer in events.
    pub stream: bool,
    /// Labels that cannot change the answer.
    pub labels: Labels,
    /// Fields that the answer repeats, as they came.
    pub echo: Map<String, Value>,
    /// Names of fields that were sent and are not honoured.
    pub ignored: Vec<String>,
}

/// One item of the conversation.
#[derive(Debug, Clone, PartialEq)]
pub enum InputItem {
    /// Somebody says something.
    Message {
        /// `system`, `developer`, `user` or `assistant`.
        role: MessageRole,
        /// What is said.
        content: Content,
    },
    /// The model called a function.
    FunctionCall {
        /// Correlates call and result.
        call_id: String,
        /// The namespace the function is in.
        namespace: Option<String>,
        /// The function.
        name: String,
        /// JSON, as the model wrote it.
        arguments: String,
    },
    /// The model called a tool that takes free text.
    CustomToolCall {
        /// Correlates call and result.
        call_id: String,
        /// The tool.
        name: String,
        /// The text.
        input: String,
    },
    /// What a function or tool gave back.
    ToolOutput {
        /// The call this answers.
        call_id: String,
        /// What it said.
        output: Content,
    },
    /// What the model thought.
    Reasoning {
        /// The thought, as far as the client sent it back.
        text: String,
    },
    /// Something a tool of the vendor's servers left in the history.
    ServerSide {
        /// Its `type`.
        kind: String,
    },
}

/// Who speaks in a message item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageRole {
    /// Instructions (`developer` too).
    System,
    /// The person or program asking.
    User,
    /// The model.
    Assistant,
}

/// A tool offered to the model.
#[derive(Debug, Clone, PartialEq)]
pub enum ToolItem {
    /// A function, perhaps inside a namespace.
    Function {
        /// The namespace.
        namespace: Option<String>,
        /// Its name.
        name: String,
        /// What it does.
        description: Option<String>,
        /// JSON schema of its arguments.
        parameters: Option<Value>,
        /// Ask for arguments that obey the schema exactly.
        strict: Option<bool>,
    },
    /// A tool that takes free text, perhaps of a grammar.
    Custom {
        /// Its name.
        name: String,
        /// What it does.
        description: Option<String>,
        /// Definition of the grammar.
        grammar: Option<String>,
    },
    /// A tool of the vendor's servers.
    ServerSide {
        /// Its `type`.
        kind: String,
    },
}

/// Fields repeated in the answer.
const ECHOED: [&str; 15] = [
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "reasoning",
    "safety_identifier",
    "service_tier",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_p",
    "user",
];

/// Fields that change nothing here; they are not worth a report.
const SILENT: [&str; 9] = [
    "metadata",
    "store",
    "service_tier",
    "prompt_cache_retention",
    "stream_options",
    "client_metadata",
    "include",
    "background",
    "top_logprobs",
];

impl ResponsesRequest {
    /// Reads a request.
    ///
    /// # Errors
    ///
    /// 400, naming the path, for what is wrong and for what would need state.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut request = Fields::from_body(body)?;
        let echo = ECHOED.iter().filter_map(|name| Some(((*name).to_owned(), request.copy(name)?))).collect();
        refuse_state(&mut request)?;
        let (effort, wants_summary) = take_reasoning(&mut request)?;
        let response_format = take_text(&mut request)?;
        let wants_encrypted_reasoning = take_include(&mut request)?;
        let parsed = Self {
            model: request.required_string("model")?,
            instructions: request.string("instructions")?.filter(|text| !text.is_empty()),
            input: take_input(&mut request)?,
            tools: take_tools(&mut request)?,
            tool_choice: request.take("tool_choice"),
            parallel_tool_calls: request.boolean("parallel_tool_calls")?,
            effort,
            wants_summary,
            wants_encrypted_reasoning,
            max_output_tokens: positive(&mut request, "max_output_tokens")?,
            temperature: within(&mut request, "temperature", 0.0, 2.0)?,
            top_p: within(&mut request, "top_p", 0.0, 1.0)?,
            response_format,
            stream: request.boolean("stream")?.unwrap_or(false),
            labels: Labels::take(&mut request),
            echo,
            ignored: Vec::new(),
        };
        let rest = request.rest().into_iter().map(|(name, _)| name);
        let ignored = rest.filter(|name| !SILENT.contains(&name.as_str())).collect();
        Ok(Self { ignored, ..parsed })
    }
}

fn refuse_state(request: &mut Fields) -> Result<(), ApiError> {
    for name in ["previous_response_id", "conversation", "prompt"] {
        if request.take(name).is_some() {
            let message = "nothing is stored here; send the whole conversation as input";
            return Err(ApiError::unsupported_parameter(name, message));
        }
    }
    if request.boolean("background")? == Some(true) {
        let message = "answers are given while the client waits; omit it";
        return Err(ApiError::unsupported_parameter("background", message));
    }
    if request.integer("top_logprobs")?.is_some_and(|count| count > 0) {
        return Err(ApiError::unsupported_parameter(
            "top_logprobs",
            "not available in this dialect; omit it",
        ));
    }
    Ok(())
}

fn take_reasoning(request: &mut Fields) -> Result<(Option<ReasoningEffort>, bool), ApiError> {
    let Some(mut reasoning) = request.nested("reasoning")? else { return Ok((None, false)) };
    let effort = take_reasoning_effort(&mut reasoning, "effort")?;
    let summary = reasoning.label("summary").or_else(|| reasoning.label("generate_summary"));
    Ok((effort, summary.is_some_and(|summary| summary != "none")))
}

fn take_text(request: &mut Fields) -> Result<ResponseFormat, ApiError> {
    let Some(mut text) = request.nested("text")? else { return Ok(ResponseFormat::Text) };
    let Some(mut format) = text.nested("format")? else { return Ok(ResponseFormat::Text) };
    match format.required_string("type")?.as_str() {
        "text" => Ok(ResponseFormat::Text),
        "json_object" => Ok(ResponseFormat::JsonObject),
        "json_schema" => Ok(ResponseFormat::JsonSchema {
            name: format.string("name")?.unwrap_or_else(|| "response".to_owned()),
            schema: format
                .object("schema")?
                .map(Value::Object)
                .ok_or_else(|| missing(&format.at("schema")))?,
            strict: format.boolean("strict")?,
        }),
        other => {
            let message = format!("'{other}' is not one of text, json_object, json_schema");
            Err(ApiError::invalid(format.at("type"), message))
        }
    }
}

fn take_include(request: &mut Fields) -> Result<bool, ApiError> {
    let mut encrypted = false;
    for item in request.list("include")?.unwrap_or_default() {
        match item.as_str() {
            Some("reasoning.encrypted_content") => encrypted = true,
            Some("message.output_text.logprobs") => {
                let message = "log-probabilities are not available in this dialect; omit it";
                return Err(ApiError::unsupported_parameter("include", message));
            }
            // The rest asks for details of tools that are not run here.
            _ => {}
        }
    }
    Ok(encrypted)
}

fn take_input(request: &mut Fields) -> Result<Vec<InputItem>, ApiError> {
    let items = match request.take("input") {
        None => return Err(missing("input")),
        Some(Value::String(text)) => {
            return Ok(vec![InputItem::Message { role: MessageRole::User, content: Content::Text(text) }]);
        }
        Some(Value::Array(items)) => items,
        Some(other) => return Err(mismatch("input", "a string or a list of items", &other)),
    };
    if items.is_empty() {
        return Err(ApiError::invalid("input", "at least one item is required"));
    }
    let read = |(index, value)| InputItem::read(&join("input", index), value);
    items.into_iter().enumerate().map(read).collect()
}

impl InputItem {
    fn read(path: &str, value: Value) -> Result<Self, ApiError> {
        let mut item = Fields::from_value(path, value)?;
        // A bare {role, content} is a message.
        let kind = item.string("type")?.unwrap_or_else(|| "message".to_owned());
        match kind.as_str() {
            "message" => Self::read_message(item),
            "function_call" => Ok(Self::FunctionCall {
                call_id: item.required_string("call_id")?,
                namespace: item.label("namespace").filter(|namespace| !namespace.is_empty()),
                name: item.required_string("name")?,
                arguments: item.string("arguments")?.unwrap_or_default(),
            }),
            "custom_tool_call" => Ok(Self::CustomToolCall {
                call_id: item.required_string("call_id")?,
                name: item.required_string("name")?,
                input: item.string("input")?.unwrap_or_default(),
            }),
            "function_call_output" | "custom_tool_call_output" => {
                let call_id = item.required_string("call_id")?;
                let output = item.take("output").unwrap_or_else(|| Value::String(String::new()));
                Ok(Self::ToolOutput { call_id, output: Content::read(&item.at("output"), output)? })
            }
            "reasoning" => Ok(Self::Reasoning { text: read_reasoning(&mut item) }),
            "item_reference" => {
                let message = "nothing is stored here; send the item itself";
                Err(ApiError::invalid(item.at("type"), message).with_code("unsupported_content_type"))
            }
            kind if is_server_side(kind) => Ok(Self::ServerSide { kind: kind.to_owned() }),
            other => {
                let message = format!("'{other}' items are not supported");
                Err(ApiError::invalid(item.at("type"), message).with_code("unsupported_content_type"))
            }
        }
    }

    fn read_message(mut item: Fields) -> Result<Self, ApiError> {
        let role = match item.required_string("role")?.as_str() {
            "system" | "developer" => MessageRole::System,
            "user" => MessageRole::User,
            "assistant" => MessageRole::Assistant,
            other => {
                let message = format!("'{other}' is not one of system, developer, user, assistant");
                return Err(ApiError::invalid(item.at("role"), message));
            }
        };
        let path = item.at("content");
        let content = item.take("content").ok_or_else(|| missing(&path))?;
        Ok(Self::Message { role, content: Content::read(&path, content)? })
    }
}

/// Calls of the vendor's tools, their results, and bookkeeping of its clients: all of them say
/// something about the past that a local model need not know.
fn is_server_side(kind: &str) -> bool {
    kind.ends_with("_call")
        || kind.ends_with("_call_output")
        || kind.starts_with("mcp_")
        || kind.starts_with("tool_search")
        || matches!(kind, "compaction" | "compaction_summary" | "ghost_snapshot" | "other")
}

/// The thought inside a reasoning item: the text itself, else what we sealed, else its summary.
fn read_reasoning(item: &mut Fields) -> String {
    let texts = |value: Option<Value>| -> String {
        let parts = value.and_then(|value| match value {
            Value::Array(parts) => Some(parts),
            _ => None,
        });
        let texts =
            parts.into_iter().flatten().filter_map(|part| Some(part.get("text")?.as_str()?.to_owned()));
        texts.collect::<Vec<_>>().join("\n")
    };
    let content = texts(item.take("content"));
    if !content.is_empty() {
        return content;
    }
    if let Some(text) = item.label("encrypted_content").and_then(|sealed| unseal_reasoning(&sealed)) {
        return text;
    }
    texts(item.take("summary"))
}

/// Marks thoughts that were sealed here, so that others' are left alone.
const SEAL: &str = "cortex:v1:";

/// A thought in a form that clients carry back without reading. It is no secret, only opaque.
pub fn seal_reasoning(text: &str) -> String {
    format!("{SEAL}{}", STANDARD.encode(text))
}

/// The thought, if it was sealed here.
pub fn unseal_reasoning(sealed: &str) -> Option<String> {
    String::from_utf8(STANDARD.decode(sealed.strip_prefix(SEAL)?).ok()?).ok()
}

fn take_tools(request: &mut Fields) -> Result<Vec<ToolItem>, ApiError> {
    let mut tools = Vec::new();
    for (index, value) in request.list("tools")?.unwrap_or_default().into_iter().enumerate() {
        read_tool(&join("tools", index), value, None, &mut tools)?;
    }
    Ok(tools)
}

fn read_tool(
    path: &str,
    value: Value,
    namespace: Option<&str>,
    tools: &mut Vec<ToolItem>,
) -> Result<(), ApiError> {
    let mut tool = Fields::from_value(path, value)?;
    let kind = tool.required_string("type")?;
    match kind.as_str() {
        "function" => tools.push(ToolItem::Function {
            namespace: namespace.map(str::to_owned),
            name: tool.required_string("name")?,
            description: tool.string("description")?,
            parameters: tool.object("parameters")?.map(Value::Object),
            strict: tool.boolean("strict")?,
        }),
        "custom" => {
            let name = tool.required_string("name")?;
            let description = tool.string("description")?;
            let grammar = tool.nested("format")?.and_then(|mut format| format.label("definition"));
            tools.push(ToolItem::Custom { name, description, grammar });
        }
        "namespace" if namespace.is_none() => {
            let name = tool.required_string("name")?;
            let list = join(path, "tools");
            for (index, value) in tool.list("tools")?.unwrap_or_default().into_iter().enumerate() {
                read_tool(&join(&list, index), value, Some(&name), tools)?;
            }
        }
        _ => tools.push(ToolItem::ServerSide { kind }),
    }
    Ok(())
}
