//! Chat completions: the canonical request, the answer and its chunks.

mod answer;
mod chunk;
mod format;
mod request;
mod template;

pub use answer::{ChatCompletion, Choice, FinishReason, ResponseMessage};
pub use chunk::{ChatCompletionChunk, ChunkChoice, ChunkHead, Delta, FunctionCallDelta, ToolCallDelta};
pub use format::ResponseFormat;
pub(crate) use request::take_include_usage;
pub use request::{Capabilities, ChatRequest, Labels};
pub(crate) use template::take_reasoning_effort;
pub use template::{ReasoningEffort, TemplateOptions};
