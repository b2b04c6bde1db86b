//! Asking a running neuron, or a gateway in front of several.

use anyhow::{Context, bail};
use futures_util::StreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use wire_api::ApiError;
use wire_api::node::routes;
use wire_api::sse::{SseDecoder, SseItem};

/// Where a neuron listens unless something else is said.
pub const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:13131";

/// Which neuron, and how to print what it says.
#[derive(Debug, Clone, clap::Args)]
pub struct Ask {
    /// The neuron to ask.
    #[arg(long, env = "NEURON_ENDPOINT", default_value = DEFAULT_ENDPOINT, value_name = "URL")]
    pub endpoint: String,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl Ask {
    /// The way to it.
    pub fn client(&self) -> anyhow::Result<Client> {
        Client::new(&self.endpoint)
    }
}

/// A way to one server.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: String,
    http: reqwest::Client,
}

impl Client {
    /// Nothing is sent yet.
    ///
    /// # Errors
    /// When the endpoint is no address, or the HTTP library cannot start.
    pub fn new(endpoint: &str) -> anyhow::Result<Self> {
        let with_scheme =
            if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") };
        let trimmed = with_scheme.trim_end_matches('/');
        let endpoint = trimmed.strip_suffix("/v1").unwrap_or(trimmed).to_owned();
        reqwest::Url::parse(&endpoint)
            .with_context(|| format!("{endpoint:?} is no address; write it like {DEFAULT_ENDPOINT}"))?;
        // A proxy of the environment is for the world outside.
        let local =
            ["127.", "localhost", "[::1]"].iter().any(|host| endpoint.contains(&format!("://{host}")));
        let builder = reqwest::Client::builder();
        let builder = if local { builder.no_proxy() } else { builder };
        Ok(Self { endpoint, http: builder.build()? })
    }

    /// Its address.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Asks for `path`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.answer(path, self.http.get(routes::join(&self.endpoint, path))).await
    }

    /// Commands at `path`.
    pub async fn post<Q: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        command: &Q,
    ) -> anyhow::Result<T> {
        self.answer(path, self.http.post(routes::join(&self.endpoint, path)).json(command)).await
    }

    /// The events of a stream at `path`, asked for.
    pub async fn watch(&self, path: &str) -> anyhow::Result<Events> {
        self.open(self.http.get(routes::join(&self.endpoint, path))).await
    }

    /// The events of the stream that answers a command at `path`.
    pub async fn stream<Q: Serialize>(&self, path: &str, command: &Q) -> anyhow::Result<Events> {
        self.open(self.http.post(routes::join(&self.endpoint, path)).json(command)).await
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        path: &str,
        request: reqwest::RequestBuilder,
    ) -> anyhow::Result<T> {
        let body = self.send(request).await?.bytes().await.context("the connection broke")?;
        serde_json::from_slice(&body)
            .with_context(|| format!("{}{path} answered something else", self.endpoint))
    }

    async fn open(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Events> {
        let response = self.send(request).await?;
        Ok(Events { body: Box::pin(response.bytes_stream()), decoder: SseDecoder::new() })
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<reqwest::Response> {
        let request = match std::env::var("NEURON_API_KEY") {
            Ok(key) => request.bearer_auth(key),
            Err(_) => request,
        };
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.unwrap_or_default();
        bail!("{}", ApiError::from_response(status.as_u16(), &body));
    }

    fn unreachable(&self, error: &reqwest::Error) -> anyhow::Error {
        let endpoint = &self.endpoint;
        if error.is_connect() {
            anyhow::anyhow!(
                "nothing answers at {endpoint}; start it with `neuron serve`, or name another with --endpoint"
            )
        } else {
            anyhow::anyhow!("{endpoint} does not answer: {error}")
        }
    }
}

/// The events of a stream, as their data.
pub struct Events {
    body: std::pin::Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    decoder: SseDecoder,
}

impl Events {
    /// The data of the next event; `None` at the end of the stream.
    pub async fn next_data(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            while let Some(item) = self.decoder.next_item() {
                if let SseItem::Event { data, .. } = item {
                    return Ok(Some(data.to_owned()));
                }
            }
            match self.body.next().await {
                Some(chunk) => self.decoder.feed(&chunk.context("the connection broke")?)?,
                None => return Ok(None),
            }
        }
    }
}
