//! What tests over real worker processes are made with: the echo plugin, model folders, a node.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use neuron::catalogue::{Catalogue, CatalogueOptions};
use neuron::lifecycle::{LocalPaths, Models, ModelsOptions, SequenceStream};
use neuron::metrics::Metrics;
use neuron::worker::message::{FailureCode, FinishReason, Sampling, SequenceEvent, Submission, TokenLogprob};
use neuron::worker::process::WorkerCommand;
use wire_api::node::load::LoadRequest;
use wire_api::node::models::ModelState;

/// Nothing in these tests takes so long; what does, hangs.
pub const LIMIT: Duration = Duration::from_secs(120);

/// The neuron binary.
pub const NEURON: &str = env!("CARGO_BIN_EXE_neuron");

/// The echo plugin, built when a test first asks for it.
pub fn echo_plugin() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| plugin("echo"))
}

/// Root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// An architecture's plugin: built now, or taken from the folder `NEURON_TEST_PLUGINS` if it is there.
pub fn plugin(name: &str) -> PathBuf {
    let prebuilt = std::env::var_os("NEURON_TEST_PLUGINS")
        .map(|folder| Path::new(&folder).join(format!("libneuron_{name}.so")));
    if let Some(prebuilt) = prebuilt.filter(|path| path.is_file()) {
        return prebuilt;
    }
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR"));
    // Several test processes may ask at the same time.
    let lock = File::create(kept.join("building.lock")).expect("cargo's folder for tests can be written");
    lock.lock().expect("a file lock");
    let output = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--message-format=json-render-diagnostics"])
        .args(["-p", &format!("{name}-plugin")])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["kind"][0] == "cdylib")
        .filter_map(|message| Some(PathBuf::from(message["filenames"][0].as_str()?)))
        .next_back()
        .expect("cargo built the library")
}

/// Puts the echo plugin into a plugin directory, the way an installer does.
pub fn install_echo(directory: &Path) {
    install(echo_plugin(), directory);
}

/// Puts a plugin into a plugin directory, the way an installer does.
pub fn install(plugin: &Path, directory: &Path) {
    std::fs::create_dir_all(directory).unwrap();
    let name = plugin.file_name().unwrap().to_str().unwrap();
    let fresh = directory.join(format!(".{name}"));
    std::fs::copy(plugin, &fresh).unwrap();
    std::fs::rename(fresh, directory.join(name)).unwrap();
}

/// A node with a plugin directory and a folder for models, removed with it.
pub struct Node {
    pub models: Models,
    pub folder: tempfile::TempDir,
    watch: tokio::task::JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// Defaults that make a test quick.
pub fn options() -> ModelsOptions {
    ModelsOptions {
        threads: Some(1),
        slots: 4,
        first_pause: Duration::from_millis(50),
        longest_pause: Duration::from_millis(400),
        ..ModelsOptions::new(WorkerCommand::program(NEURON))
    }
}

impl Node {
    /// A node with the echo plugin.
    pub fn new(options: ModelsOptions) -> Self {
        Self::with(options, install_echo)
    }

    /// A node without plugins.
    pub fn bare(options: ModelsOptions) -> Self {
        Self::with(options, |directory| std::fs::create_dir(directory).unwrap())
    }

    /// A node whose plugin directory is filled by `fill`.
    pub fn with(options: ModelsOptions, fill: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plugins = folder.path().join("plugins");
        fill(&plugins);
        let catalogue = Catalogue::new(CatalogueOptions {
            probe_program: NEURON.into(),
            ..CatalogueOptions::new(vec![plugins])
        });
        let watch = catalogue.watch();
        let models = Models::new(options, catalogue, std::sync::Arc::new(LocalPaths), Metrics::new());
        Self { models, folder, watch }
    }

    pub fn plugins(&self) -> PathBuf {
        self.folder.path().join("plugins")
    }

    /// A model folder whose echo behaves as `settings` say; the request that loads it.
    pub fn model(&self, name: &str, settings: serde_json::Value) -> LoadRequest {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let config =
            serde_json::json!({"model_type": "echo", "max_position_embeddings": 4096, "echo": settings});
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        LoadRequest {
            model: folder.to_str().unwrap().into(),
            name: Some(name.into()),
            ..LoadRequest::default()
        }
    }

    /// Loads a model and waits until it serves.
    pub async fn ready(&self, name: &str, settings: serde_json::Value) {
        let job = self.models.load(self.model(name, settings)).unwrap();
        within(job.wait()).await.unwrap();
    }

    pub async fn submit(&self, name: &str, submission: Submission) -> SequenceStream {
        within(self.models.acquire(name)).await.unwrap().submit(submission)
    }

    pub async fn ask(&self, name: &str, text: &str) -> Outcome {
        Outcome::of(self.submit(name, user(text)).await).await
    }

    pub fn state(&self, name: &str) -> ModelState {
        self.models.status(name).map_or(ModelState::Absent, |status| status.state)
    }

    pub async fn until(&self, what: &str, holds: impl Fn(&Models) -> bool) {
        let began = Instant::now();
        while !holds(&self.models) {
            assert!(began.elapsed() < LIMIT, "never came true: {what}; {:#?}", self.models.list());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn worker(&self, name: &str) -> u32 {
        within(self.models.acquire(name)).await.unwrap().info().worker
    }
}

/// The future's result, or a failed test when it hangs.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("it hangs")
}

/// Sends a signal to a process.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill -s {name} {pid}");
}

/// A user's turn for the echo model, which says it over again.
pub fn user(text: &str) -> Submission {
    let mut prompt = vec![256, 259];
    prompt.extend(text.bytes().map(u32::from));
    prompt.extend([257, 260]);
    Submission {
        boundaries: vec![prompt.len() as u32 - 1],
        prompt,
        images: Vec::new(),
        sampling: Sampling::greedy(),
        max_tokens: 4000,
        stop_tokens: vec![257],
        top_logprobs: None,
        emitted: Vec::new(),
    }
}

/// Everything a sequence said.
#[derive(Debug, Default)]
pub struct Outcome {
    pub text: String,
    pub tokens: Vec<u32>,
    pub logprobs: Vec<TokenLogprob>,
    pub cached_tokens: u32,
    pub end: Option<SequenceEvent>,
}

impl Outcome {
    pub async fn of(mut stream: SequenceStream) -> Self {
        let mut outcome = Self::default();
        while let Some(event) = within(stream.next_event()).await {
            outcome.take(event);
        }
        outcome
    }

    pub fn take(&mut self, event: SequenceEvent) {
        match event {
            SequenceEvent::Started { cached_tokens, .. } => self.cached_tokens = cached_tokens,
            SequenceEvent::Token { id, logprob } => {
                self.text.push(char::from(id as u8));
                self.tokens.push(id);
                self.logprobs.extend(logprob);
            }
            end => self.end = Some(end),
        }
    }

    pub fn finished(&self) -> FinishReason {
        match &self.end {
            Some(SequenceEvent::Finished { reason, .. }) => *reason,
            other => panic!("not finished but {other:?}"),
        }
    }

    pub fn failed(&self) -> (FailureCode, bool) {
        match &self.end {
            Some(SequenceEvent::Failed { code, retryable, .. }) => (*code, *retryable),
            other => panic!("not failed but {other:?}"),
        }
    }
}
