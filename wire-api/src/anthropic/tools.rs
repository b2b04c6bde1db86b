//! Tools of a request.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::{Fields, join};

/// A tool offered to the model.
#[derive(Debug, Clone, PartialEq)]
pub enum Tool {
    /// The client runs it and describes it.
    Custom(CustomTool),
    /// The vendor defines it by a dated type (`bash_20250124`, `web_search_20250305`).
    Typed {
        /// The dated type.
        kind: String,
        /// The name the model calls it by.
        name: String,
    },
}

/// A tool described by the client.
#[derive(Debug, Clone, PartialEq)]
pub struct CustomTool {
    /// Name, as the model will write it.
    pub name: String,
    /// What it does, for the model.
    pub description: Option<String>,
    /// JSON schema of its input, keys in the order received.
    pub input_schema: Value,
    /// Ask for input that obeys the schema exactly.
    pub strict: Option<bool>,
    /// Examples of input.
    pub input_examples: Vec<Value>,
}

impl Tool {
    /// Name, as the model will write it.
    pub fn name(&self) -> &str {
        match self {
            Self::Custom(tool) => &tool.name,
            Self::Typed { name, .. } => name,
        }
    }

    pub(crate) fn take_all(request: &mut Fields) -> Result<Vec<Self>, ApiError> {
        let path = request.at("tools");
        let read = |(index, value)| Self::read(&join(&path, index), value);
        request.list("tools")?.unwrap_or_default().into_iter().enumerate().map(read).collect()
    }

    fn read(path: &str, value: Value) -> Result<Self, ApiError> {
        let mut tool = Fields::from_value(path, value)?;
        let kind = tool.string("type")?;
        let name = tool.required_string("name")?;
        match kind {
            None => {}
            Some(kind) if kind == "custom" => {}
            Some(kind) => return Ok(Self::Typed { kind, name }),
        }
        let input_schema = tool.object("input_schema")?.map_or_else(empty_schema, Value::Object);
        Ok(Self::Custom(CustomTool {
            name,
            description: tool.string("description")?,
            input_schema,
            strict: tool.boolean("strict")?,
            input_examples: tool.list("input_examples")?.unwrap_or_default(),
        }))
    }
}

/// The schema of a tool that takes nothing.
pub(crate) fn empty_schema() -> Value {
    json!({"type": "object", "properties": {}})
}

impl Serialize for Tool {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Typed { kind, name } => json!({"type": kind, "name": name}),
            Self::Custom(tool) => {
                let mut map = Map::new();
                map.insert("name".to_owned(), json!(tool.name));
                if let Some(description) = &tool.description {
                    map.insert("description".to_owned(), json!(description));
                }
                map.insert("input_schema".to_owned(), tool.input_schema.clone());
                if let Some(strict) = tool.strict {
                    map.insert("strict".to_owned(), json!(strict));
                }
                if !tool.input_examples.is_empty() {
                    map.insert("input_examples".to_owned(), json!(tool.input_examples));
                }
                Value::Object(map)
            }
        }
        .serialize(serializer)
    }
}

/// Which tool the model must use, and whether it may use several at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolChoice {
    /// Which.
    pub mode: ToolMode,
    /// At most one call per turn.
    pub disable_parallel_tool_use: bool,
}

/// Which tool the model must use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolMode {
    /// Any or none.
    Auto,
    /// Any.
    Any,
    /// This one.
    Tool(String),
    /// None.
    None,
}

impl ToolChoice {
    pub(crate) fn take(request: &mut Fields) -> Result<Option<Self>, ApiError> {
        let Some(mut choice) = request.nested("tool_choice")? else { return Ok(None) };
        let mode = match choice.required_string("type")?.as_str() {
            "auto" => ToolMode::Auto,
            "any" => ToolMode::Any,
            "none" => ToolMode::None,
            "tool" => ToolMode::Tool(choice.required_string("name")?),
            other => {
                let message = format!("'{other}' is not one of auto, any, tool, none");
                return Err(ApiError::invalid(choice.at("type"), message));
            }
        };
        let disable_parallel_tool_use = choice.boolean("disable_parallel_tool_use")?.unwrap_or(false);
        Ok(Some(Self { mode, disable_parallel_tool_use }))
    }
}

impl Serialize for ToolChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut choice = match &self.mode {
            ToolMode::Auto => json!({"type": "auto"}),
            ToolMode::Any => json!({"type": "any"}),
            ToolMode::Tool(name) => json!({"type": "tool", "name": name}),
            ToolMode::None => json!({"type": "none"}),
        };
        if self.disable_parallel_tool_use {
            choice["disable_parallel_tool_use"] = json!(true);
        }
        choice.serialize(serializer)
    }
}
