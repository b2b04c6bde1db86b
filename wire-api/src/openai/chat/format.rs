//! The shape an answer must have.

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::fields::Fields;

/// The shape an answer must have.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum ResponseFormat {
    /// Free text.
    #[default]
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON that obeys a schema.
    JsonSchema {
        /// Name of the schema.
        name: String,
        /// The schema.
        schema: Value,
        /// Whether obedience is a must.
        strict: Option<bool>,
    },
}

impl ResponseFormat {
    /// Whether nothing is asked.
    pub fn is_text(&self) -> bool {
        *self == Self::Text
    }

    pub(super) fn take(request: &mut Fields) -> Result<Self, ApiError> {
        let Some(mut format) = request.nested("response_format")? else { return Ok(Self::Text) };
        match format.required_string("type")?.as_str() {
            "text" => Ok(Self::Text),
            "json_object" => Ok(Self::JsonObject),
            "json_schema" => {
                let path = format.at("json_schema");
                let mut inner = format.nested("json_schema")?.ok_or_else(|| crate::fields::missing(&path))?;
                Ok(Self::JsonSchema {
                    name: inner.string("name")?.unwrap_or_else(|| "response".to_owned()),
                    schema: inner.object("schema")?.map_or_else(|| json!({}), Value::Object),
                    strict: inner.boolean("strict")?,
                })
            }
            other => {
                let message = format!("'{other}' is not one of text, json_object, json_schema");
                Err(ApiError::invalid(format.at("type"), message))
            }
        }
    }
}

impl Serialize for ResponseFormat {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text => json!({"type": "text"}),
            Self::JsonObject => json!({"type": "json_object"}),
            Self::JsonSchema { name, schema, strict } => {
                let mut inner = json!({"name": name, "schema": schema});
                if let Some(strict) = strict {
                    inner["strict"] = json!(strict);
                }
                json!({"type": "json_schema", "json_schema": inner})
            }
        }
        .serialize(serializer)
    }
}
