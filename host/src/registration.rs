//! Making this node known to gateways through etcd: one key under a lease, kept while the node lives.
//!
//! Spoken over etcd's JSON gateway. What goes wrong is said once and tried again for ever: a node that
//! cannot register serves all the same, to whoever knows its address.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use wire_api::node::registration::{Registration, TTL_S, key};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long nothing is tried after a failure.
const PAUSE: Duration = Duration::from_secs(2);

/// Why etcd could not be told.
#[derive(Debug, thiserror::Error)]
enum Unheard {
    /// It does not answer.
    #[error("it does not answer: {0}")]
    Unreachable(#[from] reqwest::Error),
    /// It answers something else.
    #[error("it answered {0}")]
    Refused(String),
}

/// Registers until dropped.
pub async fn keep(endpoints: Vec<String>, told: Registration) {
    let client = reqwest::Client::builder().timeout(TIMEOUT).build().unwrap_or_default();
    let mut heard = false;
    let mut complained = false;
    loop {
        for endpoint in &endpoints {
            let etcd = Etcd { client: &client, endpoint: endpoint.trim_end_matches('/') };
            let ended = etcd.live(&told, &mut heard).await;
            if heard || !complained {
                tracing::warn!(endpoint, reason = %ended, "etcd does not know this node; gateways that have its address do");
                complained = true;
            }
            heard = false;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

struct Etcd<'a> {
    client: &'a reqwest::Client,
    endpoint: &'a str,
}

impl Etcd<'_> {
    /// One lease's life. Ends with why it did.
    async fn live(&self, told: &Registration, heard: &mut bool) -> Unheard {
        match self.begin(told).await {
            Err(unheard) => unheard,
            Ok(lease) => {
                *heard = true;
                tracing::info!(node = told.name, address = told.endpoint, "known to gateways through etcd");
                self.beat(&lease).await
            }
        }
    }

    async fn begin(&self, told: &Registration) -> Result<String, Unheard> {
        let granted = self.call("/v3/lease/grant", json!({"TTL": TTL_S.to_string()})).await?;
        let lease = granted["ID"].as_str().ok_or_else(|| Unheard::Refused("a lease without an id".into()))?;
        let value = serde_json::to_string(told).expect("a registration is always representable as JSON");
        let put =
            json!({"key": STANDARD.encode(key(&told.name)), "value": STANDARD.encode(value), "lease": lease});
        self.call("/v3/kv/put", put).await?;
        Ok(lease.to_owned())
    }

    /// Keeps the lease alive; missed beats are forgiven while it may still live.
    async fn beat(&self, lease: &str) -> Unheard {
        let pause = Duration::from_secs(TTL_S / 3);
        let mut missed = 0;
        loop {
            tokio::time::sleep(pause).await;
            match self.call("/v3/lease/keepalive", json!({"ID": lease})).await {
                Ok(answer) if answer["result"]["TTL"].is_string() => missed = 0,
                Ok(_) => return Unheard::Refused("that the lease has lapsed".into()),
                Err(unheard) if missed >= 3 => return unheard,
                Err(_) => missed += 1,
            }
        }
    }

    async fn call(&self, path: &str, body: Value) -> Result<Value, Unheard> {
        let request = self.client.post(format!("{}{path}", self.endpoint)).json(&body);
        let answer = request.send().await?;
        let status = answer.status();
        let body: Value = answer.json().await?;
        if status.is_success() { Ok(body) } else { Err(Unheard::Refused(format!("{status}: {body}"))) }
    }
}

#[cfg(test)]
mod tests {
    use axum::extract::State;
    use axum::routing::post;
    use axum::{Json, Router};
    use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

    use super::*;

    async fn put(State(seen): State<UnboundedSender<Value>>, Json(body): Json<Value>) -> Json<Value> {
        seen.send(body).unwrap();
        Json(json!({}))
    }

    #[tokio::test]
    async fn a_node_writes_itself_down_under_a_lease_at_whoever_answers() {
        let (seen, mut puts) = unbounded_channel();
        let grant = || async { Json(json!({"ID": "77", "TTL": "15"})) };
        let app = Router::new()
            .route("/v3/lease/grant", post(grant))
            .route("/v3/kv/put", post(put))
            .with_state(seen);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}/", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        let told = Registration { name: "gpu 1".into(), endpoint: "http://gpu-1:13131".into(), weight: 2.0 };
        // The first endpoint is nobody's.
        let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let endpoints = vec![format!("http://{nobody}"), endpoint];
        let keeping = tokio::spawn(keep(endpoints, told.clone()));
        let put = puts.recv().await.unwrap();
        keeping.abort();
        server.abort();
        assert_eq!(put["lease"], "77");
        let decode = |field: &str| STANDARD.decode(put[field].as_str().unwrap()).unwrap();
        assert_eq!(decode("key"), b"/cortex/fleet/neurons/gpu%201");
        assert_eq!(serde_json::from_slice::<Registration>(&decode("value")).unwrap(), told);
    }
}
