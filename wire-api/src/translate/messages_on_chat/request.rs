//! The request: Anthropic messages into OpenAI chat.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{ReplyContext, typed_tools};
use crate::anthropic::block::{Block, Document, DocumentContent, Source};
use crate::anthropic::messages::{MessagesRequest, Role, Thinking, Turn};
use crate::anthropic::tools as messages_tools;
use crate::anthropic::tools::ToolMode;
use crate::error::ApiError;
use crate::openai::chat::{ChatRequest, Labels, ReasoningEffort, ResponseFormat, TemplateOptions};
use crate::openai::content::{Content, ContentPart, FilePart, ImageUrl};
use crate::openai::message::{AssistantMessage, Message};
use crate::openai::parameters::GenerationParameters;
use crate::openai::tools::{Tool, ToolArguments, ToolCall, ToolChoice};
use crate::peek::session_of_user_id;
use crate::translate::identity::ToolNames;
use crate::translate::{ChatServer, Dropped, Translated, effort};

/// First instruction of a client that writes its version and turn there: no two are equal, and a
/// prompt that begins with it is never found in a prefix cache.
const BILLING_HEADER: &str = "x-anthropic-billing-header:";

/// Writes a messages request as a chat request. It always streams; a client that does not is
/// answered with the fold.
///
/// # Errors
///
/// 400, naming the path, for what the server cannot be told.
pub fn translate(
    request: MessagesRequest,
    server: ChatServer,
) -> Result<Translated<ChatRequest, ReplyContext>, ApiError> {
    let mut dropped = Dropped::default();
    for name in &request.ignored {
        dropped.add(name.as_str());
    }
    dropped.add_if(request.context_management, "context_management");
    let mut names = ToolNames::default();
    let (tools, tool_choice) = translate_tools(&request, &mut names, &mut dropped)?;
    let single_tool_call =
        request.tool_choice.as_ref().is_some_and(|choice| choice.disable_parallel_tool_use);
    let hide_thinking = request.thinking.is_some_and(Thinking::omitted);
    let prewarm = request.max_tokens == 0;
    let mut template = translate_thinking(request.thinking, request.effort);

    let mut conversation = Conversation {
        messages: Vec::new(),
        called: HashSet::new(),
        server,
        names: &mut names,
        dropped: &mut dropped,
    };
    conversation.system(request.system);
    let last = request.messages.len() - 1;
    for (index, turn) in request.messages.into_iter().enumerate() {
        let prefill = index == last && turn.role == Role::Assistant && !has_tool_use(&turn);
        if prefill {
            if !server.prefill {
                let message = "this model cannot continue a message; let the last one be the user's";
                return Err(ApiError::invalid(format!("messages.{index}.role"), message));
            }
            template.continue_final_message = true;
            template.add_generation_prompt = false;
        }
        conversation.turn(index, turn)?;
    }
    let messages = conversation.messages;

    let labels = Labels {
        prompt_cache_key: request.user_id.as_deref().and_then(session_of_user_id),
        user: request.user_id,
        safety_identifier: None,
    };
    let chat = ChatRequest {
        model: request.model.clone(),
        messages,
        parameters: GenerationParameters {
            temperature: request.temperature,
            top_p: request.top_p,
            top_k: request.top_k,
            stop: request.stop_sequences,
            max_tokens: Some(request.max_tokens.max(1)),
            ..GenerationParameters::default()
        },
        tools,
        tool_choice,
        parallel_tool_calls: request
            .tool_choice
            .map(|choice| !choice.disable_parallel_tool_use)
            .filter(|p| !p),
        response_format: request.output_schema.map_or(ResponseFormat::Text, |schema| {
            ResponseFormat::JsonSchema { name: "response".to_owned(), schema, strict: Some(true) }
        }),
        template,
        stream: true,
        include_usage: true,
        labels,
        extra: Default::default(),
    };
    let reply = ReplyContext {
        model: request.model,
        tool_names: names,
        stream: request.stream,
        hide_thinking,
        single_tool_call,
        prewarm,
        context_management: request.context_management,
    };
    Ok(Translated { request: chat, reply, dropped: dropped.into_names() })
}

