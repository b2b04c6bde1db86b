//! Tools: what a model may call, which of them it must, and the calls it made.

use std::collections::HashSet;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::{Fields, join, mismatch, missing};

/// A function the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Name, as the model will write it.
    pub name: String,
    /// What it does, for the model.
    pub description: Option<String>,
    /// JSON schema of the arguments; its key order is kept, because prompts are made of it.
    pub parameters: Option<Value>,
    /// Ask for arguments that obey the schema exactly.
    pub strict: Option<bool>,
}

impl Serialize for Tool {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Function<'a> {
            name: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            description: &'a Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            parameters: &'a Option<Value>,
            #[serde(skip_serializing_if = "Option::is_none")]
            strict: Option<bool>,
        }
        #[derive(Serialize)]
        struct Wire<'a> {
            r#type: &'static str,
            function: Function<'a>,
        }
        let function = Function {
            name: &self.name,
            description: &self.description,
            parameters: &self.parameters,
            strict: self.strict,
        };
        Wire { r#type: "function", function }.serialize(serializer)
    }
}

impl Tool {
    fn read(path: &str, value: Value) -> Result<Self, ApiError> {
        let mut tool = Fields::from_value(path, value)?;
        let kind = tool.string("type")?.unwrap_or_else(|| "function".to_owned());
        if kind != "function" {
            let message = format!("'{kind}' tools are not supported; use function");
            return Err(ApiError::invalid(tool.at("type"), message).with_code("unsupported_tool_type"));
        }
        let function = tool.nested("function")?.ok_or_else(|| missing(&tool.at("function")))?;
        Self::read_function(function)
    }

    /// Reads what stands under `function`, or an item of the older `functions`.
    fn read_function(mut function: Fields) -> Result<Self, ApiError> {
        let name = function.required_string("name")?;
        if name.is_empty() {
            return Err(ApiError::invalid(function.at("name"), "must not be empty"));
        }
        Ok(Self {
            name,
            description: function.string("description")?,
            parameters: function.object("parameters")?.map(Value::Object),
            strict: function.boolean("strict")?,
        })
    }

    /// Reads `tools`, or the older `functions`; an empty list is none.
    pub(crate) fn take_all(request: &mut Fields) -> Result<Vec<Self>, ApiError> {
        let mut tools = Vec::new();
        for (index, value) in request.list("tools")?.unwrap_or_default().into_iter().enumerate() {
            tools.push(Self::read(&join(&request.at("tools"), index), value)?);
        }
        for (index, value) in request.list("functions")?.unwrap_or_default().into_iter().enumerate() {
            tools.push(Self::read_function(Fields::from_value(
                join(&request.at("functions"), index),
                value,
            )?)?);
        }
        Ok(tools)
    }
}

/// Whether and what the model must call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ToolChoice {
    /// It may call.
    #[default]
    Auto,
    /// It must not call.
    None,
    /// It must call something.
    Required,
    /// It must call this.
    Function(String),
}

impl Serialize for ToolChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::None => serializer.serialize_str("none"),
            Self::Required => serializer.serialize_str("required"),
            Self::Function(name) => {
                json!({"type": "function", "function": {"name": name}}).serialize(serializer)
            }
        }
    }
}

impl ToolChoice {
    /// Reads `tool_choice` (or the older `function_call`) and narrows `tools` where it lists
    /// the allowed ones.
    pub(crate) fn take(request: &mut Fields, tools: &mut Vec<Tool>) -> Result<Option<Self>, ApiError> {
        let (path, value) = match (request.take("tool_choice"), request.take("function_call")) {
            (Some(value), _) => (request.at("tool_choice"), value),
            (None, Some(value)) => (request.at("function_call"), value),
            (None, None) => return Ok(None),
        };
        let choice = match value {
            Value::String(text) => Self::read_mode(&path, &text)?,
            Value::Object(map) => Self::read_object(&path, map, tools)?,
            other => return Err(mismatch(&path, "a string or an object", &other)),
        };
        match &choice {
            // A client that offers nothing and forbids or permits its use asks for nothing.
            Self::None | Self::Auto if tools.is_empty() => return Ok(None),
            Self::Required if tools.is_empty() => {
                return Err(ApiError::invalid(path, "there are no tools to choose from"));
            }
            Self::Function(name) if !tools.iter().any(|tool| tool.name == *name) => {
                return Err(ApiError::invalid(path, format!("there is no tool named '{name}'")));
            }
            _ => {}
        }
        Ok(Some(choice))
    }

