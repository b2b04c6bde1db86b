//! One attempt: a request to one node, and its answer's head.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;

use super::client::Client;
use crate::config::NodeKind;
use crate::fleet::node_client::reason;

/// Headers that belong to one connection, and those the gateway answers for itself.
const NOT_PASSED_ON: [HeaderName; 13] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::HOST,
    header::CONTENT_LENGTH,
    header::EXPECT,
    // A caller's key is the gateway's business; the node gets its own.
    header::AUTHORIZATION,
    // Answers are read along, so they must not be compressed.
    header::ACCEPT_ENCODING,
    header::COOKIE,
];

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The node could not be reached, or broke off before it answered.
    #[error("the node cannot be reached: {0}")]
    Unreachable(String),
    /// The node fell silent before it answered.
    #[error("the node did not begin to answer within {0} seconds")]
    Silent(u64),
}

/// What is sent to a node. Cheap to clone, for retries.
#[derive(Clone)]
pub struct Outgoing {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// Headers, as [`pass_on`] left them.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// Takes out what must not be passed on.
pub fn pass_on(headers: &mut HeaderMap) {
    let named = headers.get(header::CONNECTION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    for name in &NOT_PASSED_ON {
        headers.remove(name);
    }
    headers.remove("x-api-key");
    headers.remove("keep-alive");
    for name in named.iter().flat_map(|names| names.split(',')) {
        headers.remove(name.trim());
    }
}

/// The headers a key is told to a server of this kind in.
pub fn key_headers(kind: NodeKind, key: Option<&str>) -> Vec<(HeaderName, HeaderValue)> {
    let secret = |text: String| {
        let mut value = HeaderValue::from_str(&text).ok()?;
        value.set_sensitive(true);
        Some(value)
    };
    let mut headers = Vec::new();
    if kind == NodeKind::Anthropic {
        let version = HeaderValue::from_static("2023-06-01");
        headers.push((HeaderName::from_static("anthropic-version"), version));
        headers.extend(
            key.and_then(|key| Some((HeaderName::from_static("x-api-key"), secret(key.to_owned())?))),
        );
    } else {
        headers.extend(key.and_then(|key| Some((header::AUTHORIZATION, secret(format!("Bearer {key}"))?))));
    }
    headers
}

/// Sends a request and waits for the head of the answer.
///
/// # Errors
/// [`ForwardError`]; the caller may try elsewhere, nothing of an answer has been seen.
pub async fn send(
    client: &Client,
    uri: http::Uri,
    outgoing: Outgoing,
    key: &[(HeaderName, HeaderValue)],
    silence: Option<Duration>,
) -> Result<Response<Incoming>, ForwardError> {
    let mut request = Request::new(Full::new(outgoing.body));
    *request.method_mut() = outgoing.method;
    *request.uri_mut() = uri;
    *request.headers_mut() = outgoing.headers;
    for (name, value) in key {
        // What the caller said of the dialect's version stands.
        if value.is_sensitive() {
            request.headers_mut().insert(name.clone(), value.clone());
        }
    }
    let answer = client.request(request);
    let answer = match silence {
        None => answer.await,
        Some(limit) => match tokio::time::timeout(limit, answer).await {
            Ok(answer) => answer,
            Err(_) => return Err(ForwardError::Silent(limit.as_secs())),
        },
    };
    answer.map_err(|error| ForwardError::Unreachable(reason(&error)))
}

/// Whether an answer of this status may be better elsewhere: the node is busy, going or gone.
pub fn worth_retrying(status: u16) -> bool {
    matches!(status, 429 | 502 | 503 | 504 | 529)
}

/// Takes out of an answer's headers what belongs to the connection to the node.
pub fn pass_back(headers: &mut HeaderMap) {
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::TRAILER, header::UPGRADE] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_passed_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "gateway"),
            ("authorization", "Bearer secret"),
            ("x-api-key", "secret"),
            ("connection", "close, x-private"),
            ("x-private", "1"),
            ("content-length", "5"),
            ("accept-encoding", "gzip"),
            ("anthropic-version", "2023-06-01"),
            ("traceparent", "00-1-2-01"),
            ("content-type", "application/json"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        pass_on(&mut headers);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["anthropic-version", "content-type", "traceparent"]);
    }
}
