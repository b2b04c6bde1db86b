//! Connections to nodes: pooled, HTTP/1.1, without Nagle's delay, over TLS where the address says so.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};

/// The one client all requests and questions go through. Cheap to clone.
pub type Client = hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// A client that waits this long for a connection. It trusts whom this machine trusts.
pub fn client(connect_timeout: Duration) -> Client {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(connect_timeout));
    // A node that vanished without a word is noticed below HTTP, even while an answer is being computed.
    connector.set_keepalive(Some(Duration::from_secs(15)));
    connector.set_keepalive_interval(Some(Duration::from_secs(5)));
    connector.set_keepalive_retries(Some(3));
    hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(60))
        .build(HttpsConnector::from((connector, TLS.clone())))
}

/// Read once: there are a hundred and more.
static TLS: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| Arc::new(tls()));

/// TLS with the machine's own certificates: `SSL_CERT_FILE` and `SSL_CERT_DIR` name others.
fn tls() -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "some certificates of this machine cannot be read");
    }
    let (_, ignored) = roots.add_parsable_certificates(found.certs);
    tracing::debug!(trusted = roots.len(), ignored, "certificates");
    // Named, so that it does not matter which other providers a build happens to have.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the protocol's own versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}
