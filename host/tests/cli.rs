//! What a person at a shell sees: the real binary, the echo plugin, a model folder.

mod workshop;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use workshop::{NEURON, install_echo, signal};

/// A folder with a plugin directory in it, and nothing of this machine's configuration.
struct House {
    folder: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        install_echo(&folder.path().join("plugins"));
        let house = Self { folder };
        house.configure("");
        house
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn configure(&self, more: &str) {
        let text = format!(
            "listen = \"127.0.0.1:0\"\n[plugins]\ndirectories = [\"plugins\"]\nsearch_defaults = false\n\
             [engine]\nthreads = 1\nmemory = \"1 GiB\"\n{more}"
        );
        std::fs::write(self.path("neuron.toml"), text).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(NEURON);
        command.args(words).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("NEURON_") || name.to_string_lossy().starts_with("HF_") {
                command.env_remove(name);
            }
        }
        command.env("NEURON_CONFIG", self.path("neuron.toml"));
        command.env("HF_HOME", self.path("hub")).env("HF_HUB_OFFLINE", "1");
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Standard output of a command that succeeds.
    fn said(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, words: &[&str]) -> Value {
        let said = self.said(words);
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{words:?}: {error}: {said}"))
    }

    /// What a command that fails says on standard error.
    fn complained(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(!output.status.success(), "{words:?} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }
}

/// The model every test talks to.
fn echo_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/models/echo")
}

/// A running `neuron serve`; ended with the test.
struct Served {
    child: Child,
    endpoint: String,
}

impl Served {
    fn start(house: &House) -> Self {
        let mut child = house.command(&["serve"]).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = log.by_ref().find_map(|line| {
            let line = line.unwrap();
            let (_, rest) = line.split_once("neuron serves")?;
            let (_, rest) = rest.split_once("address=")?;
            Some(rest.split_whitespace().next()?.to_owned())
        });
        let endpoint = format!("http://{}", address.expect("it says where it listens before it ends"));
        // Somebody has to read the rest, or the process stops at a full pipe.
        std::thread::spawn(move || log.for_each(drop));
        Self { child, endpoint }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Already ended: nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The words of a command that asks this endpoint.
fn at<'a>(words: &[&'a str], endpoint: &'a str) -> Vec<&'a str> {
    [words, &["--endpoint", endpoint]].concat()
}

#[test]
fn a_node_is_served_asked_and_ended() {
    let house = House::new();
    let model = echo_model();
    let source = format!(
        "[[models]]\nid = \"echo\"\nsource = {:?}\naliases = [\"parrot\"]\n",
        model.to_str().unwrap()
    );
    house.configure(&source);
    let mut served = Served::start(&house);
    let endpoint = served.endpoint.clone();
    let at = |words: &[&'static str]| at(words, &endpoint);

    // Joins the load the configuration began.
    let loaded = house.json(&at(&["load", "echo", "--json"]));
    assert_eq!((&loaded["model"], &loaded["phase"]), (&"echo".into(), &"ready".into()));
    let models = house.json(&at(&["models", "--json"]));
    assert_eq!(
        (&models["models"][0]["id"], &models["models"][0]["state"]),
        (&"echo".into(), &"ready".into())
    );
    assert!(house.said(&at(&["models"])).contains("echo (parrot)"));

    let answer = house.said(&at(&["run", "echo", "Polly wants a cracker"]));
    assert!(answer.contains("Polly wants a cracker"), "{answer}");
    let answer = house.json(&at(&["run", "parrot", "again", "--json", "--set", "max_tokens=3"]));
    assert_eq!(
        (&answer["usage"]["completion_tokens"], &answer["finish_reason"]),
        (&3.into(), &"length".into())
    );

    let gone = house.json(&at(&["unload", "echo", "--json"]));
    assert_eq!(gone["model"], "echo");
    let complaint = house.complained(&at(&["unload", "echo"]));
    assert!(complaint.contains("echo"), "{complaint}");
    let complaint = house.complained(&at(&["load", "/no/such/model"]));
    assert!(complaint.contains("/no/such/model"), "{complaint}");

    signal(served.child.id(), "TERM");
    assert!(served.child.wait().unwrap().success(), "SIGTERM is a normal end");
    let complaint = house.complained(&at(&["models"]));
    assert!(complaint.contains("neuron serve"), "it says what to do: {complaint}");
}

#[test]
fn run_needs_nothing_else() {
    let house = House::new();
    let model = echo_model();
    let model = model.to_str().unwrap();
    let answer = house.said(&["run", model, "Nobody else here"]);
    assert!(answer.contains("Nobody else here"), "{answer}");

    let mut piped =
        house.command(&["run", model]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    piped.stdin.take().unwrap().write_all(b"through a pipe").unwrap();
    let output = piped.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("through a pipe"));

    let complaint = house.complained(&["run", "/no/such/model", "x"]);
    assert!(complaint.contains("/no/such/model"), "{complaint}");
    let complaint = house.complained(&["run", model, "x", "--set", "temperature=hot"]);
    assert!(complaint.contains("temperature"), "{complaint}");
}

#[test]
fn plugins_and_their_refusals_are_explained() {
    let house = House::new();
    std::fs::write(house.path("plugins/broken.so"), "no library").unwrap();
    let plugins = house.json(&["plugins", "--json"]);
    assert_eq!(plugins["served"][0]["architecture"], "echo");
    assert!(plugins["refused"][0]["reason"].as_str().unwrap().contains("broken.so"), "{plugins}");
    let said = house.said(&["plugins"]);
    for expected in ["cpu-0", "echo.so", "refused", "broken.so"] {
        assert!(said.contains(expected), "{expected} is missing in\n{said}");
    }
}

#[test]
fn a_new_plugin_is_begun_once_and_says_what_comes_next() {
    let house = House::new();
    let (folder, sdk) = (house.path("most-free"), workshop::root().join("plugin-api/sdk"));
    let (into, sdk) = (folder.to_str().unwrap(), sdk.to_str().unwrap());
    let begin = |name, more: &[&'static str]| {
        [&["plugin", "new", name, "--kind", "router", "--into", into], more].concat()
    };
    let from = [&begin("most-free", &[])[..], &["--sdk-path", sdk]].concat();
    let said = house.said(&from);
    for next in ["cargo test", "neuron plugin check", "neuron plugin install"] {
        assert!(said.contains(next), "{next} is missing in\n{said}");
    }
    for file in ["Cargo.toml", "README.md", "src/lib.rs"] {
        assert!(folder.join(file).is_file(), "{file}");
    }
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    assert!(manifest.contains(sdk) && !manifest.contains("workspace = true"), "{manifest}");

    std::fs::write(folder.join("src/lib.rs"), "// an afternoon's work").unwrap();
    let complaint = house.complained(&from);
    assert!(complaint.contains("most-free"), "{complaint}");
    assert_eq!(std::fs::read_to_string(folder.join("src/lib.rs")).unwrap(), "// an afternoon's work");

    let complaint = house.complained(&begin("other", &[]));
    assert!(complaint.contains("--sdk-path") && complaint.contains("--sdk-version"), "{complaint}");
    let complaint = house.complained(&begin("Not A Name", &["--sdk-version", "1.0.0"]));
    assert!(complaint.contains("Not A Name"), "{complaint}");
}

#[test]
fn a_plugin_is_checked_promise_by_promise() {
    let house = House::new();
    let echo = workshop::echo_plugin().to_str().unwrap();
    let said = house.said(&["plugin", "check", echo, "--loads", "3"]);
    assert!(said.contains("kept"), "{said}");
    let report = house.json(&["plugin", "check", echo, "--loads", "3", "--json"]);
    let findings = report["findings"].as_array().unwrap();
    assert!(findings.len() > 10, "{report}");
    assert!(findings.iter().all(|finding| finding["verdict"] != "broken"), "{report}");

    let broken = house.path("broken.so");
    std::fs::write(&broken, "no library").unwrap();
    let output = house.run(&["plugin", "check", broken.to_str().unwrap(), "--json"]);
    assert_eq!(output.status.code(), Some(1), "a script can tell");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    assert!(findings.iter().any(|finding| finding["verdict"] == "broken"), "{report}");
    let complaint = house.complained(&["plugin", "check", "/no/such/plugin.so"]);
    assert!(complaint.contains("/no/such/plugin.so"), "{complaint}");
}

#[test]
fn only_a_plugin_that_keeps_its_promises_is_installed() {
    let house = House::new();
    let (directory, offered) = (house.path("installed"), house.path("offered"));
    let to = directory.to_str().unwrap();
    let echo = workshop::echo_plugin().to_str().unwrap();
    let place = house.said(&["plugin", "install", echo, "--to", to]);
    let place = Path::new(place.trim());
    assert!(place.starts_with(&directory) && place.ends_with("echo.so") && place.is_file(), "{place:?}");

    // What needs weights to be tried in full is installed all the same: the rest is skipped, not broken.
    let llama = workshop::plugin("llama");
    let said = house.said(&["plugin", "install", llama.to_str().unwrap(), "--to", to]);
    assert!(said.trim().ends_with("llama.so"), "{said}");
    std::fs::remove_file(said.trim()).unwrap();

    std::fs::create_dir(&offered).unwrap();
    std::fs::write(offered.join("broken.so"), "no library").unwrap();
    std::fs::copy(echo, offered.join("echo.so")).unwrap();
    std::fs::remove_file(place).unwrap();
    let output = house.run(&["plugin", "install", offered.to_str().unwrap(), "--to", to]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("broken.so was not installed"), "{said}");
    assert!(place.is_file(), "the good one is");
    let installed = std::fs::read_dir(place.parent().unwrap()).unwrap().count();
    assert_eq!(installed, 1, "and nothing else");

    std::fs::remove_dir_all(house.path("plugins")).unwrap();
    let plugins = house.command(&["plugins", "--json"]).env("NEURON_PLUGINS", to).output().unwrap();
    let plugins: Value = serde_json::from_slice(&plugins.stdout).unwrap();
    let served = plugins["served"].to_string();
    assert!(served.contains("echo"), "{plugins}");
}

#[test]
fn the_doctor_finds_what_is_broken() {
    let house = House::new();
    let finding = |findings: &Value, check: &str| {
        findings.as_array().unwrap().iter().find(|finding| finding["check"] == check).cloned().unwrap()
    };
    let findings: Value = serde_json::from_slice(&house.run(&["doctor", "--json"]).stdout).unwrap();
    for check in ["processor", "memory", "configuration", "port", "hub", "cache"] {
        assert_ne!(finding(&findings, check)["verdict"], "broken", "{check}: {findings}");
    }
    assert!(finding(&findings, "plugins")["message"].as_str().unwrap().contains("echo"));

    std::fs::remove_dir_all(house.path("plugins")).unwrap();
    let output = house.run(&["doctor", "--json"]);
    assert!(!output.status.success());
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let plugins = finding(&findings, "plugins");
    assert_eq!(plugins["verdict"], "broken");
    assert!(plugins["remedy"].as_str().unwrap().contains("NEURON_PLUGINS"));
}

#[test]
fn bench_measures_through_a_worker() {
    let house = House::new();
    let model = echo_model();
    let words =
        ["--model", model.to_str().unwrap(), "--prompt-tokens", "16", "--generate-tokens", "8", "--json"];
    let figures = house.json(&[&["bench", "--threads", "1", "--runs", "1"], &words[..]].concat());
    assert_eq!(figures["plugin"], "echo");
    for figure in ["prefill_tokens_per_second", "decode_tokens_per_second", "memory_bytes_per_second"] {
        assert!(figures[figure].as_f64().unwrap() > 0.0, "{figure}: {figures}");
    }
}

#[test]
fn settings_say_where_they_come_from() {
    let house = House::new();
    let output =
        house.command(&["config", "show", "--json"]).env("NEURON_ENGINE_SLOTS", "3").output().unwrap();
    let settings: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(settings["engine"]["slots"]["value"], 3);
    assert_eq!(settings["engine"]["slots"]["origin"], "environment, NEURON_ENGINE_SLOTS");
    assert_eq!(settings["listen"]["origin"], "file");

    house.configure("[limts]\n");
    let complaint = house.complained(&["serve"]);
    assert!(complaint.contains("neuron.toml") && complaint.contains("did you mean 'limits'"), "{complaint}");
}

#[test]
fn shells_get_completions() {
    let house = House::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(house.said(&["completions", shell]).contains("neuron"), "{shell}");
    }
}
