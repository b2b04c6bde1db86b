//! `POST /tokenize` and `/detokenize`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::ApiError;
use crate::fields::Fields;
use crate::openai::chat::ChatRequest;

/// What to tokenize: a text as it is, or a conversation as the model's template renders it.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenizeRequest {
    /// Plain text.
    Text {
        /// The model whose tokenizer to use.
        model: String,
        /// The text.
        text: String,
        /// Whether the tokenizer may add its beginning-of-text token.
        add_special_tokens: bool,
    },
    /// Everything a chat request may say; tools count too.
    Chat(Box<ChatRequest>),
}

impl TokenizeRequest {
    /// Reads `{"model", "prompt" | "text" | "content", "add_special_tokens"}` or a chat request.
    ///
    /// # Errors
    ///
    /// 400, naming the parameter.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut request = Fields::from_body(body)?;
        if request.take("messages").is_some() {
            return ChatRequest::parse(body).map(|chat| Self::Chat(Box::new(chat)));
        }
        let model = request.required_string("model")?;
        let mut text = None;
        for name in ["prompt", "text", "content"] {
            text = text.or(request.string(name)?);
        }
        let text = text.ok_or_else(|| crate::fields::missing("prompt"))?;
        let add_special_tokens = request.boolean("add_special_tokens")?.unwrap_or(true);
        let known = ["model", "prompt", "text", "content", "messages", "add_special_tokens"];
        crate::openai::parameters::refuse_unhonoured(&request.rest(), &known)?;
        Ok(Self::Text { model, text, add_special_tokens })
    }

    /// The model named.
    pub fn model(&self) -> &str {
        match self {
            Self::Text { model, .. } => model,
            Self::Chat(chat) => &chat.model,
        }
    }

    /// The wire form.
    pub fn to_body(&self) -> Value {
        match self {
            Self::Text { model, text, add_special_tokens } => {
                serde_json::json!({"model": model, "prompt": text, "add_special_tokens": add_special_tokens})
            }
            Self::Chat(chat) => {
                serde_json::to_value(chat).expect("a request is always representable as JSON")
            }
        }
    }
}

/// The tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenizeResponse {
    /// How many.
    pub count: u64,
    /// Longest prompt and answer together, for this model.
    #[serde(rename = "max_model_len")]
    pub context_tokens: u64,
    /// Their ids.
    pub tokens: Vec<u32>,
}

/// What to turn into text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetokenizeRequest {
    /// The model whose tokenizer to use.
    pub model: String,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Leave out tokens that are no text.
    #[serde(default)]
    pub skip_special_tokens: bool,
}

/// The text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DetokenizeResponse {
    /// The text; replacement characters where the tokens cut a character.
    #[serde(rename = "prompt")]
    pub text: String,
}
