//! The error envelope: one [`ApiError`], rendered in the caller's dialect.
//!
//! Status codes, type names and codes of both dialects are known in this file only. A daemon maps
//! its own error enums to an [`ErrorKind`] once, where they leave it; whether a retry may help is
//! part of the kind and travels as headers that the official clients obey.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The family of clients an answer is shaped for.
///
/// The node API uses the OpenAI envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// `{"error":{"message","type","param","code"}}`.
    OpenAi,
    /// `{"type":"error","error":{"type","message"},"request_id"}`.
    Anthropic,
}

/// What went wrong, in the words of the contract. Each kind has one status per dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request is malformed or a value is out of range.
    InvalidRequest,
    /// Prompt and answer do not fit the model's context.
    ContextLength,
    /// The request is well formed, but this server cannot do it.
    Unsupported,
    /// No key, or an unknown one.
    Authentication,
    /// The key's budget is spent.
    Billing,
    /// The key may not do this.
    Permission,
    /// No such model, job or route.
    NotFound,
    /// The route exists, the method does not.
    MethodNotAllowed,
    /// The command was planned on an older state: a stale fence or residency revision.
    Conflict,
    /// The body is larger than the server accepts.
    TooLarge,
    /// Too many requests or tokens for this key.
    RateLimited,
    /// A bug here or in a plugin.
    Internal,
    /// The upstream answered with something that is not an answer.
    BadGateway,
    /// The worker, device or node is gone for the moment.
    Unavailable,
    /// The model is being loaded.
    Loading,
    /// There is no memory for this request now.
    OutOfMemory,
    /// Nothing arrived within the idle limit.
    Timeout,
    /// The queue is full.
    Overloaded,
}

/// One row of the table below.
struct Rendering {
    openai_status: u16,
    openai_type: &'static str,
    code: &'static str,
    anthropic_status: u16,
    anthropic_type: &'static str,
    retryable: bool,
}

impl ErrorKind {
    /// All kinds, for tables and tests.
    pub const ALL: [ErrorKind; 18] = [
        ErrorKind::InvalidRequest,
        ErrorKind::ContextLength,
        ErrorKind::Unsupported,
        ErrorKind::Authentication,
        ErrorKind::Billing,
        ErrorKind::Permission,
        ErrorKind::NotFound,
        ErrorKind::MethodNotAllowed,
        ErrorKind::Conflict,
        ErrorKind::TooLarge,
        ErrorKind::RateLimited,
        ErrorKind::Internal,
        ErrorKind::BadGateway,
        ErrorKind::Unavailable,
        ErrorKind::Loading,
        ErrorKind::OutOfMemory,
        ErrorKind::Timeout,
        ErrorKind::Overloaded,
    ];

    #[rustfmt::skip]
    fn rendering(self) -> Rendering {
        let row = |openai_status, openai_type, code, anthropic_status, anthropic_type, retryable| Rendering {
            openai_status, openai_type, code, anthropic_status, anthropic_type, retryable,
        };
        match self {
            Self::InvalidRequest   => row(400, "invalid_request_error", "invalid_value",           400, "invalid_request_error", false),
            Self::ContextLength    => row(400, "invalid_request_error", "context_length_exceeded", 400, "invalid_request_error", false),
            Self::Unsupported      => row(422, "invalid_request_error", "unsupported",             400, "invalid_request_error", false),
            Self::Authentication   => row(401, "invalid_request_error", "invalid_api_key",         401, "authentication_error",  false),
            Self::Billing          => row(429, "insufficient_quota",    "insufficient_quota",      402, "billing_error",         false),
            Self::Permission       => row(403, "permission_error",      "permission_denied",       403, "permission_error",      false),
            Self::NotFound         => row(404, "invalid_request_error", "not_found",               404, "not_found_error",       false),
            Self::MethodNotAllowed => row(405, "invalid_request_error", "method_not_allowed",      405, "invalid_request_error", false),
            Self::Conflict         => row(409, "conflict_error",        "conflict",                409, "invalid_request_error", false),
            Self::TooLarge         => row(413, "invalid_request_error", "request_too_large",       413, "request_too_large",     false),
            Self::RateLimited      => row(429, "rate_limit_error",      "rate_limit_exceeded",     429, "rate_limit_error",      true),
            Self::Internal         => row(500, "server_error",          "internal_error",          500, "api_error",             false),
            Self::BadGateway       => row(502, "server_error",          "bad_gateway",             502, "api_error",             true),
            Self::Unavailable      => row(503, "server_error",          "unavailable",             503, "api_error",             true),
            Self::Loading          => row(503, "server_error",          "model_loading",           503, "api_error",             true),
            Self::OutOfMemory      => row(503, "server_error",          "out_of_memory",           529, "overloaded_error",      true),
            Self::Timeout          => row(504, "timeout",               "timeout",                 504, "timeout_error",         true),
            Self::Overloaded       => row(503, "server_error",          "overloaded",              529, "overloaded_error",      true),
        }
    }

