//! Asking a running gateway.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wire_api::ApiError;
use wire_api::node::routes;

use crate::proxy::client::client;

/// Which gateway, and how to print what it says.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The gateway.
    #[arg(long, env = "CORTEX_ENDPOINT", default_value = "http://127.0.0.1:13132")]
    endpoint: String,
    /// The key to show.
    #[arg(long, env = "CORTEX_ADMIN_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl Options {
    /// Asks for `path`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    /// Commands at `path`.
    pub async fn post<Q: Serialize>(&self, path: &str, command: &Q) -> anyhow::Result<serde_json::Value> {
        self.call(Method::POST, path, serde_json::to_vec(command)?.into()).await
    }

    /// Prints an answer for which there is no nicer form.
    pub fn print(&self, answer: &serde_json::Value) -> anyhow::Result<()> {
        let text = if self.json { answer.to_string() } else { serde_json::to_string_pretty(answer)? };
        println!("{text}");
        Ok(())
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<T> {
        let address = routes::join(&self.endpoint, path);
        let mut request = Request::builder().method(method).uri(&address);
        if let Some(key) = &self.key {
            request = request.header(http::header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.header(http::header::CONTENT_TYPE, "application/json").body(Full::new(body))?;
        let response = client(Duration::from_secs(5)).request(request).await.with_context(|| {
            format!("no gateway answers at {} (is 'cortex serve' running?)", self.endpoint)
        })?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!("{}", ApiError::from_response(status.as_u16(), &body));
        }
        serde_json::from_slice(&body).with_context(|| format!("{address} answered something else"))
    }
}
