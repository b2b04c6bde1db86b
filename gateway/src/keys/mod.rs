//! Who may ask for what, and how much.
//!
//! Keys are kept as SHA-256 digests; a key has enough randomness of its own that a slow hash would
//! only slow requests down. Without a key file everybody may do everything, which is said in the log.
//! Limits are reserved before a request is sent and settled by what it used.

pub mod bucket;
pub mod file;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use wire_api::rate_limits::RateLimits;
use wire_api::{ApiError, ErrorKind};

use crate::coordinator::membership::Limits;
use crate::coordinator::{Spendings, Spent};
use crate::fleet::identity::{now_ms, stable_hash};
use crate::usage::Spending;
use bucket::Bucket;
use file::KeyEntry;

/// The digest of a key.
pub type KeyDigest = [u8; 32];

/// The digest under which a key is kept.
pub fn digest(key: &str) -> KeyDigest {
    Sha256::digest(key.as_bytes()).into()
}

/// Every key.
#[derive(Default)]
pub struct Keys {
    by_digest: Option<HashMap<KeyDigest, Arc<Key>>>,
}

/// A key and what it has used.
pub struct Key {
    /// Its name, for people, logs and metrics.
    pub name: String,
    /// Stable hash of the name.
    pub hash: u64,
    admin: bool,
    models: Vec<String>,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    max_concurrent: Option<u32>,
    running: AtomicU32,
    used: Used,
    budget: Option<f64>,
    budget_days: u32,
    spending: Spending,
}

/// What was used through this gateway since it began, for gateways that share the limits.
#[derive(Default)]
struct Used {
    requests: AtomicU64,
    tokens: AtomicU64,
}

impl Limits for Keys {
    fn spent(&self) -> Spendings {
        let used = |key: &Arc<Key>| Spent {
            requests: key.used.requests.load(Ordering::Relaxed),
            tokens: key.used.tokens.load(Ordering::Relaxed),
        };
        self.list().map(|key| (key.name.clone(), used(key))).collect()
    }

    fn charge(&self, name: &str, spent: Spent) {
        for key in self.list().filter(|key| key.name == name) {
            for (bucket, amount) in [(&key.requests, spent.requests), (&key.tokens, spent.tokens)] {
                if let Some(bucket) = bucket {
                    bucket.correct(0, amount);
                }
            }
        }
    }
}

impl Keys {
    /// Everybody may do everything.
    pub fn open() -> Self {
        Self::default()
    }

    /// The keys of a file; what each has spent comes from `spending`.
    pub fn of(entries: Vec<KeyEntry>, spending: impl Fn(&KeyEntry) -> Spending) -> Self {
        let keys = entries.into_iter().map(|entry| {
            let spent = spending(&entry);
            (entry.digest, Arc::new(Key::of(entry, spent)))
        });
        Self { by_digest: Some(keys.collect()) }
    }

    /// Every key.
    pub fn list(&self) -> impl Iterator<Item = &Arc<Key>> {
        self.by_digest.iter().flat_map(HashMap::values)
    }

    /// Whether everybody may do everything.
    pub fn is_open(&self) -> bool {
        self.by_digest.is_none()
    }

    /// Whose request this is; None when everybody may ask.
    ///
    /// # Errors
    /// 401 without a key or with an unknown one.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Option<Arc<Key>>, ApiError> {
        let Some(keys) = &self.by_digest else { return Ok(None) };
        let refuse = |why: &str| Err(ApiError::new(ErrorKind::Authentication, why));
        let Some(presented) = presented(headers) else {
            return refuse("no key was given; send 'Authorization: Bearer KEY' or 'x-api-key: KEY'");
        };
        match keys.get(&digest(presented)) {
            Some(key) => Ok(Some(Arc::clone(key))),
            None => refuse("the key is not known here"),
        }
    }

    /// Lets through who may change things.
    ///
    /// # Errors
    /// 401 without a known key, 403 with one that is not an administrator's.
    pub fn authorize_admin(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        match self.authenticate(headers)? {
            Some(key) if !key.admin => {
                let message = format!("the key '{}' may not change the fleet; use an admin key", key.name);
                Err(ApiError::new(ErrorKind::Permission, message))
            }
            _ => Ok(()),
        }
    }
}

