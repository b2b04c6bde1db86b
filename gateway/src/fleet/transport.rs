//! How a question reaches a node and the answer comes back: HTTP, or in memory where a fleet is simulated.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};

use super::node_client::reason;
use crate::config::NodeKind;
use crate::proxy::client::Client;
use crate::proxy::forward::key_headers;

/// Largest answer of a node to a question of the gateway.
const LARGEST_ANSWER: usize = 16 << 20;

/// A question on its way.
#[derive(Debug, Clone)]
pub struct Question {
    /// The method.
    pub method: Method,
    /// Where it goes.
    pub uri: Uri,
    /// What is asked; kinds of servers want their keys in different places.
    pub kind: NodeKind,
    /// The key it goes with.
    pub key: Option<String>,
    /// JSON; nothing where the question needs none.
    pub body: Bytes,
}

/// Carries questions. Whoever waits sets the deadline by dropping the future.
pub trait Transport: Send + Sync {
    /// Status and body of the answer, or why there is none.
    fn ask(&self, question: Question) -> BoxFuture<'static, Result<(u16, Bytes), String>>;
}

/// Over the same connections requests use.
pub struct Http(pub Client);

impl Transport for Http {
    fn ask(&self, question: Question) -> BoxFuture<'static, Result<(u16, Bytes), String>> {
        let client = self.0.clone();
        Box::pin(async move {
            let mut request = Request::builder().method(question.method).uri(question.uri);
            if !question.body.is_empty() {
                request = request.header(http::header::CONTENT_TYPE, "application/json");
            }
            for (name, value) in key_headers(question.kind, question.key.as_deref()) {
                request = request.header(name, value);
            }
            let request = request.body(Full::new(question.body)).map_err(|error| error.to_string())?;
            let response = client.request(request).await.map_err(|error| reason(&error))?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
            Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
        })
    }
}