fn has_tool_use(turn: &Turn) -> bool {
    turn.content.iter().any(|block| matches!(block, Block::ToolUse { .. }))
}

fn translate_thinking(thinking: Option<Thinking>, wanted: Option<ReasoningEffort>) -> TemplateOptions {
    let (enable_thinking, reasoning_effort) = match thinking {
        None => (None, wanted),
        Some(Thinking::Disabled) => (Some(false), Some(ReasoningEffort::None)),
        Some(Thinking::Adaptive { .. }) => (Some(true), Some(wanted.unwrap_or(ReasoningEffort::Medium))),
        Some(Thinking::Enabled { budget_tokens, .. }) => {
            (Some(true), Some(wanted.unwrap_or_else(|| effort::of_budget(budget_tokens))))
        }
    };
    TemplateOptions { enable_thinking, reasoning_effort, ..TemplateOptions::default() }
}

fn translate_tools(
    request: &MessagesRequest,
    names: &mut ToolNames,
    dropped: &mut Dropped,
) -> Result<(Vec<Tool>, Option<ToolChoice>), ApiError> {
    let mut tools = Vec::with_capacity(request.tools.len());
    for (index, tool) in request.tools.iter().enumerate() {
        match tool {
            messages_tools::Tool::Custom(custom) => tools.push(translate_custom(custom, names)),
            messages_tools::Tool::Typed { kind, name } => {
                match typed_tools::function_of(kind, &names.shorten(name)) {
                    Some(function) => tools.push(function),
                    None if is_forced(request, name) => {
                        let message =
                            format!("'{kind}' runs on its vendor's servers only and cannot be forced here");
                        return Err(ApiError::invalid(format!("tools.{index}.type"), message));
                    }
                    None => dropped.add(format!("tools.{kind}")),
                }
            }
        }
    }
    if tools.is_empty() {
        return Ok((tools, None));
    }
    let choice = request.tool_choice.as_ref().map(|choice| match &choice.mode {
        ToolMode::Auto => ToolChoice::Auto,
        ToolMode::Any => ToolChoice::Required,
        ToolMode::None => ToolChoice::None,
        ToolMode::Tool(name) => ToolChoice::Function(names.shorten(name)),
    });
    Ok((tools, choice))
}

fn is_forced(request: &MessagesRequest, name: &str) -> bool {
    request.tool_choice.as_ref().is_some_and(|choice| choice.mode == ToolMode::Tool(name.to_owned()))
}

fn translate_custom(tool: &messages_tools::CustomTool, names: &mut ToolNames) -> Tool {
    let mut description = tool.description.clone();
    if !tool.input_examples.is_empty() {
        let examples: Vec<String> = tool.input_examples.iter().map(Value::to_string).collect();
        let text = description.get_or_insert_default();
        if !text.is_empty() {
            text.push_str("\n\n");
        }
        text.push_str("Examples of input:\n");
        text.push_str(&examples.join("\n"));
    }
    Tool {
        name: names.shorten(&tool.name),
        description,
        parameters: Some(tool.input_schema.clone()),
        strict: tool.strict,
    }
}

/// The messages written so far.
struct Conversation<'a> {
    messages: Vec<Message>,
    /// Ids of the calls made so far.
    called: HashSet<String>,
    server: ChatServer,
    names: &'a mut ToolNames,
    dropped: &'a mut Dropped,
}

