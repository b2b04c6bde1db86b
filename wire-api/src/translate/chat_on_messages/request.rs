//! The request: OpenAI chat into Anthropic messages.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::ReplyContext;
use crate::anthropic::block::{Block, Document, DocumentContent, Source};
use crate::anthropic::messages::{MessagesRequest, Role, THINKING_BUDGET_MINIMUM, Thinking, Turn};
use crate::anthropic::tools::{CustomTool, Tool, ToolChoice, ToolMode, empty_schema};
use crate::error::ApiError;
use crate::openai::chat::{ChatRequest, ReasoningEffort, ResponseFormat};
use crate::openai::content::{Content, ContentPart, DataUri, FilePart, ImageUrl};
use crate::openai::message::{AssistantMessage, Message};
use crate::openai::parameters::GenerationParameters;
use crate::openai::tools::{ToolArguments, ToolChoice as ChatToolChoice};
use crate::translate::identity::ToolNames;
use crate::translate::{Dropped, MessagesServer, Translated, effort};

/// Formats of images the dialect takes.
const IMAGE_TYPES: [&str; 4] = ["image/jpeg", "image/png", "image/gif", "image/webp"];

/// Writes a chat request (best read leniently, so that what is lost can be told) as a messages
/// request.
///
/// # Errors
///
/// 400, naming the parameter, for what the dialect has no word for and the client depends on.
pub fn translate(
    request: ChatRequest,
    server: MessagesServer,
) -> Result<Translated<MessagesRequest, ReplyContext>, ApiError> {
    let mut dropped = Dropped::default();
    refuse_what_clients_depend_on(&request)?;
    drop_what_has_no_word(&request, &mut dropped);
    let mut names = ToolNames::default();
    let tools: Vec<Tool> = request.tools.iter().map(|tool| translate_tool(tool, &mut names)).collect();
    let tool_choice = translate_choice(&request, &mut names);
    let forced =
        tool_choice.as_ref().is_some_and(|choice| matches!(choice.mode, ToolMode::Any | ToolMode::Tool(_)));
    let mut max_tokens = request.parameters.max_tokens.unwrap_or(server.default_max_tokens).max(1);
    let thinking = translate_thinking(&request, server, forced, &mut max_tokens);
    let effort = match thinking {
        Some(Thinking::Adaptive { .. }) => request.template.reasoning_effort.map(known_effort),
        _ => None,
    };

    let mut conversation = Conversation {
        system: Vec::new(),
        turns: Vec::new(),
        call_order: HashMap::new(),
        results: Vec::new(),
        server,
        names: &mut names,
        dropped: &mut dropped,
    };
    for (index, message) in request.messages.into_iter().enumerate() {
        conversation.message(index, message)?;
    }
    conversation.close()?;
    let (mut system, messages) = (conversation.system, conversation.turns);
    let output_schema = match request.response_format {
        ResponseFormat::Text => None,
        ResponseFormat::JsonSchema { schema, .. } => Some(schema),
        ResponseFormat::JsonObject => {
            dropped.add("response_format");
            system.push("Answer with one JSON object and nothing else.".to_owned());
            None
        }
    };
    let parameters = request.parameters;
    let thinks = matches!(thinking, Some(Thinking::Enabled { .. } | Thinking::Adaptive { .. }));
    let messages_request = MessagesRequest {
        model: request.model.clone(),
        max_tokens,
        system,
        messages,
        tools,
        tool_choice,
        stop_sequences: translate_stop(parameters.stop, &mut dropped),
        temperature: translate_temperature(parameters.temperature, thinks, &mut dropped),
        top_p: parameters.top_p,
        top_k: parameters.top_k.filter(|top_k| *top_k > 0),
        thinking,
        effort,
        output_schema,
        user_id: request.labels.user.or(request.labels.safety_identifier),
        stream: request.stream,
        ..MessagesRequest::default()
    };
    let reply = ReplyContext {
        model: request.model,
        tool_names: names,
        stream: request.stream,
        include_usage: request.include_usage,
    };
    Ok(Translated { request: messages_request, reply, dropped: dropped.into_names() })
}

