//! etcd's API as its JSON gateway speaks it: HTTP, keys and values in base64, 64-bit numbers as text.
//!
//! Only what the coordinator needs. Every call tries each endpoint once, beginning with the one that
//! answered last; none is repeated after an answer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Request;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::coordinator::Lost;
use crate::fleet::node_client::reason;
use crate::proxy::client::Client;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long a watch may be silent before it is begun anew: a connection that died without a word is noticed.
const WATCH_SILENCE: Duration = Duration::from_secs(30);
/// Largest answer.
const LARGEST: usize = 16 << 20;

/// A key and what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// When the key was created, as etcd counts changes.
    pub created: u64,
}

/// See the module.
pub struct Api {
    client: Client,
    endpoints: Vec<String>,
    current: AtomicUsize,
}

impl Api {
    /// Speaks to any of `endpoints`, `http://host:2379` each.
    pub fn new(client: Client, endpoints: &[String]) -> Self {
        let endpoints = endpoints.iter().map(|endpoint| endpoint.trim_end_matches('/').to_owned()).collect();
        Self { client, endpoints, current: AtomicUsize::new(0) }
    }

    /// A lease that lasts `ttl_s` seconds unless kept alive.
    pub async fn grant(&self, ttl_s: u64) -> Result<String, Lost> {
        let answer = self.call("/v3/lease/grant", json!({"TTL": ttl_s.to_string()})).await?;
        text(&answer["ID"]).ok_or_else(|| nonsense("a lease without an id"))
    }

    /// Keeps a lease alive. False when it has lapsed.
    pub async fn keep_alive(&self, lease: &str) -> Result<bool, Lost> {
        let answer = self.call("/v3/lease/keepalive", json!({"ID": lease})).await?;
        Ok(number(&answer["result"]["TTL"]) > 0)
    }

    /// Ends a lease, and with it every key under it.
    pub async fn revoke(&self, lease: &str) -> Result<(), Lost> {
        self.call("/v3/lease/revoke", json!({"ID": lease})).await.map(drop)
    }

    /// Writes a key under a lease.
    pub async fn put(&self, key: &str, value: &str, lease: &str) -> Result<(), Lost> {
        let body = json!({"key": encode(key), "value": encode(value), "lease": lease});
        self.call("/v3/kv/put", body).await.map(drop)
    }

    /// Creates a key under a lease, unless it is there: then what it holds.
    pub async fn create(&self, key: &str, value: &str, lease: &str) -> Result<Option<Entry>, Lost> {
        let body = json!({
            "compare": [{"key": encode(key), "result": "EQUAL", "target": "CREATE", "create_revision": "0"}],
            "success": [{"request_put": {"key": encode(key), "value": encode(value), "lease": lease}}],
            "failure": [{"request_range": {"key": encode(key)}}],
        });
        let answer = self.call("/v3/kv/txn", body).await?;
        if answer["succeeded"] == json!(true) {
            return Ok(None);
        }
        let there = answer["responses"][0]["response_range"]["kvs"].as_array();
        there
            .and_then(|kvs| kvs.first())
            .and_then(entry)
            .map(Some)
            .ok_or_else(|| nonsense("a refusal that does not say what is there"))
    }

    /// Removes a key.
    pub async fn delete(&self, key: &str) -> Result<(), Lost> {
        self.call("/v3/kv/deleterange", json!({"key": encode(key)})).await.map(drop)
    }

    /// Everything below a prefix in order of creation, and the revision that is true of.
    pub async fn list(&self, prefix: &str) -> Result<(Vec<Entry>, u64), Lost> {
        let body = json!({
            "key": encode(prefix), "range_end": encode(&after(prefix)),
            "sort_order": "ASCEND", "sort_target": "CREATE",
        });
        let answer = self.call("/v3/kv/range", body).await?;
        let mut entries: Vec<Entry> =
            answer["kvs"].as_array().into_iter().flatten().filter_map(entry).collect();
        entries.sort_by_key(|entry| entry.created);
        Ok((entries, number(&answer["header"]["revision"])))
    }

    /// Watches what changes below a prefix after a revision.
    pub async fn watch(&self, prefix: &str, after_revision: u64) -> Result<Watch, Lost> {
        let body = json!({"create_request": {
            "key": encode(prefix), "range_end": encode(&after(prefix)),
            "start_revision": (after_revision + 1).to_string(), "progress_notify": true,
        }});
        let response = self.begin("/v3/watch", &body).await?;
        Ok(Watch { body: response.into_body(), line: Vec::new() })
    }

