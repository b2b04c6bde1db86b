//! The request: OpenAI responses into OpenAI chat.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::{ReplyContext, ToolIdentity, ToolTable};
use crate::error::ApiError;
use crate::fields::{Fields, join};
use crate::openai::chat::{ChatRequest, TemplateOptions};
use crate::openai::content::{Content, ContentPart};
use crate::openai::message::{AssistantMessage, Message};
use crate::openai::parameters::GenerationParameters;
use crate::openai::responses::{InputItem, MessageRole, ResponsesRequest, ToolItem};
use crate::openai::tools::{Tool, ToolArguments, ToolCall, ToolChoice};
use crate::translate::identity::ToolNames;
use crate::translate::{ChatServer, Dropped, Translated};

/// The one argument of a function that stands for a tool of free text.
pub(super) const CUSTOM_ARGUMENT: &str = "input";

/// Writes a responses request as a chat request. It always streams; a client that does not is
/// answered with the fold.
///
/// # Errors
///
/// 400, naming the path, for what the server cannot be told.
pub fn translate(
    request: ResponsesRequest,
    server: ChatServer,
) -> Result<Translated<ChatRequest, ReplyContext>, ApiError> {
    let mut dropped = Dropped::default();
    for name in &request.ignored {
        dropped.add(name.as_str());
    }
    let mut names = ToolNames::default();
    let (mut tools, table) = translate_tools(request.tools, &mut names, &mut dropped);
    let tool_choice = match request.tool_choice {
        None => None,
        Some(choice) => translate_choice(choice, &mut tools, &table, &mut names)?,
    };
    let mut conversation = Conversation::new(server, &mut names, &mut dropped);
    if let Some(instructions) = request.instructions {
        conversation.system(instructions);
    }
    for item in request.input {
        conversation.item(item);
    }
    let messages = conversation.finish();
    let chat = ChatRequest {
        model: request.model.clone(),
        messages,
        parameters: GenerationParameters {
            temperature: request.temperature,
            top_p: request.top_p,
            max_tokens: request.max_output_tokens,
            ..GenerationParameters::default()
        },
        // Some servers refuse the word without tools to go with it.
        parallel_tool_calls: request.parallel_tool_calls.filter(|_| !tools.is_empty()),
        tools,
        tool_choice,
        response_format: request.response_format,
        template: TemplateOptions { reasoning_effort: request.effort, ..TemplateOptions::default() },
        stream: true,
        include_usage: true,
        labels: request.labels,
        extra: Map::new(),
    };
    let reply = ReplyContext {
        model: request.model,
        tools: table,
        stream: request.stream,
        wants_summary: request.wants_summary,
        wants_encrypted_reasoning: request.wants_encrypted_reasoning,
        echo: request.echo,
    };
    Ok(Translated { request: chat, reply, dropped: dropped.into_names() })
}

/// The name of a function of a namespace on a wire that has none.
fn flat_name(namespace: Option<&str>, name: &str) -> String {
    match namespace {
        None => name.to_owned(),
        Some(namespace) if namespace.ends_with('_') => format!("{namespace}{name}"),
        Some(namespace) => format!("{namespace}__{name}"),
    }
}

fn translate_tools(
    items: Vec<ToolItem>,
    names: &mut ToolNames,
    dropped: &mut Dropped,
) -> (Vec<Tool>, ToolTable) {
    let mut tools = Vec::with_capacity(items.len());
    let mut table = ToolTable::default();
    for item in items {
        let (tool, identity) = match item {
            ToolItem::ServerSide { kind } => {
                dropped.add(format!("tools.{kind}"));
                continue;
            }
            ToolItem::Function { namespace, name, description, parameters, strict } => {
                let wire_name = names.shorten(&flat_name(namespace.as_deref(), &name));
                let tool = Tool { name: wire_name, description, parameters, strict };
                (tool, ToolIdentity { namespace, name, custom: false })
            }
            ToolItem::Custom { name, description, grammar } => {
                let tool = custom_tool(names.shorten(&name), description, grammar);
                (tool, ToolIdentity { namespace: None, name, custom: true })
            }
        };
        table.insert(tool.name.clone(), identity);
        tools.push(tool);
    }
    (tools, table)
}

