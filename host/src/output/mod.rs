//! From token ids to what a client reads: text, reasoning, tool calls, log probabilities.
//!
//! The stages are a pipeline over one sequence: [`Detokenizer`] joins bytes to characters, [`StopStrings`]
//! cuts at a caller's stop string, [`ReasoningParser`] separates thought from answer, [`ToolParser`] takes
//! calls out of the answer. [`OutputStream`] is the four in a row. There is one pipeline: an answer that is
//! not streamed is the fold of the same deltas.

mod coerce;
mod detokenizer;
mod reasoning;
mod stop;
mod stream;
mod tools;

pub use detokenizer::Detokenizer;
pub use reasoning::{ReasoningFormat, ReasoningParser, Segment};
pub use stop::{StopOutcome, StopStrings};
pub use stream::{Answer, Delta, EarlyEnd, OutputFormat, OutputRequest, OutputStream, ToolCallText};
pub use tools::{ToolDelta, ToolFormat, ToolParser, ToolSchema};
