//! Reading a JSON object field by field, so that every complaint names the path it is about.
//!
//! Derived deserialisers say `invalid type: string` and a column; a client of an API needs
//! `messages.3.content.1.type`. Values are moved out, not copied: a 30 MB image stays one string.

use serde_json::{Map, Value};

use crate::error::ApiError;

/// One JSON object being taken apart, and where it stands in the request.
pub(crate) struct Fields {
    path: String,
    map: Map<String, Value>,
}

/// `path.name`, or `name` at the top.
pub(crate) fn join(path: &str, name: impl std::fmt::Display) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}

/// What a JSON value is, for messages.
pub(crate) fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// "expected a string, got a number", at a path.
pub(crate) fn mismatch(path: &str, expected: &str, got: &Value) -> ApiError {
    ApiError::invalid(path, format!("expected {expected}, got {}", type_of(got))).with_code("invalid_type")
}

/// A required field is absent.
pub(crate) fn missing(path: &str) -> ApiError {
    ApiError::invalid(path, "Field required").with_code("missing_required_parameter")
}

impl Fields {
    /// Parses a request body, which must be a JSON object.
    pub(crate) fn from_body(body: &[u8]) -> Result<Self, ApiError> {
        let value: Value = serde_json::from_slice(body).map_err(|error| {
            ApiError::new(crate::ErrorKind::InvalidRequest, format!("the body is not valid JSON: {error}"))
                .with_code("invalid_json")
        })?;
        match value {
            Value::Object(map) => Ok(Self { path: String::new(), map }),
            other => Err(ApiError::new(
                crate::ErrorKind::InvalidRequest,
                format!("the body must be a JSON object, not {}", type_of(&other)),
            )
            .with_code("invalid_json")),
        }
    }

    /// Takes a nested object apart.
    pub(crate) fn from_value(path: impl Into<String>, value: Value) -> Result<Self, ApiError> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            other => Err(mismatch(&path, "an object", &other)),
        }
    }

    /// The path of a field of this object.
    pub(crate) fn at(&self, name: &str) -> String {
        join(&self.path, name)
    }

    /// Takes a field out; `null` counts as absent.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// A copy of a field, which stays to be read.
    pub(crate) fn copy(&self, name: &str) -> Option<Value> {
        self.map.get(name).filter(|value| !value.is_null()).cloned()
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(mismatch(&self.at(name), "a string", &other)),
        }
    }

    pub(crate) fn required_string(&mut self, name: &str) -> Result<String, ApiError> {
        self.string(name)?.ok_or_else(|| missing(&self.at(name)))
    }

    /// A string where it is one; anything else is dropped. For fields that only label a request.
    pub(crate) fn label(&mut self, name: &str) -> Option<String> {
        match self.take(name) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(mismatch(&self.at(name), "a boolean", &other)),
        }
    }

    pub(crate) fn number(&mut self, name: &str) -> Result<Option<f64>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|number| number.is_finite()) {
                Some(number) => Ok(Some(number)),
                None => Err(mismatch(&self.at(name), "a finite number", &value)),
            },
        }
    }

    /// An integer; `3.0` is accepted as 3, as clients in languages with one number type send it.
    pub(crate) fn integer(&mut self, name: &str) -> Result<Option<i64>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match integer_of(&value) {
                Some(number) => Ok(Some(number)),
                None => {
                    let message = format!("expected a 64-bit integer, got {value}");
                    let message =
                        if message.len() > 200 { "expected a 64-bit integer".to_owned() } else { message };
                    Err(ApiError::invalid(self.at(name), message).with_code("invalid_type"))
                }
            },
        }
    }

    pub(crate) fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(mismatch(&self.at(name), "a list", &other)),
        }
    }

    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(mismatch(&self.at(name), "an object", &other)),
        }
    }

    pub(crate) fn nested(&mut self, name: &str) -> Result<Option<Fields>, ApiError> {
        let path = self.at(name);
        self.object(name).map(|found| found.map(|map| Fields { path, map }))
    }

    /// What nobody took, `null`s left out.
    pub(crate) fn rest(mut self) -> Map<String, Value> {
        self.map.retain(|_, value| !value.is_null());
        self.map
    }
}

/// An integer written as a JSON integer or as a float without fraction.
pub(crate) fn integer_of(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let number = value.as_f64()?;
        (number.fract() == 0.0 && number.abs() < 9.0e15).then_some(number as i64)
    })
}

/// The known name closest to `name`, if it is close enough to be a slip of the pen.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Nobody slips by a megabyte, and the comparison costs the product of both lengths.
    if name.len() > 64 {
        return None;
    }
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= 2.max(candidate.len() / 4) && *distance < candidate.len()
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
