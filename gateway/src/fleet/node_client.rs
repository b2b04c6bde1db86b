//! Asking a node: small JSON calls with a deadline.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use wire_api::ApiError;
use wire_api::anthropic::models::ModelPage;
use wire_api::node::discovery::Discovery;
use wire_api::node::lease::{Lease, LeaseRequest};
use wire_api::node::load::{LoadRequest, LoadResponse, UnloadRequest, UnloadResponse};
use wire_api::node::models::{ModelState, ModelStatus, NodeModels};
use wire_api::node::{LeaseId, ModelId, routes};
use wire_api::openai::models::ModelList;

use super::transport::{Question, Transport};
use crate::config::neuron::Endpoint;
use crate::config::{Neuron, NodeKind};

/// Why a node did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NodeError {
    /// No answer.
    #[error("node {node} cannot be reached: {reason}")]
    Unreachable {
        /// Which.
        node: String,
        /// Why.
        reason: String,
    },
    /// No answer in time.
    #[error("node {node} did not answer within {ms} ms")]
    Timeout {
        /// Which.
        node: String,
        /// The deadline.
        ms: u64,
    },
    /// An answer that says no.
    #[error("node {node} refused: {error}")]
    Refused {
        /// Which.
        node: String,
        /// What it said.
        error: Box<ApiError>,
        /// The status it said it with.
        status: u16,
    },
    /// An answer that is none.
    #[error("node {node} answered nonsense: {reason}")]
    Malformed {
        /// Which.
        node: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl NodeError {
    /// The status the node answered with, if it answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The stable code the node answered with, if it answered.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { error, .. } => Some(&error.code),
            _ => None,
        }
    }
}

/// One node, to be asked.
#[derive(Clone)]
pub struct NodeClient {
    transport: Arc<dyn Transport>,
    name: String,
    kind: NodeKind,
    endpoint: Endpoint,
    key: Option<String>,
    timeout: Duration,
}

impl NodeClient {
    /// Asks a node; each answer must come within `timeout`.
    pub fn new(transport: Arc<dyn Transport>, node: &Neuron, timeout: Duration) -> Self {
        Self {
            transport,
            name: node.name.clone(),
            kind: node.kind,
            endpoint: Endpoint::new(&node.endpoint),
            key: super::poll::key(node),
            timeout,
        }
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is.
    pub fn kind(&self) -> NodeKind {
        self.kind
    }

    /// The same node with another deadline.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// What is loaded there.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn models(&self) -> Result<NodeModels, NodeError> {
        match self.kind {
            NodeKind::Neuron => self.get(routes::MODELS).await,
            NodeKind::OpenAi => self.get::<ModelList>("/v1/models").await.map(foreign_models),
            NodeKind::Anthropic => {
                self.get::<ModelPage>("/v1/models?limit=1000").await.map(|page| anthropic_models(&page))
            }
        }
    }

    /// What it is made of.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn discovery(&self) -> Result<Discovery, NodeError> {
        self.get(routes::DISCOVERY).await
    }

    /// Asks it to load a model.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn load(&self, request: &LoadRequest) -> Result<LoadResponse, NodeError> {
        self.post(routes::LOAD, request).await
    }

    /// Asks it to unload a model.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn unload(&self, request: &UnloadRequest) -> Result<UnloadResponse, NodeError> {
        self.post(routes::UNLOAD, request).await
    }

    /// Asks for memory.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn lease(&self, request: &LeaseRequest) -> Result<Lease, NodeError> {
        self.post(routes::LEASES, request).await
    }

    /// Gives memory back.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn release(&self, lease: &LeaseId) -> Result<(), NodeError> {
        self.call(Method::DELETE, &routes::lease(lease), Bytes::new()).await.map(|_| ())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, NodeError> {
        self.read(self.call(Method::GET, path, Bytes::new()).await?)
    }

    async fn post<Q: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        question: &Q,
    ) -> Result<T, NodeError> {
        let body = serde_json::to_vec(question).expect("a wire type is always representable as JSON");
        self.read(self.call(Method::POST, path, body.into()).await?)
    }

    fn read<T: DeserializeOwned>(&self, body: Bytes) -> Result<T, NodeError> {
        serde_json::from_slice(&body)
            .map_err(|error| NodeError::Malformed { node: self.name.clone(), reason: error.to_string() })
    }

    async fn call(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, NodeError> {
        let node = || self.name.clone();
        let deadline = self.timeout;
        tokio::time::timeout(deadline, self.exchange(method, path, body))
            .await
            .unwrap_or_else(|_| Err(NodeError::Timeout { node: node(), ms: deadline.as_millis() as u64 }))
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, NodeError> {
        let unreachable = |reason: String| NodeError::Unreachable { node: self.name.clone(), reason };
        let uri = self.endpoint.uri(path).ok_or_else(|| unreachable("its endpoint is no URL".into()))?;
        let question = Question { method, uri, kind: self.kind, key: self.key.clone(), body };
        let (status, body) = self.transport.ask(question).await.map_err(unreachable)?;
        if (200..300).contains(&status) {
            Ok(body)
        } else {
            let error = Box::new(ApiError::from_response(status, &body));
            Err(NodeError::Refused { node: self.name.clone(), error, status })
        }
    }
}

/// The innermost cause, which says what the outer ones only wrap.
pub fn reason(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// The same of a server that lists them in Anthropic's words.
fn anthropic_models(page: &ModelPage) -> NodeModels {
    let models = page.data.iter().map(|model| ModelStatus {
        id: ModelId::from(model.id.clone()),
        state: ModelState::Ready,
        details: model.max_input_tokens.map(|context_tokens| wire_api::node::models::ModelDetails {
            context_tokens,
            ..Default::default()
        }),
        ..ModelStatus::default()
    });
    NodeModels { models: models.collect(), ..NodeModels::default() }
}

/// What a server that only lists models has: all of them, ready.
fn foreign_models(list: ModelList) -> NodeModels {
    let models = list.data.into_iter().map(|model| ModelStatus {
        id: ModelId::from(model.id),
        aliases: model.aliases,
        state: ModelState::Ready,
        details: model.max_model_len.map(|context_tokens| wire_api::node::models::ModelDetails {
            context_tokens,
            ..Default::default()
        }),
        ..ModelStatus::default()
    });
    NodeModels { models: models.collect(), ..NodeModels::default() }
}
