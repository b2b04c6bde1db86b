//! Fetching a model: what is needed, in what state it is, and the bytes that are missing.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use hf_hub::repository::{HFRepository, RepoTreeEntry, RepoTypeModel};
use reqwest::header::{HeaderMap, LOCATION};
use sha2::{Digest, Sha256};
use wire_api::node::events::LoadPhase;

use super::cache::Repository;
use super::wanted::{Listed, choose};
use super::{Hub, HubError, HubId, chain};
use crate::lifecycle::ResolveProgress;

/// Broken transfers of one file in a row, none of which brought anything, before giving up.
const ATTEMPTS: u32 = 5;

/// What the hub says of a file before it is fetched.
#[derive(Debug, Clone)]
struct Promise {
    /// SHA-256 of large files, another name for small ones.
    etag: String,
    commit: String,
    bytes: u64,
}

/// Fetches one model.
pub(super) struct Fetcher<'a> {
    hub: &'a Hub,
    id: &'a HubId,
    repository: &'a Repository,
    remote: HFRepository<RepoTypeModel>,
    progress: &'a ResolveProgress,
    done: u64,
    total: u64,
}

impl<'a> Fetcher<'a> {
    pub fn new(
        hub: &'a Hub,
        id: &'a HubId,
        repository: &'a Repository,
        progress: &'a ResolveProgress,
    ) -> Self {
        let remote = hub.client.model(&id.owner, &id.name);
        Self { hub, id, repository, remote, progress, done: 0, total: 0 }
    }

    /// Everything the model needs; returns where it is.
    pub async fn run(mut self) -> Result<PathBuf, HubError> {
        let wanted = choose(self.id, &self.list().await?)?;
        self.total = wanted.iter().map(|file| file.bytes).sum();
        let mut commit = None;
        for file in &wanted {
            let promise = self.promise(&file.path).await?;
            // All files are of one commit, even if the branch moves meanwhile.
            let pinned: &String = commit.get_or_insert_with(|| promise.commit.clone());
            let promise =
                if *pinned == promise.commit { promise } else { self.promise_at(&file.path, pinned).await? };
            self.file(&file.path, &promise).await?;
        }
        let commit =
            commit.ok_or_else(|| HubError::Unusable(format!("{} is empty", self.id.repository())))?;
        self.repository.remember(&commit)?;
        let snapshot = self.repository.snapshot(&commit);
        Ok(self.id.file.as_ref().map_or_else(|| snapshot.clone(), |file| snapshot.join(file)))
    }

    async fn list(&self) -> Result<Vec<Listed>, HubError> {
        let what = format!("listing {}", self.id.repository());
        let failed = |error: hf_hub::HFError| HubError::of_hub(&what, &error);
        let entries = self
            .remote
            .list_tree()
            .revision(self.id.revision.clone())
            .recursive(true)
            .send()
            .map_err(failed)?;
        let mut entries = std::pin::pin!(entries);
        let mut listed = Vec::new();
        while let Some(entry) = entries.next().await {
            if let RepoTreeEntry::File { path, size, .. } = entry.map_err(failed)? {
                listed.push(Listed { path, bytes: size });
            }
        }
        listed.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(listed)
    }

    async fn promise(&self, file: &str) -> Result<Promise, HubError> {
        self.promise_at(file, &self.id.revision).await
    }

    /// Asks for a file's head. Redirects to elsewhere are not followed: the hub's own answer names the SHA-256,
    /// the answer of the storage behind it does not.
    async fn promise_at(&self, file: &str, revision: &str) -> Result<Promise, HubError> {
        let what = format!("asking for {file} of {}", self.id.repository());
        let network = |reason: String| HubError::Network { what: what.clone(), reason };
        let mut url = reqwest::Url::parse(&self.hub.endpoint).map_err(|error| network(error.to_string()))?;
        {
            let mut path =
                url.path_segments_mut().map_err(|()| network("the endpoint is no address".into()))?;
            path.pop_if_empty()
                .extend([&self.id.owner, &self.id.name, "resolve", revision])
                .extend(file.split('/'));
        }
        for _ in 0..4 {
            let mut request = self.hub.plain.head(url.clone()).timeout(Duration::from_secs(30));
            if let Some(token) = &self.hub.token {
                request = request.bearer_auth(token);
            }
            let response = request.send().await.map_err(|error| network(chain(&error)))?;
            let status = response.status();
            let target = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
            if let Some(target) =
                target.filter(|to| status.is_redirection() && to.starts_with('/') && !to.starts_with("//"))
            {
                url = url.join(target).map_err(|error| network(error.to_string()))?;
                continue;
            }
            if status.is_success() || status.is_redirection() {
                return read_promise(response.headers())
                    .ok_or_else(|| network("the answer lacks etag, size or commit".into()));
            }
            return Err(match status.as_u16() {
                401 | 403 => HubError::NotFound(format!(
                    "{what}: the hub refuses access; accept the model's terms there and set HF_TOKEN"
                )),
                404 => HubError::NotFound(format!("{what}: there is no such file")),
                _ => network(format!("the hub answered {status}")),
            });
        }
        Err(network("the hub redirects for ever".into()))
    }