impl Conversation<'_> {
    fn system(&mut self, mut texts: Vec<String>) {
        if texts.first().is_some_and(|text| text.starts_with(BILLING_HEADER)) {
            texts.remove(0);
        }
        if !texts.is_empty() {
            self.messages.push(Message::system(texts.join("\n")));
        }
    }

    fn turn(&mut self, index: usize, turn: Turn) -> Result<(), ApiError> {
        match turn.role {
            Role::System => {
                self.instructions(turn.content);
                Ok(())
            }
            Role::Assistant => {
                self.assistant(turn.content);
                Ok(())
            }
            Role::User => self.user(index, turn.content),
        }
    }

    /// Instructions between turns.
    fn instructions(&mut self, blocks: Vec<Block>) {
        let text = texts(&blocks).join("\n");
        if text.is_empty() {
            return;
        }
        // At the very beginning they are ordinary instructions.
        if self.server.mid_system || self.messages.is_empty() {
            self.messages.push(Message::system(text));
        } else {
            self.messages.push(Message::user(format!("<system-reminder>\n{text}\n</system-reminder>")));
        }
    }

    fn assistant(&mut self, blocks: Vec<Block>) {
        let mut text = String::new();
        let mut reasoning = String::new();
        let mut tool_calls = Vec::new();
        for block in blocks {
            match block {
                Block::Text(piece) => text.push_str(&piece),
                Block::Thinking { thinking, .. } => reasoning.push_str(&thinking),
                Block::RedactedThinking { .. } => self.dropped.add("redacted_thinking"),
                Block::ToolUse { id, name, input } => {
                    self.called.insert(id.clone());
                    let name = self.names.shorten(&name);
                    tool_calls.push(ToolCall { id, name, arguments: ToolArguments::Object(input) });
                }
                Block::ServerSide { kind, raw } => {
                    text.push_str(&server_side_text(&kind, &raw));
                    self.dropped.add(kind);
                }
                // Refused while reading: these stand in user turns only.
                Block::Image(_)
                | Block::Document(_)
                | Block::ToolResult { .. }
                | Block::SearchResult { .. }
                | Block::ToolReference { .. } => {}
            }
        }
        self.messages.push(Message::Assistant(AssistantMessage {
            content: (!text.is_empty() || tool_calls.is_empty()).then_some(Content::Text(text)),
            reasoning_content: (!reasoning.is_empty()).then_some(reasoning),
            tool_calls,
            ..AssistantMessage::default()
        }));
    }

    /// Results of tools become messages of their own, directly after the calls they answer; the
    /// rest of the turn follows.
    fn user(&mut self, index: usize, blocks: Vec<Block>) -> Result<(), ApiError> {
        let mut results = Vec::new();
        let mut attachments = Vec::new();
        let mut rest = Vec::new();
        for (block_index, block) in blocks.into_iter().enumerate() {
            let path = || format!("messages.{index}.content.{block_index}");
            match block {
                Block::ToolResult { tool_use_id, content, is_error } => {
                    if !self.called.contains(&tool_use_id) {
                        if !self.server.lenient {
                            let message = format!(
                                "unexpected tool_use_id: there is no tool_use with id '{tool_use_id}'"
                            );
                            return Err(ApiError::invalid(path(), message));
                        }
                        rest.push(ContentPart::Text(texts(&content).join("\n")));
                        continue;
                    }
                    let content = self.result_content(&path(), content, is_error, &mut attachments)?;
                    results.push(Message::Tool { tool_call_id: tool_use_id, content, name: None });
                }
                block => self.user_block(&path(), block, &mut rest)?,
            }
        }
        let had_results = !results.is_empty();
        self.messages.append(&mut results);
        attachments.append(&mut rest);
        if !attachments.is_empty() || !had_results {
            self.messages.push(Message::User { content: self.user_content(attachments), name: None });
        }
        Ok(())
    }

    fn user_content(&self, parts: Vec<ContentPart>) -> Content {
        let only_text = parts.iter().all(|part| part.as_text().is_some());
        if only_text && (!self.server.text_parts || parts.is_empty()) {
            return Content::Text(Content::Parts(parts).text("\n"));
        }
        Content::from_parts(parts)
    }

    fn user_block(&mut self, path: &str, block: Block, parts: &mut Vec<ContentPart>) -> Result<(), ApiError> {
        match block {
            Block::Text(text) => parts.push(ContentPart::Text(text)),
            Block::Image(source) => parts.push(image(&source)),
            Block::Document(document) => self.document(path, document, parts)?,
            Block::ServerSide { kind, raw } => {
                parts.push(ContentPart::Text(server_side_text(&kind, &raw)));
                self.dropped.add(kind);
            }
            block => parts.extend(plain_text(&block).map(ContentPart::Text)),
        }
        Ok(())
    }

    fn document(
        &mut self,
        path: &str,
        document: Document,
        parts: &mut Vec<ContentPart>,
    ) -> Result<(), ApiError> {
        let title = document.title;
        match document.content {
            DocumentContent::Text(text) => parts.push(ContentPart::Text(titled(title.as_deref(), &text))),
            DocumentContent::Blocks(blocks) => {
                for block in blocks {
                    self.user_block(path, block, parts)?;
                }
            }
            DocumentContent::File(Source::Base64 { media_type, data }) if self.server.files => {
                let filename = title.unwrap_or_else(|| "document.pdf".to_owned());
                let file_data = format!("data:{media_type};base64,{data}");
                parts.push(ContentPart::File(FilePart {
                    filename: Some(filename),
                    file_data: Some(file_data),
                    file_id: None,
                }));
            }
            DocumentContent::File(_) => {
                let message = "this model does not read files; send the document as text";
                return Err(ApiError::invalid(path, message).with_code("unsupported_content_type"));
            }
        }
        Ok(())
    }

    /// What a tool said; what a tool message cannot hold goes to `attachments`.
    fn result_content(
        &mut self,
        path: &str,
        blocks: Vec<Block>,
        is_error: bool,
        attachments: &mut Vec<ContentPart>,
    ) -> Result<Content, ApiError> {
        let mut parts = Vec::new();
        for block in blocks {
            self.user_block(path, block, &mut parts)?;
        }
        if is_error {
            mark_error(&mut parts);
        }
        let has_media = parts.iter().any(|part| part.as_text().is_none());
        if has_media && self.server.tool_images {
            return Ok(Content::Parts(parts));
        }
        let mut lines = Vec::with_capacity(parts.len());
        for part in parts {
            match part {
                ContentPart::Text(text) => lines.push(text),
                part => {
                    let kind = if matches!(part, ContentPart::Image(_)) { "image" } else { "file" };
                    attachments.push(part);
                    lines.push(format!("[{kind} {} attached below]", attachments.len()));
                }
            }
        }
        Ok(Content::Text(lines.join("\n")))
    }
}

