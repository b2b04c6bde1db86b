//! `POST /v1/messages` and `/v1/messages/count_tokens`: the request.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::block::Block;
use super::tools::{Tool, ToolChoice, ToolMode};
use crate::error::ApiError;
use crate::fields::{Fields, join, missing};
use crate::openai::chat::{ReasoningEffort, take_reasoning_effort};
use crate::openai::parameters::{take_stop, within};

/// Least budget of thought the dialect allows, in tokens.
pub const THINKING_BUDGET_MINIMUM: u32 = 1024;

/// A messages request in canonical form: content is always a list of blocks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MessagesRequest {
    /// The model, as the client named it.
    pub model: String,
    /// Most tokens to generate; 0 warms the prompt cache and generates nothing.
    pub max_tokens: u32,
    /// Texts of the instructions.
    pub system: Vec<String>,
    /// The conversation, at least one turn.
    pub messages: Vec<Turn>,
    /// What the model may call.
    pub tools: Vec<Tool>,
    /// Which of them it must call.
    pub tool_choice: Option<ToolChoice>,
    /// Texts that end the answer.
    pub stop_sequences: Vec<String>,
    /// 0 to 1 in this dialect; 2 is accepted for local models.
    pub temperature: Option<f32>,
    /// Nucleus.
    pub top_p: Option<f32>,
    /// Keep this many tokens.
    pub top_k: Option<u32>,
    /// Whether and how to think.
    pub thinking: Option<Thinking>,
    /// How much trouble to take (`output_config.effort`).
    pub effort: Option<ReasoningEffort>,
    /// Schema the answer must obey (`output_config.format`).
    pub output_schema: Option<Value>,
    /// `metadata.user_id`.
    pub user_id: Option<String>,
    /// Answer in events.
    pub stream: bool,
    /// How often the client marked the end of a cacheable prefix.
    pub cache_breakpoints: u32,
    /// The client sent `context_management` and expects to see what was applied.
    pub context_management: bool,
    /// Names of fields that were sent and are not understood.
    pub ignored: Vec<String>,
}

/// Who speaks in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The person or program asking, and the tools it ran.
    User,
    /// The model.
    Assistant,
    /// Instructions in the middle of a conversation.
    System,
}

/// One turn.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: Vec<Block>,
}

/// Whether and how to think.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thinking {
    /// Up to this many tokens.
    Enabled {
        /// At least [`THINKING_BUDGET_MINIMUM`], below `max_tokens`.
        budget_tokens: u32,
        /// Do not show the thoughts.
        omitted: bool,
    },
    /// As the model sees fit.
    Adaptive {
        /// Do not show the thoughts.
        omitted: bool,
    },
    /// Not at all.
    Disabled,
}

/// Fields that are read and change nothing here; they are not worth a report.
const SILENT: [&str; 4] = ["cache_control", "service_tier", "anthropic_version", "anthropic_beta"];

impl MessagesRequest {
    /// Reads a request.
    ///
    /// # Errors
    ///
    /// 400, naming the path.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut request = Fields::from_body(body)?;
        let max_tokens = take_max_tokens(&mut request)?.ok_or_else(|| missing("max_tokens"))?;
        Self::read(request, body, max_tokens)
    }

    /// Reads a request to count tokens: the same, without a limit.
    ///
    /// # Errors
    ///
    /// 400, naming the path.
    pub fn parse_count_tokens(body: &[u8]) -> Result<Self, ApiError> {
        let mut request = Fields::from_body(body)?;
        let max_tokens = take_max_tokens(&mut request)?.unwrap_or(u32::MAX);
        Self::read(request, body, max_tokens)
    }

    fn read(mut request: Fields, body: &[u8], max_tokens: u32) -> Result<Self, ApiError> {
        let model = request.required_string("model")?;
        let system = take_system(&mut request)?;
        let messages = take_turns(&mut request)?;
        let tools = Tool::take_all(&mut request)?;
        let tool_choice = ToolChoice::take(&mut request)?;
        check_tool_choice(tool_choice.as_ref(), &tools)?;
        let thinking = Thinking::take(&mut request, max_tokens)?;
        let (effort, output_schema) = take_output_config(&mut request)?;
        let user_id = request.nested("metadata")?.and_then(|mut metadata| metadata.label("user_id"));
        if request.list("mcp_servers")?.is_some_and(|servers| !servers.is_empty()) {
            let message = "servers of tools are not reached from here; run them in the client";
            return Err(ApiError::unsupported_parameter("mcp_servers", message));
        }
        Ok(Self {
            model,
            max_tokens,
            system,
            messages,
            tools,
            tool_choice,
            stop_sequences: take_stop(&mut request, "stop_sequences")?,
            temperature: within(&mut request, "temperature", 0.0, 2.0)?,
            top_p: within(&mut request, "top_p", 0.0, 1.0)?,
            top_k: take_top_k(&mut request)?,
            thinking,
            effort,
            output_schema,
            user_id,
            stream: request.boolean("stream")?.unwrap_or(false),
            cache_breakpoints: count_breakpoints(body),
            context_management: request.object("context_management")?.is_some(),
            ignored: request
                .rest()
                .into_iter()
                .map(|(name, _)| name)
                .filter(|name| !SILENT.contains(&name.as_str()))
                .collect(),
        })
    }

    /// The wire form, for an upstream of this dialect.
    pub fn to_body(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a request is always representable as JSON")
    }
}

