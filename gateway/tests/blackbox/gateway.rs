//! A gateway in this process, on a free port, in front of mock nodes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cortex::cli::serve::{Assembled, assemble};
use cortex::config::{Catalogue, Config, Loaded};
use cortex::server::{Gateway, listen, router};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::node::MockNode;

/// A gateway that serves.
pub struct TestGateway {
    pub endpoint: String,
    pub gateway: Arc<Gateway>,
    pub server: JoinHandle<()>,
    pub stop: watch::Sender<bool>,
    _assembled: Assembled,
}

/// Settings every test begins with: nothing takes longer than it must.
const QUICK: &str = r#"
    [polling]
    interval_ms = 50
    timeout_ms = 500
    misses = 3
    [eviction]
    min_residency_s = 0
"#;

/// Writes `over` over `table`, section by section.
fn merge(table: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (table.get_mut(&key), value) {
            (Some(toml::Value::Table(section)), toml::Value::Table(over)) => merge(section, over),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

/// The quick settings with `over` over them, for `nodes`.
fn settings(nodes: &[&MockNode], over: &str) -> Config {
    let mut table: toml::Table = toml::from_str(QUICK).expect("quick settings");
    merge(&mut table, toml::from_str(over).expect("test settings"));
    let mut text = table.to_string();
    for node in nodes {
        text.push_str(&format!(
            "\n[[neurons]]\nname = {:?}\nendpoint = {:?}\n",
            node.state.name, node.endpoint
        ));
    }
    Config::parse(&text, Path::new("test"), []).expect("test settings")
}

impl TestGateway {
    /// In front of `nodes`, with `settings` over the quick ones and a catalogue.
    pub async fn start(nodes: &[&MockNode], settings: &str, catalogue: &str) -> Self {
        let gateway = Self::start_unheard(nodes, settings, catalogue).await;
        let mut changes = gateway.gateway.fleet.watch();
        while !gateway.gateway.fleet.view().complete() {
            changes.changed().await.expect("the fleet lives");
        }
        gateway
    }

    /// The same, without waiting until every node has been heard of.
    pub async fn start_unheard(nodes: &[&MockNode], settings: &str, catalogue: &str) -> Self {
        let config = self::settings(nodes, settings);
        let catalogue = Catalogue::parse(catalogue, Path::new("test")).expect("a test catalogue");
        Self::serve(Loaded { config, catalogue, catalogue_path: None }).await
    }

    async fn serve(loaded: Loaded) -> Self {
        let assembled = assemble(loaded).expect("strategies");
        let gateway = Arc::clone(&assembled.gateway);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let (stop, stopped) = watch::channel(false);
        let server = tokio::spawn(listen::serve(
            listener,
            router(Arc::clone(&gateway)),
            stopped,
            Duration::from_secs(20),
        ));
        Self { endpoint, gateway, server, stop, _assembled: assembled }
    }

    /// In front of `nodes`, with a catalogue that may change while it serves.
    pub async fn start_watching(nodes: &[&MockNode], catalogue: &Path) -> Self {
        let text = std::fs::read_to_string(catalogue).expect("a catalogue");
        let config = settings(nodes, "");
        let loaded = Loaded {
            config,
            catalogue: Catalogue::parse(&text, catalogue).expect("a test catalogue"),
            catalogue_path: Some(catalogue.to_owned()),
        };
        Self::serve(loaded).await
    }

    /// Ends it as SIGTERM does, and waits until its books are written.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        self.server.await.expect("it ended");
        // The last of the gateway's tasks go with this.
        drop(self._assembled);
        while Arc::strong_count(&self.gateway) > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until something holds; the test's own time limit is the only one.
    pub async fn until(&self, what: &str, holds: impl Fn(&Gateway) -> bool) {
        for _ in 0..2000 {
            if holds(&self.gateway) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it never came about: {what}");
    }
}
