//! A strategy from outside the tree: a crate of its own, built by itself, loaded as a file, and heard.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use cortex::config::{Catalogue, Config, Loaded, Neuron};
use cortex::fleet::Fleet;
use cortex::fleet::directory::Directory;
use cortex::fleet::transport::Http;
use cortex::metrics::Metrics;
use cortex::placement::route::Step;
use cortex::placement::{Placement, Policy};
use cortex::proxy::client::client;
use cortex::strategies::Strategies;
use wire_api::node::ModelId;
use wire_api::node::models::{ModelState, ModelStatus, NodeModels};

const CRATE: &str = r#"
[package]
name = "outside-strategy"
version = "0.1.0"
edition = "2021"

[lib]
crate-type = ["cdylib"]

[dependencies]
plugin-sdk = { path = "SDK" }

# As in the workspace, so that what both depend on is built once.
[profile.dev]
debug = "line-tables-only"

[profile.dev.package."*"]
debug = false

[workspace]
"#;

const SOURCE: &str = r#"
use plugin_sdk::{Candidate, Error, Explain, Result, RouteChoice, RouteRequest, Router};

struct Busiest;

/// Runs while the file is opened, and ends whoever opens it when told to.
#[used]
#[link_section = ".init_array"]
static DIES: extern "C" fn() = dies;

extern "C" fn dies() {
    if std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/dies")).exists() {
        std::process::abort();
    }
}

fn create(options: &str) -> Result<Box<dyn Router>> {
    if options.contains("wrong") {
        return Err(Error::InvalidInput("busiest takes no option 'wrong'".into()));
    }
    Ok(Box::new(Busiest))
}

plugin_sdk::router!("busiest", "the node with most to do, against all reason", create);

impl Router for Busiest {
    fn choose(&self, _: &RouteRequest<'_>, candidates: &[Candidate], explain: &mut Explain<'_>) -> Result<RouteChoice> {
        for (index, candidate) in candidates.iter().enumerate() {
            explain.because(index, || format!("busy={}", candidate.running));
        }
        let index = (0..candidates.len()).max_by_key(|index| candidates[*index].running);
        Ok(RouteChoice { index: index.ok_or_else(|| Error::InvalidInput("no candidates".into()))? })
    }
}

plugin_sdk::export_plugin! { name: "outside", crates: [plugin_sdk] }
"#;

/// Builds the crate with the versions of this workspace, as an author beside it would.
fn build() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("outside-strategy");
    std::fs::create_dir_all(folder.join("src")).expect("a folder");
    let sdk = workspace.join("plugin-api/sdk").display().to_string();
    std::fs::write(folder.join("Cargo.toml"), CRATE.replace("SDK", &sdk)).expect("written");
    std::fs::write(folder.join("src/lib.rs"), SOURCE).expect("written");
    std::fs::copy(workspace.join("Cargo.lock"), folder.join("Cargo.lock")).expect("a lock file");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("a target folder");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--offline", "--quiet", "--target-dir"])
        .arg(target)
        .current_dir(&folder)
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the plugin does not build");
    target.join("debug/liboutside_strategy.so")
}

fn busy(running: u32) -> NodeModels {
    let mut model =
        ModelStatus { id: ModelId::from("m"), state: ModelState::Ready, ..ModelStatus::default() };
    model.activity.running = running;
    NodeModels { models: vec![model], ..NodeModels::default() }
}

fn chosen(router: &str, files: &[PathBuf]) -> (String, String) {
    let config: Config = toml::from_str(&format!(
        "[routing]\nstrategy = {router:?}\n[[neurons]]\nname = \"calm\"\nendpoint = \"http://127.0.0.1:1\"\n\
         [[neurons]]\nname = \"hectic\"\nendpoint = \"http://127.0.0.1:2\""
    ))
    .expect("settings");
    let Loaded { config, .. } = Loaded { config, ..Loaded::default() };
    let strategies = Strategies::open(files).expect("strategies");
    let made = strategies.router(&config.routing.strategy, &config.routing.options).expect("a router");
    let evictor = strategies.evictor("lru", &toml::Table::new()).expect("an evictor");
    let nodes: Vec<Neuron> = config.neurons.clone();
    let fleet = Arc::new(Fleet::new(nodes, Catalogue::default(), 3));
    fleet.heard("calm", busy(0), None);
    fleet.heard("hectic", busy(5), None);
    let transport = Arc::new(Http(client(Duration::from_secs(1))));
    let directory = Directory::new(transport, Duration::from_secs(1), &[]);
    let placement =
        Placement::new(fleet, directory, made, evictor, Policy::of(&config), Arc::new(Metrics::default()));
    let facts = placement.new_facts();
    let view = placement.fleet().view();
    let Ok(Step::Go(placed)) = placement.route(&view, "m", &facts, "req_1", &[]) else { panic!("a place") };
    let record = placement.decisions().routes_of("req_1").remove(0);
    let why = placement.router().choose(&record.request(), &record.candidates, true).expect("reasons");
    (placed.node.name.clone(), why.explanation)
}

#[test]
fn it_changes_a_decision_and_says_why() {
    let file = build();
    assert_eq!(chosen("least_inflight", std::slice::from_ref(&file)).0, "calm");
    let (node, why) = chosen("busiest", std::slice::from_ref(&file));
    assert_eq!(node, "hectic");
    assert!(why.contains("1\tbusy=5"), "{why}");
    let strategies = Strategies::open(std::slice::from_ref(&file)).expect("strategies");
    assert!(strategies.routers().iter().any(|info| info.name == "busiest"));
    let options = toml::from_str("wrong = 1").expect("TOML");
    let error = strategies.router("busiest", &options).expect_err("it validates its options").to_string();
    assert!(error.contains("no option 'wrong'"), "{error}");
    check_that_a_deadly_file_is_refused(&file);
}

/// The settings of a gateway that loads the file, checked by cortex itself.
fn checked(file: &Path) -> std::process::Output {
    let folder = file.parent().expect("a folder");
    let config = folder.join("outside-strategy.toml");
    std::fs::write(&config, format!("[routing]\nstrategy = \"busiest\"\n[plugins]\nfiles = [{file:?}]\n"))
        .expect("written");
    let mut cortex = Command::new(env!("CARGO_BIN_EXE_cortex"));
    cortex.args(["config", "check", "--config"]).arg(&config).output().expect("cortex runs")
}

/// A file that kills whoever opens it is refused with a sentence; cortex itself lives on.
fn check_that_a_deadly_file_is_refused(file: &Path) {
    let output = checked(file);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let deadly = Path::new(env!("CARGO_TARGET_TMPDIR")).join("outside-strategy/dies");
    std::fs::write(&deadly, "").expect("written");
    let output = checked(file);
    std::fs::remove_file(&deadly).expect("removed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "ended by itself: {said}");
    assert!(said.contains("liboutside_strategy.so"), "{said}");
}
