//! `[coordinator]`: how several gateways agree.

use serde::Deserialize;

use super::ConfigError;

/// `[coordinator]`. Without `etcd` this gateway decides by itself, which is safe beside others, too.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Coordinator {
    /// Endpoints of etcd: `http://host:2379` or `https://host:2379`.
    pub etcd: Vec<String>,
    /// What the other gateways call this one; by default a name made up at each start.
    pub name: Option<String>,
    /// Environment variable that holds the key neurons want that made themselves known.
    pub node_api_key_env: Option<String>,
}

impl Coordinator {
    /// Whether the settings make sense.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for endpoint in &self.etcd {
            let scheme =
                endpoint.parse::<http::Uri>().ok().and_then(|uri| uri.scheme_str().map(str::to_owned));
            if !matches!(scheme.as_deref(), Some("http" | "https")) {
                let message = format!("{endpoint:?} is not a URL such as http://host:2379");
                return Err(ConfigError::value("coordinator.etcd", message));
            }
        }
        if self.name.as_ref().is_some_and(String::is_empty) {
            return Err(ConfigError::value("coordinator.name", "is empty"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_urls() {
        let of =
            |endpoint: &str| Coordinator { etcd: vec![endpoint.into()], ..Coordinator::default() }.check();
        assert!(of("http://127.0.0.1:2379").is_ok() && of("https://etcd").is_ok());
        for wrong in ["127.0.0.1:2379", "etcd", "unix:///run/etcd"] {
            let error = of(wrong).expect_err("no URL").to_string();
            assert!(error.contains("coordinator.etcd") && error.contains(wrong), "{error}");
        }
    }
}
