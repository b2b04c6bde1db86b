//! From a request to prompts and output pipelines.

use std::sync::Arc;

use serde_json::{Map, Value};
use wire_api::ApiError;
use wire_api::openai::chat::{Capabilities, ChatRequest};
use wire_api::openai::completions::{CompletionRequest, Prompt as CompletionPrompt};
use wire_api::openai::tools::{Tool, ToolChoice};

use super::{Pictures, blocking, of_prompt};
use crate::output::{OutputFormat, OutputRequest, ToolSchema};
use crate::prompt::{Ending, ModelText, Prompt, PromptError, TemplateInput, template_messages};
use crate::worker::message::ImagePixels;

/// One prompt, and how its answers are to be read.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Tokens and boundaries.
    pub prompt: Prompt,
    /// Pictures, one per placeholder.
    pub images: Vec<ImagePixels>,
    /// The output pipeline's part of the request.
    pub output: OutputRequest,
}

/// Prepares a conversation.
pub(super) async fn chat(
    request: &ChatRequest,
    text: &Arc<ModelText>,
    pictures: &Pictures,
) -> Result<Prepared, ApiError> {
    let format =
        text.template().map_or(OutputFormat::PLAIN, |template| OutputFormat::of_template(template.source()));
    let tools = offered_tools(request, format)?;
    request.check_capabilities(Capabilities {
        images: text.image_token().is_some(),
        structured_output: false,
        forced_tool_choice: format.tools.is_some(),
    })?;
    let messages = template_messages(&request.messages).map_err(|error| of_prompt(&error))?;
    let input = TemplateInput {
        messages: messages.messages,
        tools: (!tools.is_empty()).then(|| tools.iter().map(tool_value).collect()),
        add_generation_prompt: request.template.add_generation_prompt,
        variables: variables(request),
    };
    let images = pictures.fetch(&messages.images).await?;
    let (count, owner) = (images.len(), Arc::clone(text));
    let ending = if request.template.continue_final_message { Ending::Continue } else { Ending::AsRendered };
    let forced = forced_prefix(request, format);
    let prefix = forced.clone();
    let prompt = blocking(move || {
        let rendered = owner.chat(&input, count, &ending)?;
        if prefix.is_empty() {
            return Ok(rendered);
        }
        // A call is not a thought: one that the template opened is closed, as when thinking is off.
        let thought = format.reasoning.filter(|thoughts| thoughts.is_open_at_end(&rendered.text));
        let close = thought.map_or_else(String::new, |thoughts| format!("\n{}\n\n", thoughts.close));
        owner.chat(&input, count, &Ending::Append(close + &prefix))
    });
    let prompt = prompt.await?.map_err(|error: PromptError| of_prompt(&error))?;
    let output = OutputRequest {
        format,
        tools: tools.iter().map(schema).collect(),
        prompt: end_of(&prompt.text).to_owned(),
        forced_prefix: forced,
        stop: request.parameters.stop.clone(),
        from_start: !request.template.continue_final_message,
        one_call: request.parallel_tool_calls == Some(false)
            || matches!(request.tool_choice, Some(ToolChoice::Function(_))),
    };
    Ok(Prepared { prompt, images, output })
}

/// Prepares plain texts.
pub(super) async fn completions(
    request: &CompletionRequest,
    text: &Arc<ModelText>,
) -> Result<Vec<Prepared>, ApiError> {
    let (prompts, owner) = (request.prompts.clone(), Arc::clone(text));
    let one = move |prompt| match prompt {
        CompletionPrompt::Text(words) => owner.completion(&words),
        CompletionPrompt::Tokens(ids) => owner.tokens(ids),
    };
    let prompts =
        blocking(move || prompts.into_iter().map(one).collect::<Result<Vec<Prompt>, PromptError>>());
    let prompts = prompts.await?.map_err(|error| of_prompt(&error))?;
    let output = OutputRequest { stop: request.parameters.stop.clone(), ..OutputRequest::default() };
    let prepared = |prompt| Prepared { prompt, images: Vec::new(), output: output.clone() };
    Ok(prompts.into_iter().map(prepared).collect())
}

/// The last few hundred bytes of a prompt: what the template opened is written there.
fn end_of(text: &str) -> &str {
    let start = (0..=text.len().saturating_sub(256)).rev().find(|at| text.is_char_boundary(*at));
    &text[start.unwrap_or(0)..]
}

fn schema(tool: &Tool) -> ToolSchema {
    ToolSchema { name: tool.name.clone(), parameters: tool.parameters.clone() }
}

/// The tools the template is to show: none when calling is forbidden.
fn offered_tools(request: &ChatRequest, format: OutputFormat) -> Result<&[Tool], ApiError> {
    if request.tools.is_empty() || request.tool_choice == Some(ToolChoice::None) {
        return Ok(&[]);
    }
    if format.tools.is_none() {
        let message = "the model's chat template knows no tools; omit them or use another model";
        return Err(ApiError::unsupported_parameter("tools", message));
    }
    Ok(&request.tools)
}

fn tool_value(tool: &Tool) -> Value {
    serde_json::to_value(tool).unwrap_or_default()
}

fn variables(request: &ChatRequest) -> Map<String, Value> {
    let mut variables = request.template.kwargs.clone();
    if let Some(thinking) = request.template.thinking() {
        variables.insert("enable_thinking".into(), Value::Bool(thinking));
    }
    if let Some(effort) = request.template.reasoning_effort {
        variables.insert("reasoning_effort".into(), Value::String(effort.as_str().to_owned()));
    }
    variables
}

fn forced_prefix(request: &ChatRequest, format: OutputFormat) -> String {
    let Some(tools) = format.tools else { return String::new() };
    match &request.tool_choice {
        Some(ToolChoice::Required) => tools.forced_prefix(None),
        Some(ToolChoice::Function(name)) => tools.forced_prefix(Some(name)),
        _ => String::new(),
    }
}
