//! Pictures by address.
//!
//! A server that fetches what strangers name can be used to reach what strangers cannot, so nothing is
//! fetched unless the operator names the host. Even then the address that is connected to must be a public
//! one (checked on what name resolution gave, so that a name cannot change its meaning in between), every
//! redirect starts the same checks again, and size and time are bounded. `data:` URIs need none of this.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::LOCATION;
use wire_api::openai::content::ImageUrl;

use super::PromptError;

const MAX_REDIRECTS: usize = 3;

/// What may be fetched from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchRules {
    /// Host names, compared without case. Empty: nothing is fetched.
    pub allowed_hosts: Vec<String>,
    /// Whether allowed hosts may live at private or loopback addresses.
    pub allow_private_addresses: bool,
    /// Longest a whole fetch may take.
    pub timeout: Duration,
    /// Largest answer.
    pub max_bytes: usize,
}

impl Default for FetchRules {
    fn default() -> Self {
        Self {
            allowed_hosts: Vec::new(),
            allow_private_addresses: false,
            timeout: Duration::from_secs(10),
            max_bytes: 24 << 20,
        }
    }
}

/// Gets the encoded bytes of pictures.
#[derive(Debug, Clone)]
pub struct ImageSource {
    rules: FetchRules,
    client: reqwest::Client,
}

impl ImageSource {
    /// Fetches by `rules`.
    ///
    /// # Errors
    ///
    /// If the TLS library cannot start.
    pub fn new(rules: FetchRules) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            // A proxy would resolve names elsewhere, behind the check.
            .no_proxy()
            .timeout(rules.timeout)
            .dns_resolver(Arc::new(CheckedResolver { allow_private: rules.allow_private_addresses }))
            .build()?;
        Ok(Self { rules, client })
    }

    /// The encoded bytes of `image`.
    pub async fn bytes(&self, image: &ImageUrl) -> Result<Vec<u8>, PromptError> {
        if let Some(uri) = image.data_uri() {
            if uri.payload.len() / 4 * 3 > self.rules.max_bytes + 3 {
                return Err(refused(format!("more than {} bytes", self.rules.max_bytes)));
            }
            return uri.decode().map_err(refused);
        }
        tokio::time::timeout(self.rules.timeout, self.fetch(&image.url)).await.map_err(|_| {
            refused(format!("{} took longer than {:?}", shown(&image.url), self.rules.timeout))
        })?
    }

    async fn fetch(&self, address: &str) -> Result<Vec<u8>, PromptError> {
        let mut url = Url::parse(address).map_err(|error| refused(format!("{}: {error}", shown(address))))?;
        for _ in 0..=MAX_REDIRECTS {
            self.check(&url)?;
            let response = self.client.get(url.clone()).send().await.map_err(|error| failed(&url, &error))?;
            if response.status().is_redirection() {
                let target = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                let target = target.ok_or_else(|| refused(format!("{url} redirects to nowhere")))?;
                url = url.join(target).map_err(|error| refused(format!("{url} redirects badly: {error}")))?;
                continue;
            }
            if !response.status().is_success() {
                return Err(refused(format!("{url} answered {}", response.status())));
            }
            return self.body(&url, response).await;
        }
        Err(refused(format!("{} redirects more than {MAX_REDIRECTS} times", shown(address))))
    }

    fn check(&self, url: &Url) -> Result<(), PromptError> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refused(format!("{url} is not an http address")));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused("an address must not carry a password".into()));
        }
        let host = url.host_str().unwrap_or_default();
        if !self.rules.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(host)) {
            return Err(refused(format!(
                "images are not fetched from '{host}'; send a data: URI, or ask the operator to add the host to images.allowed_hosts"
            )));
        }
        // An address written as a number is connected to without name resolution.
        let literal = host.trim_matches(['[', ']']).parse::<IpAddr>();
        match literal {
            Ok(address) if !self.rules.allow_private_addresses && !is_public(address) => {
                Err(refused(format!("{address} is not a public address")))
            }
            _ => Ok(()),
        }
    }

    async fn body(&self, url: &Url, response: reqwest::Response) -> Result<Vec<u8>, PromptError> {
        let too_large = || refused(format!("{url} is larger than {} bytes", self.rules.max_bytes));
        if response.content_length().is_some_and(|length| length > self.rules.max_bytes as u64) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| failed(url, &error))?;
            if bytes.len() + chunk.len() > self.rules.max_bytes {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

/// Resolves names and drops every address that is not public.
struct CheckedResolver {
    allow_private: bool,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let usable: Vec<SocketAddr> = found.filter(|a| allow_private || is_public(a.ip())).collect();
            if usable.is_empty() {
                return Err(format!("{} has no public address", name.as_str()).into());
            }
            Ok(Box::new(usable.into_iter()) as Addrs)
        })
    }
}