fn custom_tool(name: String, description: Option<String>, grammar: Option<String>) -> Tool {
    let mut description = description.unwrap_or_default();
    if let Some(grammar) = grammar {
        description.push_str("\n\nThe input must obey this grammar:\n");
        description.push_str(&grammar);
    }
    let parameters = json!({
        "type": "object",
        "properties": {CUSTOM_ARGUMENT: {"type": "string", "description": "The whole input, as plain text."}},
        "required": [CUSTOM_ARGUMENT],
    });
    Tool { name, description: Some(description), parameters: Some(parameters), strict: None }
}

fn translate_choice(
    choice: Value,
    tools: &mut Vec<Tool>,
    table: &ToolTable,
    names: &mut ToolNames,
) -> Result<Option<ToolChoice>, ApiError> {
    if let Value::String(mode) = &choice {
        return mode_of("tool_choice", mode).map(|mode| mode.filter_for(tools));
    }
    let mut choice = Fields::from_value("tool_choice", choice)?;
    match choice.required_string("type")?.as_str() {
        "function" | "custom" => {
            let wire_name = take_wire_name(&mut choice, names)?;
            if !table.contains(&wire_name) {
                return Err(ApiError::invalid(
                    "tool_choice",
                    format!("there is no tool named '{wire_name}'"),
                ));
            }
            Ok(Some(ToolChoice::Function(wire_name)))
        }
        "allowed_tools" => {
            let mode = choice.string("mode")?.unwrap_or_else(|| "auto".to_owned());
            let mode = mode_of("tool_choice.mode", &mode)?;
            let mut allowed = HashSet::new();
            for (index, value) in choice.list("tools")?.unwrap_or_default().into_iter().enumerate() {
                let mut item = Fields::from_value(join("tool_choice.tools", index), value)?;
                allowed.insert(take_wire_name(&mut item, names)?);
            }
            tools.retain(|tool| allowed.contains(&tool.name));
            Ok(mode.filter_for(tools))
        }
        other => {
            let message = format!("'{other}' cannot be forced here; use auto, none, required or a function");
            Err(ApiError::invalid("tool_choice.type", message))
        }
    }
}

fn take_wire_name(choice: &mut Fields, names: &mut ToolNames) -> Result<String, ApiError> {
    let namespace = choice.label("namespace");
    let name = choice.required_string("name")?;
    Ok(names.shorten(&flat_name(namespace.as_deref(), &name)))
}

fn mode_of(path: &str, mode: &str) -> Result<ToolChoice, ApiError> {
    match mode {
        "auto" => Ok(ToolChoice::Auto),
        "none" => Ok(ToolChoice::None),
        "required" => Ok(ToolChoice::Required),
        other => Err(ApiError::invalid(path, format!("'{other}' is not one of auto, none, required"))),
    }
}

impl ToolChoice {
    /// The choice, unless there is nothing to choose from.
    fn filter_for(self, tools: &[Tool]) -> Option<Self> {
        Some(self).filter(|_| !tools.is_empty())
    }
}

/// The messages written so far. What the model said in one turn comes as several items and is
/// gathered in `turn`; images that tools returned wait in `images` until the results are through.
struct Conversation<'a> {
    messages: Vec<Message>,
    turn: Option<AssistantMessage>,
    images: Vec<ContentPart>,
    server: ChatServer,
    names: &'a mut ToolNames,
    dropped: &'a mut Dropped,
}

impl<'a> Conversation<'a> {
    fn new(server: ChatServer, names: &'a mut ToolNames, dropped: &'a mut Dropped) -> Self {
        Self { messages: Vec::new(), turn: None, images: Vec::new(), server, names, dropped }
    }

