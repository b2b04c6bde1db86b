//! Where a node is reached.

use http::uri::{Authority, PathAndQuery, Scheme};

/// A node's endpoint, taken apart once so that no request pays for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    text: String,
    parts: Option<(Scheme, Authority, String)>,
}

impl Endpoint {
    /// Takes a checked endpoint apart.
    pub fn new(text: &str) -> Self {
        let text = text.trim_end_matches('/').to_owned();
        let parts = text.parse::<http::Uri>().ok().and_then(|uri| {
            let prefix = uri.path().trim_end_matches('/').to_owned();
            Some((uri.scheme()?.clone(), uri.authority()?.clone(), prefix))
        });
        Self { text, parts }
    }

    /// As configured, without a slash at the end.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The address of a path there, query included. None for an endpoint that is no URL.
    pub fn uri(&self, path: &str) -> Option<http::Uri> {
        let (scheme, authority, prefix) = self.parts.as_ref()?;
        let path = if prefix.is_empty() {
            PathAndQuery::try_from(path)
        } else {
            PathAndQuery::try_from(format!("{prefix}{path}"))
        };
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(scheme.clone());
        parts.authority = Some(authority.clone());
        parts.path_and_query = Some(path.ok()?);
        http::Uri::from_parts(parts).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_do_not_pile_up_and_prefixes_stay() {
        for (endpoint, expected) in [
            ("http://n:1", "http://n:1/v1/models?limit=1"),
            ("http://n:1/", "http://n:1/v1/models?limit=1"),
            ("http://n:1/proxy/a/", "http://n:1/proxy/a/v1/models?limit=1"),
        ] {
            let uri = Endpoint::new(endpoint).uri("/v1/models?limit=1").expect("a URL");
            assert_eq!(uri.to_string(), expected);
        }
        assert!(Endpoint::new("nonsense").uri("/x").is_none());
    }
}