    /// HTTP status in a dialect.
    pub fn status(self, dialect: Dialect) -> u16 {
        let row = self.rendering();
        match dialect {
            Dialect::OpenAi => row.openai_status,
            Dialect::Anthropic => row.anthropic_status,
        }
    }

    /// `error.type` in a dialect.
    pub fn type_name(self, dialect: Dialect) -> &'static str {
        let row = self.rendering();
        match dialect {
            Dialect::OpenAi => row.openai_type,
            Dialect::Anthropic => row.anthropic_type,
        }
    }

    /// The code used when the error names none of its own.
    pub fn default_code(self) -> &'static str {
        self.rendering().code
    }

    /// Whether the same request may succeed later.
    pub fn retryable(self) -> bool {
        self.rendering().retryable
    }

    /// The kind that best explains a status received from another server.
    pub fn from_status(status: u16) -> Self {
        match status {
            401 => Self::Authentication,
            402 => Self::Billing,
            403 => Self::Permission,
            404 => Self::NotFound,
            405 => Self::MethodNotAllowed,
            409 => Self::Conflict,
            408 | 504 => Self::Timeout,
            413 => Self::TooLarge,
            422 => Self::Unsupported,
            400..=428 => Self::InvalidRequest,
            429 => Self::RateLimited,
            502 => Self::BadGateway,
            503 => Self::Unavailable,
            529 => Self::Overloaded,
            _ => Self::Internal,
        }
    }

    /// The kind a stable `code` or an Anthropic `type` stands for, where it says more than the status.
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "context_length_exceeded" => Self::ContextLength,
            "invalid_api_key" | "authentication_error" => Self::Authentication,
            "insufficient_quota" | "billing_error" => Self::Billing,
            "permission_denied" | "permission_error" => Self::Permission,
            "model_not_found" | "not_found" | "not_found_error" => Self::NotFound,
            "request_too_large" => Self::TooLarge,
            "rate_limit_exceeded" | "rate_limit_error" => Self::RateLimited,
            "model_loading" => Self::Loading,
            "out_of_memory" => Self::OutOfMemory,
            "timeout" | "timeout_error" => Self::Timeout,
            "overloaded" | "overloaded_error" => Self::Overloaded,
            "unavailable" => Self::Unavailable,
            "bad_gateway" => Self::BadGateway,
            "conflict" => Self::Conflict,
            "unsupported" => Self::Unsupported,
            "server_error" | "api_error" | "internal_error" => Self::Internal,
            "invalid_request_error" | "invalid_value" => Self::InvalidRequest,
            _ => return None,
        })
    }
}

/// Longest message of an error.
const MESSAGE_LIMIT_BYTES: usize = 4096;
/// Longest path of a parameter.
const PARAM_LIMIT_BYTES: usize = 256;

