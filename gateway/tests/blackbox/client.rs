//! A plain HTTP client that shows everything: status, headers, and a body frame by frame.

use std::time::Duration;

use axum::body::Bytes;
use cortex::proxy::client::client;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::Value;

/// An answer whose body is still to be read.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    body: Incoming,
}

impl Answer {
    /// The next piece of the body; None at its end or when it broke off.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            let frame = self.body.frame().await?.ok()?;
            if let Ok(data) = frame.into_data() {
                return Some(String::from_utf8_lossy(&data).into_owned());
            }
        }
    }

    /// The whole body as text.
    pub async fn text(mut self) -> String {
        let mut all = String::new();
        while let Some(piece) = self.next().await {
            all.push_str(&piece);
        }
        all
    }

    /// The whole body as JSON.
    pub async fn json(self) -> Value {
        let text = self.text().await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}

/// Sends a request.
pub async fn send(method: &str, url: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body.into())).expect("a request");
    let response = client(Duration::from_secs(5)).request(request).await.expect("an answer");
    let (parts, body) = response.into_parts();
    Answer { status: parts.status.as_u16(), headers: parts.headers, body }
}

/// Asks for JSON.
pub async fn get(url: &str) -> Value {
    send("GET", url, &[], "").await.json().await
}

/// Asks a model; `script` is for the mock node.
pub async fn chat(endpoint: &str, model: &str, stream: bool, script: &str) -> Answer {
    chat_with(endpoint, model, stream, &[("x-mock", script)]).await
}

pub async fn chat_with(endpoint: &str, model: &str, stream: bool, headers: &[(&str, &str)]) -> Answer {
    let body = serde_json::json!({
        "model": model, "stream": stream, "messages": [{"role": "user", "content": "Hello"}],
    });
    send("POST", &format!("{endpoint}/v1/chat/completions"), headers, body.to_string()).await
}