    /// One file, fetched unless its contents are there already.
    async fn file(&mut self, file: &str, promise: &Promise) -> Result<(), HubError> {
        let lock = {
            let (repository, etag) = (self.repository.clone(), promise.etag.clone());
            let locked = tokio::task::spawn_blocking(move || repository.lock(&etag)).await;
            locked.map_err(|error| HubError::Network {
                what: format!("waiting for {file}"),
                reason: error.to_string(),
            })??
        };
        let blob = self.repository.blob(&promise.etag);
        if !fs::metadata(&blob).is_ok_and(|data| data.len() == promise.bytes) {
            let growing = self.repository.growing(&promise.etag);
            self.download(file, promise, &growing).await?;
            fs::rename(&growing, &blob).map_err(HubError::disk(&blob))?;
        }
        self.done += promise.bytes;
        (self.progress)(LoadPhase::Download, self.done, self.total.max(self.done), Some(file.to_owned()));
        self.repository.link(&promise.commit, file, &promise.etag)?;
        drop(lock);
        Ok(())
    }

    /// Fills `growing` up to the promised size, going on from what it holds, and verifies it.
    async fn download(&self, file: &str, promise: &Promise, growing: &Path) -> Result<(), HubError> {
        let folder = growing.parent().expect("contents are in a folder");
        fs::create_dir_all(folder).map_err(HubError::disk(folder))?;
        let mut part = Part::open(growing, promise.bytes)?;
        let mut fruitless = 0;
        while part.bytes < promise.bytes {
            let before = part.bytes;
            match self.transfer(file, promise, &mut part).await {
                Ok(()) => {}
                Err(error) if !error.retryable() => return Err(error),
                Err(error) => {
                    fruitless = if part.bytes > before { 0 } else { fruitless + 1 };
                    if fruitless >= ATTEMPTS {
                        return Err(error);
                    }
                    tracing::warn!(file, bytes = part.bytes, %error, "the download broke off; going on from there");
                    tokio::time::sleep(Duration::from_millis(200 << fruitless)).await;
                }
            }
        }
        (self.progress)(LoadPhase::Verify, 0, promise.bytes, Some(file.to_owned()));
        part.verify(file, promise, growing)
    }

    async fn transfer(&self, file: &str, promise: &Promise, part: &mut Part) -> Result<(), HubError> {
        let what = format!("fetching {file} of {}", self.id.repository());
        let (_, mut chunks) = self
            .remote
            .download_file_stream()
            .filename(file)
            .revision(promise.commit.clone())
            .range(part.bytes..promise.bytes)
            .send()
            .await
            .map_err(|error| HubError::of_hub(&what, &error))?;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| HubError::of_hub(&what, &error))?;
            if part.bytes + chunk.len() as u64 > promise.bytes {
                // The server sent the whole instead of the rest.
                part.empty()?;
                return Err(HubError::Network {
                    what,
                    reason: "more came than was asked for; beginning anew".into(),
                });
            }
            part.append(&chunk)?;
            (self.progress)(LoadPhase::Download, self.done + part.bytes, self.total, Some(file.to_owned()));
        }
        if part.bytes < promise.bytes {
            let reason = format!("it broke off at {} of {} bytes", part.bytes, promise.bytes);
            return Err(HubError::Network { what, reason });
        }
        Ok(())
    }
}

/// Contents that are not complete yet, and their digest so far.
struct Part {
    path: PathBuf,
    file: fs::File,
    bytes: u64,
    digest: Sha256,
}

impl Part {
    /// What an earlier download left, or nothing. What is longer than it should be is worth nothing.
    fn open(path: &Path, promised: u64) -> Result<Self, HubError> {
        let mut options = fs::OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(HubError::disk(path))?;
        let mut part = Self { path: path.to_owned(), file, bytes: 0, digest: Sha256::new() };
        let mut buffer = vec![0u8; 1 << 20];
        loop {
            let read = part.file.read(&mut buffer).map_err(HubError::disk(path))?;
            if read == 0 {
                break;
            }
            part.digest.update(&buffer[..read]);
            part.bytes += read as u64;
        }
        if part.bytes > promised {
            part.empty()?;
        }
        Ok(part)
    }

    fn append(&mut self, chunk: &[u8]) -> Result<(), HubError> {
        self.file.write_all(chunk).map_err(HubError::disk(&self.path))?;
        self.digest.update(chunk);
        self.bytes += chunk.len() as u64;
        Ok(())
    }

    fn empty(&mut self) -> Result<(), HubError> {
        self.file.set_len(0).map_err(HubError::disk(&self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(HubError::disk(&self.path))?;
        self.bytes = 0;
        self.digest = Sha256::new();
        Ok(())
    }

    /// Compares with the promise; contents that differ are thrown away.
    fn verify(self, file: &str, promise: &Promise, path: &Path) -> Result<(), HubError> {
        self.file.sync_all().map_err(HubError::disk(path))?;
        let is_sha256 = promise.etag.len() == 64 && promise.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        let digest: String = self.digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if is_sha256 && !digest.eq_ignore_ascii_case(&promise.etag) {
            fs::remove_file(path).map_err(HubError::disk(path))?;
            let reason = format!("its SHA-256 is {digest}, not {}", promise.etag);
            return Err(HubError::Corrupt { file: file.to_owned(), reason });
        }
        Ok(())
    }
}

fn read_promise(headers: &HeaderMap) -> Option<Promise> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let etag = text("x-linked-etag").or_else(|| text("etag"))?;
    let etag = etag.trim_start_matches("W/").trim_matches('"');
    // An etag becomes a file name.
    let plain = !etag.is_empty() && etag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let commit = text("x-repo-commit")?;
    let bytes = text("x-linked-size").or_else(|| text("content-length"))?.parse().ok()?;
    (plain && super::cache::is_commit(commit)).then(|| Promise {
        etag: etag.to_owned(),
        commit: commit.to_owned(),
        bytes,
    })
}