fn presented(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    bearer
        .or_else(|| headers.get("x-api-key").and_then(|value| value.to_str().ok()))
        .filter(|key| !key.is_empty())
}

impl Key {
    fn of(entry: KeyEntry, spending: Spending) -> Self {
        Self {
            hash: stable_hash(entry.name.as_bytes()),
            name: entry.name,
            admin: entry.admin,
            models: entry.models,
            requests: entry.requests_per_minute.map(Bucket::per_minute),
            tokens: entry.tokens_per_minute.map(Bucket::per_minute),
            max_concurrent: entry.max_concurrent,
            running: AtomicU32::new(0),
            used: Used::default(),
            budget: entry.budget,
            budget_days: entry.budget_days,
            spending,
        }
    }

    /// What the key has spent, as the ledger knows it; older costs have left the window meanwhile.
    pub fn spent(&self, cost: f64) {
        self.spending.set(cost);
    }

    /// The window of its budget in days, if it has one.
    pub fn budget_days(&self) -> Option<u32> {
        self.budget.map(|_| self.budget_days)
    }

    /// What is left of its limits.
    pub fn limits(&self, now_ms: u64) -> RateLimits {
        let left = |bucket: &Option<Bucket>| bucket.as_ref().map(|bucket| bucket.window(now_ms));
        RateLimits { requests: left(&self.requests), tokens: left(&self.tokens), ..RateLimits::default() }
    }

    /// Requests under way.
    pub fn running(&self) -> u32 {
        self.running.load(Ordering::Relaxed)
    }

    /// Lets a request for a model through, under any of its `names`, that may use so many tokens.
    ///
    /// # Errors
    /// 403 for a model the key may not use, 429 over a limit, 402/429 over the budget.
    pub fn admit<'a>(
        self: &Arc<Self>,
        names: impl IntoIterator<Item = &'a str>,
        tokens: u64,
    ) -> Result<Grant, ApiError> {
        let mut names = names.into_iter();
        if !self.models.is_empty()
            && !names.any(|name| self.models.iter().any(|allowed| matches(allowed, name)))
        {
            let message = format!("the key '{}' may not use this model", self.name);
            return Err(ApiError::new(ErrorKind::Permission, message).with_param("model"));
        }
        if let Some(budget) = self.budget
            && self.spending.cost() >= budget
        {
            let message = format!("the budget of the key '{}' is spent", self.name);
            return Err(ApiError::new(ErrorKind::Billing, message));
        }
        let running = self.running.fetch_add(1, Ordering::Relaxed) + 1;
        // From here on dropping the grant counts the request out again.
        let mut grant = Grant { key: Arc::clone(self), reserved: 0 };
        if let Some(most) = self.max_concurrent.filter(|most| running > *most) {
            return Err(self.over(&format!("{most} requests at once"), 1000));
        }
        let now = now_ms();
        if let Some(bucket) = &self.requests {
            bucket.take(1, now).map_err(|wait_ms| self.over("its requests per minute", wait_ms))?;
            self.used.requests.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(bucket) = &self.tokens {
            // More than a whole minute's worth is let through when the minute is whole.
            let tokens = tokens.min(bucket.capacity());
            bucket.take(tokens, now).map_err(|wait_ms| self.over("its tokens per minute", wait_ms))?;
            grant.reserved = tokens;
        }
        Ok(grant)
    }

    fn over(&self, what: &str, wait_ms: u64) -> ApiError {
        let seconds = wait_ms.div_ceil(1000).min(3600) as u32;
        ApiError::new(ErrorKind::RateLimited, format!("the key '{}' is over {what}", self.name))
            .with_retry_after(seconds)
    }
}

/// `org/*` allows everything of `org`.
fn matches(allowed: &str, name: &str) -> bool {
    match allowed.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => allowed == name,
    }
}

/// A request let through: counted for its key until dropped.
pub struct Grant {
    key: Arc<Key>,
    reserved: u64,
}