/// OpenAI has no flag for failure: it is said in the text, unless the text says so already.
fn mark_error(parts: &mut Vec<ContentPart>) {
    match parts.first_mut() {
        Some(ContentPart::Text(text)) => {
            let says_so = text.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("error"));
            if !says_so {
                text.insert_str(0, "Error: ");
            }
        }
        _ => parts.insert(0, ContentPart::Text("Error: ".to_owned())),
    }
}

fn image(source: &Source) -> ContentPart {
    ContentPart::Image(ImageUrl { url: source.to_url(), detail: None })
}

fn titled(title: Option<&str>, text: &str) -> String {
    match title {
        Some(title) => format!("<document title={}>\n{text}\n</document>", json!(title)),
        None => format!("<document>\n{text}\n</document>"),
    }
}

fn texts(blocks: &[Block]) -> Vec<String> {
    blocks.iter().filter_map(plain_text).filter(|text| !text.is_empty()).collect()
}

/// A block as text, where it has a text of its own.
fn plain_text(block: &Block) -> Option<String> {
    match block {
        Block::Text(text) => Some(text.clone()),
        Block::SearchResult { title, source, texts } => {
            Some(format!("{title}\n{source}\n{}", texts.join("\n")))
        }
        Block::ToolReference { name } => Some(format!("tool: {name}")),
        Block::Document(Document { title, content: DocumentContent::Text(text) }) => {
            Some(titled(title.as_deref(), text))
        }
        _ => None,
    }
}

fn server_side_text(kind: &str, raw: &Value) -> String {
    let shown = raw.get("content").or_else(|| raw.get("input")).unwrap_or(&Value::Null);
    format!("[{kind}] {shown}")
}