fn refuse_what_clients_depend_on(request: &ChatRequest) -> Result<(), ApiError> {
    let refused = |name: &str, message: &str| Err(ApiError::unsupported_parameter(name, message));
    if request.parameters.n > 1 {
        return refused("n", "this model gives one answer; ask several times");
    }
    if request.parameters.logprobs {
        return refused("logprobs", "this model does not tell its log-probabilities; omit it");
    }
    Ok(())
}

fn drop_what_has_no_word(request: &ChatRequest, dropped: &mut Dropped) {
    let GenerationParameters {
        min_p,
        seed,
        logit_bias,
        presence_penalty,
        frequency_penalty,
        repetition_penalty,
        ignore_eos,
        ..
    } = &request.parameters;
    dropped.add_if(min_p.is_some(), "min_p");
    dropped.add_if(seed.is_some(), "seed");
    dropped.add_if(!logit_bias.is_empty(), "logit_bias");
    dropped.add_if(presence_penalty.is_some_and(|penalty| penalty != 0.0), "presence_penalty");
    dropped.add_if(frequency_penalty.is_some_and(|penalty| penalty != 0.0), "frequency_penalty");
    dropped.add_if(repetition_penalty.is_some_and(|penalty| penalty != 1.0), "repetition_penalty");
    dropped.add_if(*ignore_eos, "ignore_eos");
    dropped.add_if(!request.template.kwargs.is_empty(), "chat_template_kwargs");
    dropped.add_if(request.labels.prompt_cache_key.is_some(), "prompt_cache_key");
    for name in request.extra.keys() {
        dropped.add(name.as_str());
    }
}

fn translate_tool(tool: &crate::openai::tools::Tool, names: &mut ToolNames) -> Tool {
    Tool::Custom(CustomTool {
        name: names.shorten(&tool.name),
        description: tool.description.clone(),
        input_schema: tool.parameters.clone().unwrap_or_else(empty_schema),
        strict: tool.strict,
        input_examples: Vec::new(),
    })
}

fn translate_choice(request: &ChatRequest, names: &mut ToolNames) -> Option<ToolChoice> {
    if request.tools.is_empty() {
        return None;
    }
    let disable_parallel_tool_use = request.parallel_tool_calls == Some(false);
    let mode = match &request.tool_choice {
        Some(ChatToolChoice::None) => {
            return Some(ToolChoice { mode: ToolMode::None, disable_parallel_tool_use: false });
        }
        Some(ChatToolChoice::Auto) => ToolMode::Auto,
        Some(ChatToolChoice::Required) => ToolMode::Any,
        Some(ChatToolChoice::Function(name)) => ToolMode::Tool(names.shorten(name)),
        None if disable_parallel_tool_use => ToolMode::Auto,
        None => return None,
    };
    Some(ToolChoice { mode, disable_parallel_tool_use })
}

/// The dialect knows no `minimal` and no `none` as efforts.
fn known_effort(effort: ReasoningEffort) -> ReasoningEffort {
    match effort {
        ReasoningEffort::None | ReasoningEffort::Minimal => ReasoningEffort::Low,
        effort => effort,
    }
}

/// Thinking excludes a forced call. A budget must lie below `max_tokens`, which is raised for it:
/// thought must not eat the answer.
fn translate_thinking(
    request: &ChatRequest,
    server: MessagesServer,
    forced: bool,
    max_tokens: &mut u32,
) -> Option<Thinking> {
    let wanted = request.template.reasoning_effort;
    match (request.template.thinking(), wanted) {
        (None, None) => None,
        (Some(false), _) => Some(Thinking::Disabled),
        _ if forced => Some(Thinking::Disabled),
        _ if server.adaptive_thinking => Some(Thinking::Adaptive { omitted: false }),
        (_, wanted) => {
            let budget = effort::budget_of(wanted.unwrap_or(ReasoningEffort::Medium))
                .unwrap_or(THINKING_BUDGET_MINIMUM)
                .max(THINKING_BUDGET_MINIMUM);
            if *max_tokens <= budget {
                *max_tokens = max_tokens.saturating_add(budget);
            }
            Some(Thinking::Enabled { budget_tokens: budget, omitted: false })
        }
    }
}

