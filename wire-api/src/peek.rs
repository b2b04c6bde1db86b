//! What a router needs from a body, read in one pass without building a tree of it.
//!
//! A gateway that passes bytes through must not pay for decoding them. This reads the few fields
//! that decide where a request goes and skips the rest; texts are borrowed from the body wherever
//! JSON allows. It never judges: what it does not understand is left for the node to refuse.

use std::borrow::Cow;
use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{ApiError, ErrorKind};

/// The fields that decide where a request goes. Works for every dialect's body.
#[derive(Debug, Default)]
pub struct RequestPeek<'a> {
    /// The model named; empty if none is.
    pub model: Cow<'a, str>,
    /// Where the JSON string of the model stands in the body, quotes included, for rewriting it.
    pub model_span: Option<Range<usize>>,
    /// Whether chunks are wanted.
    pub stream: bool,
    /// Most tokens to generate, under whichever name the dialect has for it.
    pub max_tokens: Option<u64>,
    /// What tells requests of one conversation from others, in the order they are trusted.
    pub session: SessionHints<'a>,
    /// The raw JSON that the prompt is made of, in the order it will be rendered: `system` or
    /// `instructions`, `tools`, then `messages`, `input` or `prompt`. For prefix hashes.
    pub prompt: [Option<&'a str>; 3],
}

/// Hints of the body that tie requests together. Headers may hold better ones.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct SessionHints<'a> {
    /// `session_id` inside Anthropic's `metadata.user_id`, as Claude Code writes it.
    pub session_id: Option<String>,
    /// `prompt_cache_key`.
    pub prompt_cache_key: Option<Cow<'a, str>>,
    /// `previous_response_id`.
    pub previous_response_id: Option<Cow<'a, str>>,
    /// `metadata.user_id`, `safety_identifier` or `user`.
    pub user: Option<Cow<'a, str>>,
}

impl SessionHints<'_> {
    /// The most trusted hint there is.
    pub fn key(&self) -> Option<&str> {
        self.session_id
            .as_deref()
            .or(self.prompt_cache_key.as_deref())
            .or(self.previous_response_id.as_deref())
            .or(self.user.as_deref())
    }
}

/// A string borrowed from the body where it holds no escapes; any other shape counts as absent.
#[derive(Default)]
struct Text<'a>(Option<Cow<'a, str>>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&'a RawValue>::deserialize(deserializer)?;
        Ok(Self(text_of(raw)))
    }
}

fn text_of(raw: &RawValue) -> Option<Cow<'_, str>> {
    let json = raw.get();
    let inner = json.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        serde_json::from_str(json).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Wire<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
    #[serde(borrow)]
    max_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    max_completion_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    max_output_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt_cache_key: Text<'a>,
    #[serde(borrow)]
    previous_response_id: Text<'a>,
    #[serde(borrow)]
    safety_identifier: Text<'a>,
    #[serde(borrow)]
    user: Text<'a>,
    #[serde(borrow)]
    system: Option<&'a RawValue>,
    #[serde(borrow)]
    instructions: Option<&'a RawValue>,
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata<'a> {
    #[serde(borrow)]
    user_id: Text<'a>,
}

#[derive(Deserialize)]
struct ClaudeUser {
    session_id: String,
}

/// Reads what a router needs.
///
/// # Errors
///
/// 400 if the body is not a JSON object.
pub fn peek(body: &[u8]) -> Result<RequestPeek<'_>, ApiError> {
    let not_json = |reason: &dyn std::fmt::Display| {
        ApiError::new(ErrorKind::InvalidRequest, format!("the body is not a JSON object: {reason}"))
            .with_code("invalid_json")
    };
    // An array would satisfy the derived reader field by field.
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(not_json(&"it does not begin with '{'"));
    }
    let wire: Wire<'_> = serde_json::from_slice(body).map_err(|error| not_json(&error))?;
    let number = |raw: Option<&RawValue>| raw.and_then(|raw| raw.get().parse::<u64>().ok());
    let model = wire.model.and_then(text_of);
    Ok(RequestPeek {
        model_span: wire.model.filter(|_| model.is_some()).map(|raw| span_of(body, raw.get())),
        model: model.unwrap_or_default(),
        stream: wire.stream.is_some_and(|raw| raw.get() == "true"),
        max_tokens: number(wire.max_completion_tokens)
            .or(number(wire.max_tokens))
            .or(number(wire.max_output_tokens)),
        prompt: [
            wire.system.or(wire.instructions).map(RawValue::get),
            wire.tools.map(RawValue::get),
            wire.messages.or(wire.input).or(wire.prompt).map(RawValue::get),
        ],
        session: session_hints(wire),
    })
}

