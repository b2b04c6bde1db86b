//! Text of a tool call's parameter to the JSON value its schema asks for.
//!
//! In the XML form every value is plain text. The tool's schema decides whether `3` is a number or a
//! string; what does not fit the schema stays text, so that nothing is lost and the tool can complain.

use serde_json::{Number, Value};

/// What a schema allows for one parameter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Kinds {
    names: Vec<String>,
}

impl Kinds {
    /// The kinds of parameter `key` of a tool whose parameters have `schema`.
    pub fn of_parameter(schema: Option<&Value>, key: &str) -> Self {
        let mut names = Vec::new();
        if let Some(property) = schema.and_then(|s| s.get("properties")?.get(key)) {
            collect(property, &mut names, 0);
        }
        Self { names }
    }

    fn allows(&self, name: &str) -> bool {
        self.names.iter().any(|n| n == name)
    }

    /// Whether every value is text, so that it can be handed on before it is complete.
    pub fn is_text(&self) -> bool {
        self.names.is_empty() || self.names.iter().all(|n| n == "string")
    }

    /// The value `text` stands for.
    pub fn coerce(&self, text: &str) -> Value {
        if self.is_text() {
            return Value::String(text.to_owned());
        }
        let trimmed = text.trim();
        self.null(trimmed)
            .or_else(|| self.boolean(trimmed))
            .or_else(|| self.number(trimmed))
            .or_else(|| self.structure(trimmed))
            .unwrap_or_else(|| Value::String(text.to_owned()))
    }

    fn null(&self, text: &str) -> Option<Value> {
        let is_null = text.eq_ignore_ascii_case("null") || text == "None";
        (self.allows("null") && is_null).then_some(Value::Null)
    }

    fn boolean(&self, text: &str) -> Option<Value> {
        // With several kinds allowed, text that could be a string stays one.
        if !self.allows("boolean") {
            return None;
        }
        match text.to_ascii_lowercase().as_str() {
            "true" => Some(Value::Bool(true)),
            "false" => Some(Value::Bool(false)),
            _ => None,
        }
    }

    fn number(&self, text: &str) -> Option<Value> {
        let integral = || {
            let exact = text
                .parse::<i64>()
                .ok()
                .map(Number::from)
                .or_else(|| text.parse::<u64>().ok().map(Number::from));
            let rounded = || {
                let value = text.parse::<f64>().ok()?;
                (value.fract() == 0.0 && value.abs() < 9e15).then(|| Number::from(value as i64))
            };
            exact.or_else(rounded)
        };
        if self.allows("integer")
            && let Some(number) = integral()
        {
            return Some(Value::Number(number));
        }
        if !self.allows("number") {
            return None;
        }
        match serde_json::from_str::<Value>(text) {
            Ok(Value::Number(number)) => Some(Value::Number(number)),
            _ => text.parse::<f64>().ok().and_then(Number::from_f64).map(Value::Number),
        }
    }

    fn structure(&self, text: &str) -> Option<Value> {
        let value: Value = serde_json::from_str(text).ok()?;
        let fits = (value.is_object() && self.allows("object")) || (value.is_array() && self.allows("array"));
        fits.then_some(value)
    }
}

fn collect(schema: &Value, names: &mut Vec<String>, depth: u32) {
    if depth > 8 {
        return;
    }
    match schema.get("type") {
        Some(Value::String(name)) => names.push(name.clone()),
        Some(Value::Array(several)) => {
            names.extend(several.iter().filter_map(Value::as_str).map(str::to_owned))
        }
        _ => {}
    }
    for word in ["anyOf", "oneOf", "allOf"] {
        for part in schema.get(word).and_then(Value::as_array).into_iter().flatten() {
            collect(part, names, depth + 1);
        }
    }
    if names.is_empty() {
        let kinds = schema.get("enum").and_then(Value::as_array).into_iter().flatten().map(kind_of);
        names.extend(kinds.map(str::to_owned));
    }
    if names.is_empty() && (schema.get("$ref").is_some() || schema.get("properties").is_some()) {
        names.push("object".to_owned());
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_i64() || n.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn by_schema() {
        let schema = json!({"properties": {
            "s": {"type": "string"}, "i": {"type": "integer"}, "n": {"type": "number"}, "b": {"type": "boolean"},
            "o": {"type": "object"}, "a": {"type": "array"}, "maybe": {"type": ["integer", "null"]},
            "any": {"anyOf": [{"type": "integer"}, {"type": "string"}]}, "e": {"enum": [1, 2]}, "r": {"$ref": "#/x"},
            "text_or_null": {"type": ["string", "null"]},
        }});
        let cases = [
            ("s", "3", json!("3")),
            ("s", " x ", json!(" x ")),
            ("i", "3", json!(3)),
            ("i", " 3.0 ", json!(3)),
            ("i", "18446744073709551615", json!(18446744073709551615u64)),
            ("i", "three", json!("three")),
            ("n", "2.50", json!(2.5)),
            ("n", "1e3", json!(1000.0)),
            ("n", "3", json!(3)),
            ("n", "nan", json!("nan")),
            ("b", "True", json!(true)),
            ("b", "no", json!("no")),
            ("o", r#"{"b": 1, "a": [2]}"#, json!({"b": 1, "a": [2]})),
            ("a", "[1, \"x\"]", json!([1, "x"])),
            ("a", "{}", json!("{}")),
            ("maybe", "None", json!(null)),
            ("maybe", "4", json!(4)),
            ("any", "7", json!(7)),
            ("any", "seven", json!("seven")),
            ("e", "2", json!(2)),
            ("r", "{\"k\": true}", json!({"k": true})),
            ("text_or_null", "null", json!(null)),
            ("text_or_null", "3", json!("3")),
            ("unknown", "3", json!("3")),
        ];
        for (key, text, expected) in cases {
            assert_eq!(Kinds::of_parameter(Some(&schema), key).coerce(text), expected, "{key} {text}");
        }
        assert_eq!(Kinds::of_parameter(None, "x").coerce("1"), json!("1"));
    }
}