fn translate_temperature(temperature: Option<f32>, thinks: bool, dropped: &mut Dropped) -> Option<f32> {
    let temperature = temperature?;
    if thinks {
        dropped.add_if(temperature != 1.0, "temperature");
        return None;
    }
    dropped.add_if(temperature > 1.0, "temperature");
    Some(temperature.min(1.0))
}

fn translate_stop(stop: Vec<String>, dropped: &mut Dropped) -> Vec<String> {
    let before = stop.len();
    let kept: Vec<String> = stop.into_iter().filter(|text| !text.trim().is_empty()).collect();
    dropped.add_if(kept.len() < before, "stop");
    kept
}

/// The turns written so far.
struct Conversation<'a> {
    system: Vec<String>,
    turns: Vec<Turn>,
    /// Places of the calls in the model's last turn, by id.
    call_order: HashMap<String, usize>,
    /// Results that came since, each with the place of its call.
    results: Vec<(usize, Block)>,
    server: MessagesServer,
    names: &'a mut ToolNames,
    dropped: &'a mut Dropped,
}

impl Conversation<'_> {
    fn message(&mut self, index: usize, message: Message) -> Result<(), ApiError> {
        let path = format!("messages.{index}.content");
        if !matches!(message, Message::Tool { .. }) {
            self.flush_results();
        }
        match message {
            Message::System { content, .. } => {
                let text = content.text("\n");
                if text.is_empty() {
                    return Ok(());
                }
                if self.turns.is_empty() || !self.server.mid_system {
                    self.system.push(text);
                } else {
                    self.add(Role::System, vec![Block::Text(text)]);
                }
            }
            Message::User { content, .. } => {
                let blocks = self.blocks(&path, content)?;
                self.add(Role::User, blocks);
            }
            Message::Assistant(message) => self.assistant(message),
            Message::Tool { tool_call_id, content, .. } => {
                let content = self.blocks(&path, content)?;
                self.tool_result(tool_call_id, content);
            }
        }
        Ok(())
    }

    /// Adds to the last turn where the same role speaks on.
    fn add(&mut self, role: Role, mut blocks: Vec<Block>) {
        match self.turns.last_mut() {
            Some(last) if last.role == role => last.content.append(&mut blocks),
            _ => self.turns.push(Turn { role, content: blocks }),
        }
    }

    fn tool_result(&mut self, tool_use_id: String, content: Vec<Block>) {
        let place = self.call_order.get(&tool_use_id).copied().unwrap_or(usize::MAX);
        self.results.push((place, Block::ToolResult { tool_use_id, content, is_error: false }));
    }

    /// Results stand at the beginning of the user's turn, in the order of the calls.
    fn flush_results(&mut self) {
        if self.results.is_empty() {
            return;
        }
        self.results.sort_by_key(|(place, _)| *place);
        let results = self.results.drain(..).map(|(_, result)| result);
        match self.turns.last_mut() {
            Some(turn) if turn.role == Role::User => {
                let is_result = |block: &Block| matches!(block, Block::ToolResult { .. });
                let after = turn.content.iter().take_while(|block| is_result(block)).count();
                turn.content.splice(after..after, results);
            }
            _ => self.turns.push(Turn { role: Role::User, content: results.collect() }),
        }
    }

    fn assistant(&mut self, message: AssistantMessage) {
        let mut blocks = Vec::new();
        for thought in message.thinking_blocks.into_iter().filter(|thought| !thought.signature.is_empty()) {
            blocks.push(Block::Thinking { thinking: thought.thinking, signature: thought.signature });
        }
        self.dropped.add_if(blocks.is_empty() && message.reasoning_content.is_some(), "reasoning_content");
        let texts = message.content.map(Content::into_parts).unwrap_or_default();
        for text in texts.into_iter().filter_map(|part| part.as_text().map(str::to_owned)) {
            if !text.trim().is_empty() {
                blocks.push(Block::Text(text));
            }
        }
        self.call_order.clear();
        for (place, call) in message.tool_calls.into_iter().enumerate() {
            self.call_order.insert(call.id.clone(), place);
            let input = match call.arguments {
                ToolArguments::Object(map) => map,
                ToolArguments::Text(text) => {
                    self.dropped.add("tool_calls.function.arguments");
                    Map::from_iter([("_raw".to_owned(), Value::String(text))])
                }
            };
            blocks.push(Block::ToolUse { id: call.id, name: self.names.shorten(&call.name), input });
        }
        // The dialect refuses a turn that says nothing.
        if !blocks.is_empty() {
            self.add(Role::Assistant, blocks);
        }
    }

    fn blocks(&mut self, path: &str, content: Content) -> Result<Vec<Block>, ApiError> {
        let mut blocks = Vec::new();
        for (index, part) in content.into_parts().into_iter().enumerate() {
            match part {
                // The dialect refuses empty text blocks.
                ContentPart::Text(text) if text.is_empty() => {}
                ContentPart::Text(text) => blocks.push(Block::Text(text)),
                ContentPart::Image(image) => {
                    self.dropped.add_if(image.detail.is_some(), "image_url.detail");
                    blocks.push(Block::Image(image_source(&format!("{path}.{index}.image_url"), image)?));
                }
                ContentPart::File(file) => blocks.push(document(&format!("{path}.{index}.file"), file)?),
            }
        }
        Ok(blocks)
    }

    fn close(&mut self) -> Result<(), ApiError> {
        self.flush_results();
        if !matches!(self.turns.first(), Some(turn) if turn.role == Role::User) {
            if !self.server.lenient {
                let message = "this model wants the conversation to begin with a user message";
                return Err(ApiError::invalid("messages", message));
            }
            self.turns.insert(0, Turn { role: Role::User, content: vec![Block::Text(".".to_owned())] });
        }
        if let Some(Turn { role: Role::Assistant, content }) = self.turns.last_mut()
            && let Some(Block::Text(text)) = content.last_mut()
        {
            text.truncate(text.trim_end().len());
        }
        Ok(())
    }
}

