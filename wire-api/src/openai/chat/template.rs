//! What the chat template is told besides the conversation: variables, thinking, how the prompt ends.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::fields::{Fields, mismatch};

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

    pub(super) fn take(request: &mut Fields) -> Result<Self, ApiError> {
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
