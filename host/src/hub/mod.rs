//! Models from a hub: found, fetched, verified, kept in the cache every other tool of that hub shares.
//!
//! What is complete in the cache is used without asking anybody, so that a node starts with the network down.
//! Listing, authentication and transfer are the hf-hub crate's. The cache is written here, because that crate
//! neither resumes a broken download nor checks what it received: a download goes on where it stopped, and
//! nothing is called by its name before its size and SHA-256 are what the hub says (docs/adr/0008-hub-downloads.md).

mod cache;
mod fetch;
mod id;
mod wanted;

use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;
use hf_hub::{HFClient, HFError};
use wire_api::node::events::LoadPhase;
use wire_api::node::models::Failure;

use self::cache::Repository;
use self::fetch::Fetcher;
pub use self::id::{HubId, ModelSource};
use crate::lifecycle::{ResolveProgress, Resolver, code};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// How a hub is used. What is absent comes from the environment, as in the hub's own tools.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HubOptions {
    /// Address; `HF_ENDPOINT`.
    pub endpoint: Option<String>,
    /// Folder of the cache; `HF_HUB_CACHE`, or `HF_HOME`/hub.
    pub cache: Option<PathBuf>,
    /// Use only what is cached; `HF_HUB_OFFLINE`.
    pub offline: Option<bool>,
    /// Ask the hub for news even when the cache is complete.
    pub refresh: bool,
    /// Access token; `HF_TOKEN`, or the hub's token file.
    pub token: Option<String>,
}