fn image_source(path: &str, image: ImageUrl) -> Result<Source, ApiError> {
    let Some(uri) = image.data_uri() else { return Ok(Source::Url(image.url)) };
    base64_source(path, uri, &IMAGE_TYPES)
}

fn base64_source(path: &str, uri: DataUri<'_>, types: &[&str]) -> Result<Source, ApiError> {
    let media_type = uri.media_type.to_ascii_lowercase();
    if !types.contains(&media_type.as_str()) {
        let message = format!("'{media_type}' is not one of {}", types.join(", "));
        return Err(ApiError::invalid(path, message).with_code("unsupported_content_type"));
    }
    if !uri.base64 {
        return Err(ApiError::invalid(path, "the data URI must be base64"));
    }
    Ok(Source::Base64 { media_type, data: uri.payload.to_owned() })
}

fn document(path: &str, file: FilePart) -> Result<Block, ApiError> {
    let Some(uri) = file.file_data.as_deref().and_then(DataUri::parse) else {
        let message = "a file must be sent as a data URI in file_data";
        return Err(ApiError::invalid(path, message).with_code("unsupported_content_type"));
    };
    let source = base64_source(path, uri, &["application/pdf"])?;
    Ok(Block::Document(Document { title: file.filename, content: DocumentContent::File(source) }))
}