/// Whether an address belongs to the public internet.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = a == 0
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b == 18 || b == 19));
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(v4) = address.to_ipv4_mapped() {
        return is_public_v4(v4);
    }
    let segments = address.segments();
    // Global unicast only (2000::/3), less what tunnels to IPv4 or is set aside.
    let global = segments[0] & 0xe000 == 0x2000;
    let tunnel = segments[0] == 0x2002 || (segments[0] == 0x2001 && segments[1] < 0x0200);
    let documentation = (segments[0] == 0x2001 && segments[1] == 0x0db8) || segments[0] == 0x3fff;
    global && !tunnel && !documentation
}

fn refused(reason: String) -> PromptError {
    PromptError::InvalidInput(format!("an image cannot be used: {reason}"))
}

fn failed(url: &Url, error: &reqwest::Error) -> PromptError {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    refused(format!("{url}: {text}"))
}

/// An address, short enough for a message.
fn shown(address: &str) -> String {
    address.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::response::Redirect;
    use axum::routing::get;

    async fn serve() -> SocketAddr {
        let app = Router::new()
            .route("/picture", get(|| async { vec![7u8; 100] }))
            .route("/there", get(|| async { Redirect::temporary("/picture") }))
            .route("/away", get(|| async { Redirect::temporary("http://elsewhere.invalid/x") }))
            .route("/file", get(|| async { Redirect::temporary("file:///etc/passwd") }))
            .route("/round", get(|| async { Redirect::temporary("/round") }))
            .route("/slow", get(std::future::pending::<&'static str>));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        address
    }

    fn rules() -> FetchRules {
        FetchRules {
            allowed_hosts: vec!["127.0.0.1".into(), "LOCALHOST".into()],
            allow_private_addresses: true,
            timeout: Duration::from_millis(300),
            max_bytes: 1000,
        }
    }

    async fn get_with(rules: FetchRules, url: String) -> Result<Vec<u8>, String> {
        let source = ImageSource::new(rules).unwrap();
        source.bytes(&ImageUrl { url, detail: None }).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn fetches_from_allowed_hosts_only() {
        let at = serve().await;
        assert_eq!(get_with(rules(), format!("http://{at}/there")).await.unwrap(), [7u8; 100]);
        assert_eq!(
            get_with(rules(), format!("http://localhost:{}/picture", at.port())).await.unwrap(),
            [7u8; 100]
        );
        let cases = [
            (FetchRules::default(), format!("http://{at}/picture"), "not fetched from '127.0.0.1'"),
            (
                FetchRules { allow_private_addresses: false, ..rules() },
                format!("http://{at}/picture"),
                "not a public address",
            ),
            (
                FetchRules { allow_private_addresses: false, ..rules() },
                format!("http://localhost:{}/picture", at.port()),
                "no public address",
            ),
            (rules(), format!("http://{at}/away"), "not fetched from 'elsewhere.invalid'"),
            (rules(), format!("http://{at}/file"), "not an http address"),
            (rules(), format!("http://{at}/round"), "more than 3 times"),
            (rules(), format!("http://{at}/nothing"), "404"),
            (rules(), format!("http://user:secret@{at}/picture"), "password"),
            (FetchRules { max_bytes: 99, ..rules() }, format!("http://{at}/picture"), "larger than 99"),
            (rules(), format!("http://{at}/slow"), "image cannot be used"),
        ];
        for (rules, url, expected) in cases {
            let error = get_with(rules, url.clone()).await.expect_err(&url);
            assert!(error.contains(expected), "{url}: {error}");
        }
    }

    #[tokio::test]
    async fn data_uris_need_no_permission() {
        assert_eq!(
            get_with(FetchRules::default(), "data:image/png;base64,AAEC".into()).await.unwrap(),
            [0, 1, 2]
        );
        let small = FetchRules { max_bytes: 10, ..Default::default() };
        assert!(get_with(small, format!("data:image/png;base64,{}", "A".repeat(100))).await.is_err());
        assert!(get_with(FetchRules::default(), "data:image/png,raw".into()).await.is_err());
    }

    #[test]
    fn public_addresses() {
        for text in ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8"] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
        let private = [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "198.18.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "2002:7f00:1::",
            "2001:db8::1",
            "64:ff9b::7f00:1",
            "2001::1",
        ];
        for text in private {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }
}
