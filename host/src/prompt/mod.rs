//! From what a client sent to what the engine takes: token ids and pixels.
//!
//! Everything that knows text on the way in lives here: tokenizer, chat template, the model's shipped
//! defaults, image decoding. All of it is a pure function of the model's files and the request and is
//! done before the engine hears of the request, so that a bad prompt costs no device time. A template or
//! a tokenizer that fails is an error that quotes the cause; nothing falls back to a simpler prompt.

mod chat;
mod defaults;
mod ends;
mod error;
pub mod fetch;
mod gguf;
mod gguf_tokenizer;
pub mod image;
mod model_text;
mod pyjson;
mod strftime;
mod template;
mod tokenizer;

pub use chat::{TemplateMessages, template_messages};
pub use defaults::GenerationDefaults;
pub use error::PromptError;
pub use gguf::{GgufError, GgufMetadata, GgufValue};
pub use model_text::{Ending, ModelText, Prompt};
pub use pyjson::to_python_json;
pub use template::{ChatTemplate, TemplateInput};
pub use tokenizer::{Piece, TextTokenizer};