fn take_max_tokens(request: &mut Fields) -> Result<Option<u32>, ApiError> {
    match request.integer("max_tokens")? {
        None => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| ApiError::invalid("max_tokens", format!("must be at least 0, got {number}"))),
    }
}

fn take_top_k(request: &mut Fields) -> Result<Option<u32>, ApiError> {
    match request.integer("top_k")? {
        None => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| ApiError::invalid("top_k", format!("must be at least 0, got {number}"))),
    }
}

fn take_system(request: &mut Fields) -> Result<Vec<String>, ApiError> {
    let Some(value) = request.take("system") else { return Ok(Vec::new()) };
    let blocks = Block::read_content("system", value)?;
    let text = |(index, block)| match block {
        Block::Text(text) => Ok(text),
        _ => Err(ApiError::invalid(format!("system.{index}.type"), "instructions are text")),
    };
    let texts: Result<Vec<_>, _> = blocks.into_iter().enumerate().map(text).collect();
    Ok(texts?.into_iter().filter(|text| !text.is_empty()).collect())
}

fn take_turns(request: &mut Fields) -> Result<Vec<Turn>, ApiError> {
    let items = request.list("messages")?.ok_or_else(|| missing("messages"))?;
    if items.is_empty() {
        return Err(ApiError::invalid("messages", "at least one message is required"));
    }
    let read = |(index, value)| Turn::read(&join("messages", index), value);
    items.into_iter().enumerate().map(read).collect()
}

fn check_tool_choice(choice: Option<&ToolChoice>, tools: &[Tool]) -> Result<(), ApiError> {
    let Some(choice) = choice else { return Ok(()) };
    if tools.is_empty() {
        return Err(ApiError::invalid("tool_choice", "may only be given together with tools"));
    }
    match &choice.mode {
        ToolMode::Tool(name) if !tools.iter().any(|tool| tool.name() == name) => {
            Err(ApiError::invalid("tool_choice.name", format!("there is no tool named '{name}'")))
        }
        _ => Ok(()),
    }
}

fn take_output_config(request: &mut Fields) -> Result<(Option<ReasoningEffort>, Option<Value>), ApiError> {
    // The older spelling stands at the top.
    let older = request.nested("output_format")?;
    let (effort, format) = match request.nested("output_config")? {
        None => (None, older),
        Some(mut config) => {
            (take_reasoning_effort(&mut config, "effort")?, config.nested("format")?.or(older))
        }
    };
    let Some(mut format) = format else { return Ok((effort, None)) };
    let kind = format.required_string("type")?;
    if kind != "json_schema" {
        return Err(ApiError::invalid(format.at("type"), format!("'{kind}' is not json_schema")));
    }
    let schema = format.object("schema")?.ok_or_else(|| missing(&format.at("schema")))?;
    Ok((effort, Some(Value::Object(schema))))
}

/// Marks of cacheable prefixes, wherever they stand. Counted in the text, because they may stand
/// at any depth and nothing else is wanted of them; a message that quotes one may count too.
fn count_breakpoints(body: &[u8]) -> u32 {
    const MARK: &[u8] = b"\"cache_control\"";
    let mut count = 0;
    let mut rest = body;
    while let Some(at) = rest.iter().position(|byte| *byte == b'"') {
        rest = &rest[at..];
        if rest.starts_with(MARK) {
            count += 1;
            rest = &rest[MARK.len()..];
        } else {
            rest = &rest[1..];
        }
    }
    count
}