    fn item(&mut self, item: InputItem) {
        match item {
            InputItem::Message { role: MessageRole::Assistant, content } => self.said(content.text("\n")),
            InputItem::Message { role: MessageRole::System, content } => {
                self.flush();
                self.system(content.text("\n"));
            }
            InputItem::Message { role: MessageRole::User, content } => {
                self.flush();
                let content = match content {
                    Content::Parts(parts) => self.user_content(parts),
                    text => text,
                };
                self.messages.push(Message::User { content, name: None });
            }
            InputItem::Reasoning { text } => {
                self.turn().reasoning_content.get_or_insert_default().push_str(&text);
            }
            InputItem::FunctionCall { call_id, namespace, name, arguments } => {
                let name = self.names.shorten(&flat_name(namespace.as_deref(), &name));
                let arguments = ToolArguments::parse(&arguments);
                self.turn().tool_calls.push(ToolCall { id: call_id, name, arguments });
            }
            InputItem::CustomToolCall { call_id, name, input } => {
                let name = self.names.shorten(&name);
                let arguments = Map::from_iter([(CUSTOM_ARGUMENT.to_owned(), Value::String(input))]);
                let arguments = ToolArguments::Object(arguments);
                self.turn().tool_calls.push(ToolCall { id: call_id, name, arguments });
            }
            InputItem::ToolOutput { call_id, output } => self.output(call_id, output),
            InputItem::ServerSide { kind } => self.dropped.add(format!("input.{kind}")),
        }
    }

    /// The turn of the model being gathered.
    fn turn(&mut self) -> &mut AssistantMessage {
        if self.turn.is_none() {
            self.flush_images();
        }
        self.turn.get_or_insert_default()
    }

    fn said(&mut self, text: String) {
        match &mut self.turn().content {
            Some(Content::Text(before)) => {
                before.push('\n');
                before.push_str(&text);
            }
            content => *content = Some(Content::Text(text)),
        }
    }

    fn output(&mut self, call_id: String, output: Content) {
        self.flush_turn();
        let content = match output {
            Content::Parts(parts) if !self.server.tool_images => self.without_images(parts),
            content => content,
        };
        self.messages.push(Message::Tool { tool_call_id: call_id, content, name: None });
    }

    fn without_images(&mut self, parts: Vec<ContentPart>) -> Content {
        let mut lines = Vec::with_capacity(parts.len());
        for part in parts {
            match part {
                ContentPart::Text(text) => lines.push(text),
                part => {
                    self.images.push(part);
                    lines.push(format!("[image {} attached below]", self.images.len()));
                }
            }
        }
        Content::Text(lines.join("\n"))
    }

    /// Instructions: those at the beginning become one message, later ones what the server takes.
    fn system(&mut self, text: String) {
        if text.is_empty() {
            return;
        }
        match self.messages.last_mut() {
            Some(Message::System { content: Content::Text(before), .. }) => {
                before.push_str("\n\n");
                before.push_str(&text);
            }
            Some(_) if !self.server.mid_system => {
                self.messages.push(Message::user(format!("<system-reminder>\n{text}\n</system-reminder>")));
            }
            _ => self.messages.push(Message::system(text)),
        }
    }

    fn user_content(&self, parts: Vec<ContentPart>) -> Content {
        let only_text = parts.iter().all(|part| part.as_text().is_some());
        if only_text && !self.server.text_parts {
            return Content::Text(Content::Parts(parts).text("\n"));
        }
        Content::from_parts(parts)
    }

    fn flush(&mut self) {
        self.flush_turn();
        self.flush_images();
    }

    fn flush_turn(&mut self) {
        let Some(mut turn) = self.turn.take() else { return };
        turn.reasoning_content = turn.reasoning_content.filter(|text| !text.is_empty());
        if turn.content.is_none() && turn.tool_calls.is_empty() {
            turn.content = Some(Content::Text(String::new()));
        }
        self.messages.push(Message::Assistant(turn));
    }

    fn flush_images(&mut self) {
        if !self.images.is_empty() {
            let content = Content::Parts(std::mem::take(&mut self.images));
            self.messages.push(Message::User { content, name: None });
        }
    }

    fn finish(mut self) -> Vec<Message> {
        self.flush();
        self.messages
    }
}