fn session_hints(wire: Wire<'_>) -> SessionHints<'_> {
    let metadata_user = wire
        .metadata
        .and_then(|raw| serde_json::from_str::<Metadata<'_>>(raw.get()).ok())
        .and_then(|metadata| metadata.user_id.0);
    let session_id = metadata_user.as_deref().and_then(session_of_user_id);
    SessionHints {
        session_id,
        prompt_cache_key: wire.prompt_cache_key.0,
        previous_response_id: wire.previous_response_id.0,
        user: metadata_user.or(wire.safety_identifier.0).or(wire.user.0),
    }
}

/// The session inside a `metadata.user_id`: newer clients write JSON with `session_id`, older ones
/// end the text in `_session_<id>`.
pub fn session_of_user_id(user_id: &str) -> Option<String> {
    if user_id.starts_with('{') {
        return serde_json::from_str::<ClaudeUser>(user_id).ok().map(|user| user.session_id);
    }
    user_id
        .rsplit_once("_session_")
        .map(|(_, session)| session.to_owned())
        .filter(|session| !session.is_empty())
}

/// Where a slice of the body stands in it.
fn span_of(body: &[u8], part: &str) -> Range<usize> {
    let start = part.as_ptr() as usize - body.as_ptr() as usize;
    start..start + part.len()
}

/// The body with another model name, everything else byte for byte.
pub fn with_model(body: &[u8], span: &Range<usize>, model: &str) -> Vec<u8> {
    let name = serde_json::to_string(model).expect("a string is always representable as JSON");
    let mut rewritten = Vec::with_capacity(body.len() - span.len() + name.len());
    rewritten.extend_from_slice(&body[..span.start]);
    rewritten.extend_from_slice(name.as_bytes());
    rewritten.extend_from_slice(&body[span.end..]);
    rewritten
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_every_dialect() {
        let chat = br#"{"model":"m","stream":true,"max_completion_tokens":5,"max_tokens":9,"messages":[1],"prompt_cache_key":"k","user":"u"}"#;
        let peeked = peek(chat).expect("an object");
        assert_eq!((&*peeked.model, peeked.stream, peeked.max_tokens), ("m", true, Some(5)));
        assert_eq!(peeked.session.key(), Some("k"));
        assert_eq!(peeked.prompt, [None, None, Some("[1]")]);
        assert!(matches!(peeked.model, Cow::Borrowed(_)));

        let claude = br#"{"model":"claude-x","system":[{}],"tools":[],"messages":[],"metadata":{"user_id":"{\"device_id\":\"d\",\"session_id\":\"s-1\"}"}}"#;
        let peeked = peek(claude).expect("an object");
        assert_eq!(peeked.session.key(), Some("s-1"));
        assert_eq!(peeked.prompt, [Some("[{}]"), Some("[]"), Some("[]")]);

        let codex = br#"{"model":"m","instructions":"be","input":[],"max_output_tokens":7,"previous_response_id":"resp_1"}"#;
        let peeked = peek(codex).expect("an object");
        assert_eq!(peeked.session.key(), Some("resp_1"));
        assert_eq!((peeked.max_tokens, peeked.prompt[0]), (Some(7), Some("\"be\"")));
    }

    #[test]
    fn odd_values_are_left_for_the_node() {
        let peeked =
            peek(br#"{"model":7,"stream":"yes","max_tokens":-1,"user":{},"metadata":[],"messages":null}"#)
                .expect("an object");
        assert_eq!((&*peeked.model, peeked.stream, peeked.max_tokens), ("", false, None));
        assert_eq!((peeked.session.key(), peeked.model_span, peeked.prompt[2]), (None, None, None));
    }

    #[test]
    fn the_model_is_rewritten_in_place() {
        let body = br#" { "a" : 1.50, "model" : "o\/ld" , "z":[ ] }"#;
        let peeked = peek(body).expect("an object");
        assert_eq!(peeked.model, "o/ld");
        let span = peeked.model_span.expect("it names a model");
        let rewritten = with_model(body, &span, "ne\"w");
        assert_eq!(rewritten, br#" { "a" : 1.50, "model" : "ne\"w" , "z":[ ] }"#);
    }

    #[test]
    fn no_object_no_peek() {
        for body in [&b""[..], b"[]", b"null", b"{", b"\"x\"", b"{\"model\":\"\xff\"}"] {
            let error = peek(body).expect_err("not an object");
            assert_eq!(error.status(crate::Dialect::OpenAi), 400, "{error}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_do_no_harm(body in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = peek(&body);
        }
    }
}