fn cut(mut text: String, limit_bytes: usize) -> String {
    if text.len() > limit_bytes {
        text.truncate(text.floor_char_boundary(limit_bytes));
        text.push('…');
    }
    text
}

/// How far a load has come, told to clients that are turned away while it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadingState {
    /// The phase of the load, as in the node API.
    pub state: String,
    /// Fraction done, 0 to 1, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<f32>,
    /// Seconds left, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_s: Option<f32>,
}

/// An error as a client sees it.
///
/// `message` does not repeat `param`; rendering puts it in front (`temperature: must be …`).
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{}", self.sentence())]
pub struct ApiError {
    /// What went wrong; fixes the status and the type name.
    pub kind: ErrorKind,
    /// Stable machine-readable code.
    pub code: String,
    /// One sentence a person can act on.
    pub message: String,
    /// The parameter at fault, as a path (`messages.3.content.1.type`).
    pub param: Option<String>,
    /// Whether sending the same request again may help.
    pub retryable: bool,
    /// When to try again, in seconds; sent as `Retry-After`.
    pub retry_after_s: Option<u32>,
    /// Progress of the load that the client would have to wait for. Boxed: errors are returned by
    /// value everywhere, and few of them carry it.
    pub loading: Option<Box<LoadingState>>,
}

impl ApiError {
    /// An error with the kind's own code and retry advice. A very long message is cut: it quotes
    /// somebody, and an error must not be as large as the request it refuses.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            code: kind.default_code().to_owned(),
            message: cut(message.into(), MESSAGE_LIMIT_BYTES),
            param: None,
            retryable: kind.retryable(),
            retry_after_s: None,
            loading: None,
        }
    }

    /// A value that cannot be accepted, named by its path.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidRequest, message).with_param(param)
    }

    /// A parameter that is understood and refused, because ignoring it would change the answer.
    pub fn unsupported_parameter(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid(param, message).with_code("unsupported_parameter")
    }

    /// A prompt longer than the context. Clients parse this sentence to compact a conversation:
    /// its wording is part of the contract.
    pub fn context_length(prompt_tokens: u64, maximum_tokens: u64) -> Self {
        let message = format!("prompt is too long: {prompt_tokens} tokens > {maximum_tokens} maximum");
        Self::new(ErrorKind::ContextLength, message)
    }

    /// A model that is neither loaded nor loadable here.
    pub fn model_not_found(model: &str) -> Self {
        Self::new(ErrorKind::NotFound, format!("the model '{model}' does not exist or is not served here"))
            .with_code("model_not_found")
            .with_param("model")
    }

    /// The same error with another stable code.
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.code = code.into();
        self
    }

    /// The same error, naming the parameter at fault.
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(cut(param.into(), PARAM_LIMIT_BYTES));
        self
    }

    /// The same error, telling when to come back.
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.retryable = true;
        self.retry_after_s = Some(seconds.max(1));
        self
    }

    /// The same error, telling how far the load has come.
    pub fn with_loading(mut self, loading: LoadingState) -> Self {
        self.loading = Some(Box::new(loading));
        self
    }

    /// HTTP status for a dialect.
    pub fn status(&self, dialect: Dialect) -> u16 {
        self.kind.status(dialect)
    }

    /// The sentence clients see: the parameter, then the fact.
    pub fn sentence(&self) -> String {
        match &self.param {
            Some(param) => format!("{param}: {}", self.message),
            None => self.message.clone(),
        }
    }

    /// Response headers: `retry-after` where known, and `x-should-retry: false` where it is pointless.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = Vec::new();
        if let Some(seconds) = self.retry_after_s {
            headers.push(("retry-after", seconds.to_string()));
        }
        if !self.retryable {
            headers.push(("x-should-retry", "false".to_owned()));
        }
        headers
    }

    /// The body in the caller's shape. `request_id` appears in Anthropic's only.
    pub fn body(&self, dialect: Dialect, request_id: Option<&str>) -> Value {
        match dialect {
            Dialect::OpenAi => self.openai_body(),
            Dialect::Anthropic => self.anthropic_body(request_id),
        }
    }

    /// `{"error":{"message","type","param","code"}}`, plus `loading` during a load.
    pub fn openai_body(&self) -> Value {
        let mut body = json!({"error": {
            "message": self.sentence(),
            "type": self.kind.type_name(Dialect::OpenAi),
            "param": self.param,
            "code": self.code,
        }});
        if let Some(loading) = &self.loading {
            body["loading"] = json!(loading);
        }
        body
    }

    /// `{"type":"error","error":{"type","message"},"request_id"}`, plus `loading` during a load.
    pub fn anthropic_body(&self, request_id: Option<&str>) -> Value {
        let mut body = json!({"type": "error", "error": {
            "type": self.kind.type_name(Dialect::Anthropic),
            "message": self.sentence(),
        }});
        if let Some(id) = request_id {
            body["request_id"] = json!(id);
        }
        if let Some(loading) = &self.loading {
            body["loading"] = json!(loading);
        }
        body
    }

    /// Reads an error answer of another server, in either dialect, or whatever text it sent.
    ///
    /// The kind follows the code where that is known, otherwise the status; a status the server
    /// chose is never turned into a success.
    pub fn from_response(status: u16, body: &[u8]) -> Self {
        let by_status = ErrorKind::from_status(status);
        let Some(error) = Self::from_body(body, by_status) else {
            let mut message = format!("the upstream answered {status}");
            let text = String::from_utf8_lossy(&body[..body.len().min(512)]);
            let text = text.trim();
            if !text.is_empty() {
                let _ = write!(message, ": {text}");
            }
            return Self::new(by_status, message);
        };
        error
    }

    /// Reads an error event of a stream, in either dialect.
    pub fn from_event(data: &str) -> Option<Self> {
        Self::from_body(data.as_bytes(), ErrorKind::Internal)
    }

    fn from_body(body: &[u8], fallback: ErrorKind) -> Option<Self> {
        let value: Value = serde_json::from_slice(body).ok()?;
        let error = value.get("error")?;
        if let Some(message) = error.as_str() {
            return Some(Self::new(fallback, message));
        }
        let text = |name: &str| error.get(name).and_then(Value::as_str);
        let message = text("message")?;
        let named = text("code").and_then(ErrorKind::from_name).or_else(|| {
            // A type such as `invalid_request_error` covers many statuses; it must not overrule one.
            text("type").and_then(ErrorKind::from_name).filter(|_| fallback == ErrorKind::Internal)
        });
        let kind = named.unwrap_or(fallback);
        let mut parsed = Self::new(kind, message);
        if let Some(code) = text("code") {
            parsed.code = code.to_owned();
        }
        if let Some(param) = text("param") {
            // Our own rendering put the parameter in front; take it off again.
            let message = message.strip_prefix(param).and_then(|rest| rest.strip_prefix(": "));
            if let Some(message) = message {
                parsed.message = message.to_owned();
            }
            parsed.param = Some(param.to_owned());
        }
        parsed.loading = value.get("loading").and_then(|l| LoadingState::deserialize(l).ok()).map(Box::new);
        Some(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_an_error_status_with_names_in_both_dialects() {
        for kind in ErrorKind::ALL {
            for dialect in [Dialect::OpenAi, Dialect::Anthropic] {
                assert!((400..600).contains(&kind.status(dialect)), "{kind:?}");
                assert!(!kind.type_name(dialect).is_empty(), "{kind:?}");
            }
        }
    }

    #[test]
    fn table_of_statuses_and_types() {
        let cases: &[(ErrorKind, u16, &str, u16, &str)] = &[
            (ErrorKind::InvalidRequest, 400, "invalid_request_error", 400, "invalid_request_error"),
            (ErrorKind::Authentication, 401, "invalid_api_key", 401, "authentication_error"),
            (ErrorKind::Billing, 429, "insufficient_quota", 402, "billing_error"),
            (ErrorKind::Permission, 403, "permission_denied", 403, "permission_error"),
            (ErrorKind::TooLarge, 413, "request_too_large", 413, "request_too_large"),
            (ErrorKind::RateLimited, 429, "rate_limit_exceeded", 429, "rate_limit_error"),
            (ErrorKind::Internal, 500, "internal_error", 500, "api_error"),
            (ErrorKind::Loading, 503, "model_loading", 503, "api_error"),
            (ErrorKind::Timeout, 504, "timeout", 504, "timeout_error"),
            (ErrorKind::Overloaded, 503, "overloaded", 529, "overloaded_error"),
        ];
        for (kind, openai_status, openai_name, anthropic_status, anthropic_type) in cases {
            let error = ApiError::new(*kind, "x");
            assert_eq!(error.status(Dialect::OpenAi), *openai_status);
            let body = error.openai_body();
            let names = [body["error"]["type"].as_str(), body["error"]["code"].as_str()];
            assert!(names.contains(&Some(*openai_name)), "{kind:?}: {body}");
            assert_eq!(error.status(Dialect::Anthropic), *anthropic_status);
            assert_eq!(error.anthropic_body(None)["error"]["type"], **anthropic_type);
        }
    }

    #[test]
    fn the_too_long_sentence_is_verbatim_in_both_dialects() {
        let error = ApiError::context_length(210_000, 200_000);
        let sentence = "prompt is too long: 210000 tokens > 200000 maximum";
        assert_eq!(error.openai_body()["error"]["message"], sentence);
        assert_eq!(error.openai_body()["error"]["code"], "context_length_exceeded");
        assert_eq!(error.anthropic_body(Some("req_1"))["error"]["message"], sentence);
        assert_eq!(error.anthropic_body(Some("req_1"))["request_id"], "req_1");
    }

    #[test]
    fn an_error_survives_the_wire() {
        for kind in ErrorKind::ALL {
            let error = ApiError::new(kind, "must be a number").with_param("temperature");
            let openai = serde_json::to_vec(&error.openai_body()).expect("plain JSON");
            let back = ApiError::from_response(error.status(Dialect::OpenAi), &openai);
            assert_eq!(back, error, "{kind:?}");
        }
    }

    #[test]
    fn foreign_bodies_become_errors_with_their_text() {
        let error = ApiError::from_response(502, b"<html>Bad Gateway</html>");
        assert_eq!(error.kind, ErrorKind::BadGateway);
        assert!(error.message.contains("<html>"), "{error}");
        let error = ApiError::from_response(500, br#"{"error":"model runner died"}"#);
        assert_eq!(error.message, "model runner died");
        let event = r#"{"type":"error","error":{"type":"overloaded_error","message":"busy"}}"#;
        assert_eq!(ApiError::from_event(event).map(|e| e.kind), Some(ErrorKind::Overloaded));
        assert_eq!(ApiError::from_event(r#"{"choices":[]}"#), None);
    }

    #[test]
    fn an_error_is_never_as_large_as_what_it_quotes() {
        let error = ApiError::invalid("é".repeat(1_000_000), "ü".repeat(1_000_000));
        assert!(error.openai_body().to_string().len() < 10_000);
    }

    #[test]
    fn headers_tell_whether_to_come_back() {
        let refused = ApiError::invalid("n", "must be at least 1");
        assert_eq!(refused.headers(), vec![("x-should-retry", "false".to_owned())]);
        let busy = ApiError::new(ErrorKind::Overloaded, "queue full").with_retry_after(0);
        assert_eq!(busy.headers(), vec![("retry-after", "1".to_owned())]);
    }
}