impl Turn {
    fn read(path: &str, value: Value) -> Result<Self, ApiError> {
        let mut turn = Fields::from_value(path, value)?;
        let role = match turn.required_string("role")?.as_str() {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "system" => Role::System,
            other => {
                let message = format!("'{other}' is not one of user, assistant, system");
                return Err(ApiError::invalid(turn.at("role"), message));
            }
        };
        let content_path = turn.at("content");
        let content = turn.take("content").ok_or_else(|| missing(&content_path))?;
        let content = Block::read_content(&content_path, content)?;
        for (index, block) in content.iter().enumerate() {
            let fits = match block {
                Block::Text(_) => true,
                Block::ToolUse { .. } | Block::Thinking { .. } | Block::RedactedThinking { .. } => {
                    role == Role::Assistant
                }
                Block::ServerSide { .. } => role != Role::System,
                _ => role == Role::User,
            };
            if !fits {
                let message = "a block of this type cannot stand in a turn of this role";
                return Err(ApiError::invalid(join(&join(&content_path, index), "type"), message));
            }
        }
        Ok(Self { role, content })
    }
}

impl Thinking {
    fn take(request: &mut Fields, max_tokens: u32) -> Result<Option<Self>, ApiError> {
        let Some(mut thinking) = request.nested("thinking")? else { return Ok(None) };
        let omitted = thinking.label("display").as_deref() == Some("omitted");
        match thinking.required_string("type")?.as_str() {
            "disabled" => Ok(Some(Self::Disabled)),
            "adaptive" | "between_tools" => Ok(Some(Self::Adaptive { omitted })),
            "enabled" => {
                let path = thinking.at("budget_tokens");
                let budget = thinking.integer("budget_tokens")?.ok_or_else(|| missing(&path))?;
                if budget < i64::from(THINKING_BUDGET_MINIMUM) {
                    let message = format!("must be at least {THINKING_BUDGET_MINIMUM}, got {budget}");
                    return Err(ApiError::invalid(path, message));
                }
                if budget >= i64::from(max_tokens) {
                    let message = format!("must be less than max_tokens ({max_tokens}), got {budget}");
                    return Err(ApiError::invalid(path, message));
                }
                Ok(Some(Self::Enabled { budget_tokens: budget as u32, omitted }))
            }
            other => {
                let message = format!("'{other}' is not one of enabled, disabled, adaptive");
                Err(ApiError::invalid(thinking.at("type"), message))
            }
        }
    }

    /// Whether the client wants no thoughts to be shown.
    pub fn omitted(self) -> bool {
        matches!(self, Self::Enabled { omitted: true, .. } | Self::Adaptive { omitted: true })
    }

    fn to_value(self) -> Value {
        let mut value = match self {
            Self::Enabled { budget_tokens, .. } => json!({"type": "enabled", "budget_tokens": budget_tokens}),
            Self::Adaptive { .. } => json!({"type": "adaptive"}),
            Self::Disabled => json!({"type": "disabled"}),
        };
        if self.omitted() {
            value["display"] = json!("omitted");
        }
        value
    }
}

impl Serialize for MessagesRequest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut body = Map::new();
        let mut put = |name: &str, value: Value| body.insert(name.to_owned(), value);
        put("model", json!(self.model));
        put("max_tokens", json!(self.max_tokens));
        if !self.system.is_empty() {
            let blocks: Vec<Value> =
                self.system.iter().map(|text| json!({"type": "text", "text": text})).collect();
            put("system", json!(blocks));
        }
        put("messages", json!(self.messages));
        if !self.tools.is_empty() {
            put("tools", json!(self.tools));
        }
        if let Some(choice) = &self.tool_choice {
            put("tool_choice", json!(choice));
        }
        if !self.stop_sequences.is_empty() {
            put("stop_sequences", json!(self.stop_sequences));
        }
        for (name, value) in [("temperature", self.temperature), ("top_p", self.top_p)] {
            if let Some(value) = value {
                put(name, json!(value));
            }
        }
        if let Some(top_k) = self.top_k {
            put("top_k", json!(top_k));
        }
        if let Some(thinking) = self.thinking {
            put("thinking", thinking.to_value());
        }
        let mut output = Map::new();
        if let Some(effort) = self.effort {
            output.insert("effort".to_owned(), json!(effort));
        }
        if let Some(schema) = &self.output_schema {
            output.insert("format".to_owned(), json!({"type": "json_schema", "schema": schema}));
        }
        if !output.is_empty() {
            put("output_config", Value::Object(output));
        }
        if let Some(user_id) = &self.user_id {
            put("metadata", json!({"user_id": user_id}));
        }
        if self.stream {
            put("stream", json!(true));
        }
        body.serialize(serializer)
    }
}

/// The answer to `count_tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct CountTokensResponse {
    /// Tokens of the prompt the request would make.
    pub input_tokens: u64,
}