    async fn call(&self, path: &str, body: Value) -> Result<Value, Lost> {
        let whole = async {
            let response = self.begin(path, &body).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), LARGEST).collect().await;
            let body = body.map_err(|error| Lost(error.to_string()))?.to_bytes();
            // A stream's first and only message here ends with a line break.
            let answer: Value = serde_json::from_slice(&body).map_err(|_| nonsense("no JSON"))?;
            if status.is_success() && answer.get("error").is_none() {
                Ok(answer)
            } else {
                let said = answer["error"].as_str().or(answer["message"].as_str()).unwrap_or("no reason");
                Err(Lost(format!("etcd refused {path}: {said}")))
            }
        };
        tokio::time::timeout(TIMEOUT, whole)
            .await
            .unwrap_or_else(|_| Err(Lost("etcd does not answer".into())))
    }

    /// Sends to the first endpoint that takes it.
    async fn begin(&self, path: &str, body: &Value) -> Result<http::Response<Incoming>, Lost> {
        let first = self.current.load(Ordering::Relaxed);
        let mut last = Lost("no endpoint is configured".into());
        for turn in 0..self.endpoints.len() {
            let index = (first + turn) % self.endpoints.len();
            let endpoint = &self.endpoints[index];
            let request = Request::post(format!("{endpoint}{path}"))
                .header(CONTENT_TYPE, "application/json")
                .body(Full::new(Bytes::from(body.to_string())))
                .map_err(|error| Lost(format!("{endpoint}: {error}")))?;
            // Alone, an endpoint that is silent must not use up the patience meant for all of them.
            let patience = TIMEOUT / self.endpoints.len() as u32;
            match tokio::time::timeout(patience, self.client.request(request)).await {
                Ok(Ok(response)) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(response);
                }
                Ok(Err(error)) => last = Lost(format!("{endpoint}: {}", reason(&error))),
                Err(_) => last = Lost(format!("{endpoint} does not answer")),
            }
        }
        Err(last)
    }
}

/// Changes as they come.
pub struct Watch {
    body: Incoming,
    line: Vec<u8>,
}

impl Watch {
    /// Waits until something below the prefix has changed; several changes may count as one.
    pub async fn changed(&mut self) -> Result<(), Lost> {
        loop {
            while let Some(end) = memchr::memchr(b'\n', &self.line) {
                let line: Vec<u8> = self.line.drain(..=end).collect();
                let message: Value =
                    serde_json::from_slice(&line).map_err(|_| nonsense("no JSON in a watch"))?;
                let result = &message["result"];
                if message.get("error").is_some() || result["canceled"] == json!(true) {
                    return Err(Lost("etcd ended the watch".into()));
                }
                if result["events"].as_array().is_some_and(|events| !events.is_empty()) {
                    return Ok(());
                }
            }
            let frame = match tokio::time::timeout(WATCH_SILENCE, self.body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Err(Lost(reason(&error))),
                Ok(None) => return Err(Lost("etcd ended the watch".into())),
                // Silence is looked into by listing again.
                Err(_) => return Ok(()),
            };
            if let Some(data) = frame.data_ref() {
                self.line.extend_from_slice(data);
            }
        }
    }
}

fn nonsense(what: &str) -> Lost {
    Lost(format!("etcd answered nonsense: {what}"))
}

fn encode(text: &str) -> String {
    STANDARD.encode(text)
}

fn decode(value: &Value) -> Option<String> {
    // An empty value is left out.
    let Some(text) = value.as_str() else { return Some(String::new()) };
    String::from_utf8(STANDARD.decode(text).ok()?).ok()
}

fn entry(value: &Value) -> Option<Entry> {
    Some(Entry {
        key: decode(&value["key"])?,
        value: decode(&value["value"])?,
        created: number(&value["create_revision"]),
    })
}

/// Numbers are text in this API, and zeros are left out.
fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned).or_else(|| value.as_u64().map(|number| number.to_string()))
}

/// The first key after all that begin with `prefix`.
fn after(prefix: &str) -> String {
    // Prefixes end in a slash, and a zero comes after a slash.
    debug_assert!(prefix.ends_with('/'), "prefixes end in a slash");
    format!("{}0", prefix.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_with_a_prefix_is_between_it_and_what_comes_after() {
        let end = after("/cortex/fleet/");
        for inside in ["/cortex/fleet/a", "/cortex/fleet/zz/y", "/cortex/fleet/"] {
            assert!(inside >= "/cortex/fleet/" && inside < end.as_str());
        }
        for outside in ["/cortex/fleet0", "/cortex/fleets", "/cortex/loads/a"] {
            assert!(outside >= end.as_str(), "{outside}");
        }
    }

    #[test]
    fn numbers_and_texts_as_etcd_writes_them() {
        assert_eq!(number(&json!("12")), 12);
        assert_eq!(number(&json!(12)), 12);
        assert_eq!(number(&Value::Null), 0);
        let written = json!({"key": encode("/a"), "create_revision": "5"});
        assert_eq!(entry(&written), Some(Entry { key: "/a".into(), value: String::new(), created: 5 }));
    }
}