    fn read_mode(path: &str, text: &str) -> Result<Self, ApiError> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            "required" | "any" => Ok(Self::Required),
            other => {
                let message = format!("'{other}' is not one of auto, none, required");
                Err(ApiError::invalid(path, message))
            }
        }
    }

    fn read_object(path: &str, map: Map<String, Value>, tools: &mut Vec<Tool>) -> Result<Self, ApiError> {
        let mut choice = Fields::from_value(path, Value::Object(map))?;
        match choice.string("type")?.as_deref() {
            Some("allowed_tools") => Self::read_allowed(choice, tools),
            Some("function") | None => {
                let name = match choice.nested("function")? {
                    Some(mut function) => function.required_string("name")?,
                    None => choice.required_string("name")?,
                };
                Ok(Self::Function(name))
            }
            Some(other) => {
                let message = format!("'{other}' is not one of function, allowed_tools");
                Err(ApiError::invalid(choice.at("type"), message))
            }
        }
    }

    fn read_allowed(mut choice: Fields, tools: &mut Vec<Tool>) -> Result<Self, ApiError> {
        let mut allowed = match choice.nested("allowed_tools")? {
            Some(nested) => nested,
            None => choice,
        };
        let mode = allowed.string("mode")?.unwrap_or_else(|| "auto".to_owned());
        let mode = Self::read_mode(&allowed.at("mode"), &mode)?;
        let path = allowed.at("tools");
        let mut names = HashSet::new();
        for (index, value) in allowed.list("tools")?.unwrap_or_default().into_iter().enumerate() {
            let mut item = Fields::from_value(join(&path, index), value)?;
            let name = match item.nested("function")? {
                Some(mut function) => function.required_string("name")?,
                None => item.required_string("name")?,
            };
            names.insert(name);
        }
        tools.retain(|tool| names.contains(&tool.name));
        Ok(mode)
    }
}

/// A call the model made, in a message of the history or in an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// Correlates the call with its result.
    pub id: String,
    /// The function called.
    pub name: String,
    /// Its arguments.
    pub arguments: ToolArguments,
}

/// Arguments of a call, parsed once for everybody.
#[derive(Debug, Clone, PartialEq)]
pub enum ToolArguments {
    /// An object, in the key order it came in. Templates want this form.
    Object(Map<String, Value>),
    /// What a model wrote that is no JSON object, verbatim: history is not ours to change.
    Text(String),
}

impl ToolArguments {
    /// Parses the text form; nothing at all is an empty object.
    pub fn parse(text: &str) -> Self {
        if text.trim().is_empty() {
            return Self::Object(Map::new());
        }
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Self::Object(map),
            _ => Self::Text(text.to_owned()),
        }
    }

    /// The text form: compact JSON, keys in the order received.
    pub fn to_text(&self) -> String {
        match self {
            Self::Object(map) => serde_json::to_string(map).expect("a JSON object is always representable"),
            Self::Text(text) => text.clone(),
        }
    }

    /// The form a template renders: an object where it is one.
    pub fn to_value(&self) -> Value {
        match self {
            Self::Object(map) => Value::Object(map.clone()),
            Self::Text(text) => Value::String(text.clone()),
        }
    }
}

impl Serialize for ToolCall {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let function = FunctionCall { name: self.name.clone(), arguments: self.arguments.to_text() };
        WireToolCall { id: self.id.clone(), r#type: "function".to_owned(), function }.serialize(serializer)
    }
}

/// A call in an answer: arguments as text, exactly as the model wrote them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireToolCall {
    /// Correlates the call with its result.
    #[serde(default)]
    pub id: String,
    /// Always `function`.
    #[serde(rename = "type", default = "function")]
    pub r#type: String,
    /// Name and arguments.
    pub function: FunctionCall,
}

/// Name and arguments of a call, as text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// The function called.
    pub name: String,
    /// JSON, as the model wrote it; it may be incomplete.
    #[serde(default)]
    pub arguments: String,
}

fn function() -> String {
    "function".to_owned()
}

impl WireToolCall {
    /// A function call.
    pub fn new(id: impl Into<String>, name: impl Into<String>, arguments: impl Into<String>) -> Self {
        let function = FunctionCall { name: name.into(), arguments: arguments.into() };
        Self { id: id.into(), r#type: self::function(), function }
    }
}

impl ToolCall {
    pub(crate) fn read(path: &str, value: Value) -> Result<Self, ApiError> {
        let mut call = Fields::from_value(path, value)?;
        let mut function = call.nested("function")?.ok_or_else(|| missing(&call.at("function")))?;
        // Some clients omit the id; an empty one is matched by position later.
        let id = call.string("id")?.unwrap_or_default();
        Self::read_function(id, &mut function)
    }

    pub(crate) fn read_function(id: String, function: &mut Fields) -> Result<Self, ApiError> {
        let name = function.required_string("name")?;
        let path = function.at("arguments");
        let arguments = match function.take("arguments") {
            None => ToolArguments::Object(Map::new()),
            Some(Value::String(text)) => ToolArguments::parse(&text),
            Some(Value::Object(map)) => ToolArguments::Object(map),
            Some(other) => return Err(mismatch(&path, "a string of JSON", &other)),
        };
        Ok(Self { id, name, arguments })
    }
}