/// Why a model cannot be had from a hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The text names neither a file nor a model.
    #[error("{0}")]
    BadId(String),
    /// Nothing of that name, or no access to it.
    #[error("{0}")]
    NotFound(String),
    /// It is there, but not in a form that can be served.
    #[error("{0}")]
    Unusable(String),
    /// It is not in the cache, and the hub must not be asked.
    #[error("{id} is not complete in the cache {cache}, and the hub must not be asked (offline)")]
    Offline {
        /// What was wanted.
        id: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// The hub or the way to it is not working.
    #[error("{what}: {reason}")]
    Network {
        /// What was being done.
        what: String,
        /// What went wrong.
        reason: String,
    },
    /// What arrived is not what the hub promised.
    #[error("{file} is not what the hub promised: {reason}")]
    Corrupt {
        /// Which file.
        file: String,
        /// How it differs.
        reason: String,
    },
    /// The cache cannot be read or written.
    #[error("{path}: {source}")]
    Disk {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl HubError {
    /// Whether trying again may help.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Network { .. } | Self::Corrupt { .. } | Self::Disk { .. })
    }

    fn disk(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Disk { path, source }
    }

    /// What the hub said while `what` was being done.
    fn of_hub(what: &str, error: &HFError) -> Self {
        let refused = "; if it is private or gated, accept its terms on the hub and set HF_TOKEN";
        let no_access = || Self::NotFound(format!("{what}: the hub refuses access{refused}"));
        match error {
            HFError::AuthRequired { .. } | HFError::Forbidden { .. } => no_access(),
            // Listings do not sort statuses into variants.
            HFError::Http { context } if [401, 403].contains(&context.status.as_u16()) => no_access(),
            HFError::Http { context } if context.status.as_u16() == 404 => {
                Self::NotFound(format!("{what}: the hub knows nothing there{refused}"))
            }
            HFError::RepoNotFound { repo_id, .. } => {
                Self::NotFound(format!("{what}: the hub knows no model {repo_id}{refused}"))
            }
            HFError::RevisionNotFound { repo_id, revision, .. } => {
                Self::NotFound(format!("{what}: {repo_id} has no revision {revision}"))
            }
            HFError::EntryNotFound { path, repo_id, .. } => {
                Self::NotFound(format!("{what}: {repo_id} has no file {path}"))
            }
            other => Self::Network { what: what.to_owned(), reason: chain(other) },
        }
    }
}

/// An error with its causes, as one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// Finds models: local paths as they are, everything else in the cache and then on the hub.
#[derive(Debug, Clone)]
pub struct Hub {
    client: HFClient,
    plain: reqwest::Client,
    endpoint: String,
    token: Option<String>,
    cache: PathBuf,
    offline: bool,
    refresh: bool,
}

impl Hub {
    /// A hub by these options and the environment.
    ///
    /// # Errors
    ///
    /// When the endpoint is no address, or TLS cannot start.
    pub fn new(options: HubOptions) -> Result<Self, HubError> {
        let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let endpoint = options.endpoint.or_else(|| environment("HF_ENDPOINT"));
        let endpoint =
            endpoint.unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()).trim_end_matches('/').to_owned();
        let cache = options.cache.unwrap_or_else(cache::default_folder);
        let token = options.token.or_else(cache::token);
        let offline = options.offline.unwrap_or_else(|| {
            environment("HF_HUB_OFFLINE")
                .is_some_and(|value| !["0", "false", "no", "off"].contains(&value.to_lowercase().as_str()))
        });
        let broken = |reason: String| HubError::Network { what: format!("the hub {endpoint}"), reason };
        let mut builder = HFClient::builder().endpoint(&endpoint).cache_dir(&cache).user_agent(user_agent());
        if let Some(token) = &token {
            builder = builder.token(token);
        }
        let client = builder.build().map_err(|error| broken(chain(&error)))?;
        let plain = reqwest::Client::builder()
            .user_agent(user_agent())
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(std::time::Duration::from_secs(10))
            .build()
            .map_err(|error| broken(chain(&error)))?;
        Ok(Self { client, plain, endpoint, token, cache, offline, refresh: options.refresh })
    }

    /// The folder or GGUF file that `model` stands for, complete and on this machine.
    pub async fn find(&self, model: &str, progress: &ResolveProgress) -> Result<PathBuf, HubError> {
        let id = match ModelSource::parse(model)? {
            ModelSource::Local(path) => {
                return std::fs::canonicalize(&path)
                    .map_err(|error| HubError::NotFound(format!("{}: {error}", path.display())));
            }
            ModelSource::Hub(id) => id,
        };
        let repository = Repository::new(&self.cache, &id);
        let cached = repository.complete();
        if let Some(path) = cached.as_ref().filter(|_| self.offline || !self.refresh) {
            return Ok(path.clone());
        }
        if self.offline {
            return Err(HubError::Offline { id: model.to_owned(), cache: self.cache.clone() });
        }
        progress(LoadPhase::Resolve, 0, 0, Some(model.to_owned()));
        match Fetcher::new(self, &id, &repository, progress).run().await {
            // An answer from yesterday is better than none, and it says that it is one.
            Err(error @ HubError::Network { .. }) if cached.is_some() => {
                tracing::warn!(model, %error, "the hub cannot be asked; using what is cached");
                Ok(cached.unwrap_or_default())
            }
            other => other,
        }
    }
}

fn user_agent() -> String {
    format!("neuron/{}", env!("CARGO_PKG_VERSION"))
}

impl Resolver for Hub {
    fn resolve(
        &self,
        model: String,
        progress: ResolveProgress,
    ) -> BoxFuture<'static, Result<PathBuf, Failure>> {
        let hub = self.clone();
        Box::pin(async move { hub.find(&model, &progress).await.map_err(|error| failure(&error)) })
    }
}

fn failure(error: &HubError) -> Failure {
    let code = match error {
        HubError::BadId(_) | HubError::NotFound(_) | HubError::Offline { .. } => code::NOT_RESOLVED,
        HubError::Unusable(_) => code::UNSUPPORTED,
        HubError::Network { .. } => "hub_unreachable",
        HubError::Corrupt { .. } => "download_corrupt",
        HubError::Disk { .. } => "cache_unusable",
    };
    Failure {
        code: code.to_owned(),
        message: error.to_string(),
        retryable: error.retryable(),
        attempts: 1,
        next_attempt_in_ms: None,
    }
}