impl Grant {
    /// The key's name.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The request used so many tokens, which cost so much.
    pub fn settle(&mut self, tokens: u64, cost: f64) {
        if let Some(bucket) = &self.key.tokens {
            bucket.correct(self.reserved, tokens);
            self.reserved = 0;
        }
        self.key.used.tokens.fetch_add(tokens, Ordering::Relaxed);
        self.key.spending.add(cost);
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if let Some(bucket) = &self.key.tokens {
            // Nothing was used that anybody knows of.
            bucket.correct(self.reserved, 0);
        }
        self.key.running.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Keys {
        let entries = file::parse(text, std::path::Path::new("keys.toml")).expect("valid keys");
        Keys::of(entries, |_| Spending::default())
    }

    fn entry(name: &str, key: &str, more: &str) -> String {
        format!("[[keys]]\nname = {name:?}\nsha256 = {:?}\n{more}\n", file::hex(&digest(key)))
    }

    fn with(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().expect("a header"));
        headers
    }

    #[test]
    fn keys_open_doors_by_either_header() {
        let keys = keys(&(entry("alice", "sk-1", "") + &entry("root", "sk-2", "admin = true")));
        for headers in [
            with("authorization", "Bearer sk-1"),
            with("authorization", "bearer  sk-1"),
            with("x-api-key", "sk-1"),
        ] {
            let key = keys.authenticate(&headers).expect("known").expect("keys are on");
            assert_eq!(key.name, "alice");
        }
        for headers in [
            HeaderMap::new(),
            with("x-api-key", "sk-3"),
            with("authorization", "Basic sk-1"),
            with("x-api-key", ""),
        ] {
            assert_eq!(keys.authenticate(&headers).err().map(|e| e.kind), Some(ErrorKind::Authentication));
        }
        let refused = keys.authorize_admin(&with("x-api-key", "sk-1")).expect_err("no admin");
        assert_eq!(refused.kind, ErrorKind::Permission);
        assert!(keys.authorize_admin(&with("x-api-key", "sk-2")).is_ok());
        assert!(Keys::open().authorize_admin(&HeaderMap::new()).is_ok());
        assert!(Keys::open().authenticate(&HeaderMap::new()).expect("open").is_none());
    }

    #[test]
    fn limits_hold_and_are_given_back() {
        let text = entry(
            "a",
            "k",
            "models = [\"m\", \"org/*\"]\nmax_concurrent = 2\nrequests_per_minute = 4\ntokens_per_minute = 100",
        );
        let keys = keys(&text);
        let key = keys.authenticate(&with("x-api-key", "k")).expect("known").expect("on");
        let kind = |result: Result<Grant, ApiError>| result.err().map(|error| error.kind);
        assert_eq!(kind(key.admit(["other"], 1)), Some(ErrorKind::Permission));
        assert!(key.admit(["alias", "org/x"], 1).is_ok());
        let one = key.admit(["m"], 10).expect("within limits");
        let _two = key.admit(["m"], 10).expect("within limits");
        assert_eq!(kind(key.admit(["m"], 1)), Some(ErrorKind::RateLimited), "three at once");
        assert_eq!(key.running(), 2);
        drop(one);
        let error = key.admit(["m"], 1000).err().expect("more tokens than there ever are at once");
        assert!(error.retry_after_s.is_some_and(|s| s > 0), "{error:?}");
        assert_eq!(key.running(), 1, "a refused request is counted out again");
    }

    #[test]
    fn tokens_are_settled_by_what_was_used() {
        let keys = keys(&entry("a", "k", "tokens_per_minute = 100"));
        let key = keys.authenticate(&with("x-api-key", "k")).expect("known").expect("on");
        for _ in 0..20 {
            let mut grant = key.admit(["m"], 70).expect("what was not used is given back");
            grant.settle(1, 0.0);
        }
        for _ in 0..20 {
            drop(key.admit(["m"], 70).expect("what was never sent is given back"));
        }
    }

    #[test]
    fn a_spent_budget_closes_the_door() {
        let entries =
            file::parse(&entry("a", "k", "budget = 1.0"), std::path::Path::new("t")).expect("valid");
        let keys = Keys::of(entries, |_| Spending::of(0.75));
        let key = keys.authenticate(&with("x-api-key", "k")).expect("known").expect("on");
        key.admit(["m"], 1).expect("some is left").settle(10, 0.5);
        assert_eq!(key.admit(["m"], 1).err().map(|error| error.kind), Some(ErrorKind::Billing));
    }
}
