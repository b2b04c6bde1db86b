//! A box with cards of five generations, end to end: a stand-in for NVIDIA's management library describes it, stub
//! plugins claim to be the builds, and the real daemon chooses, explains, loads and answers.
//!
//! Nothing here touches a GPU. What a stub computes, echo computes, on whatever device it is told.

mod workshop;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

use workshop::{NEURON, plugin, root, within};

const OLD: &str = "GPU-20800000-0000-0000-0000-000000000000";
const AMPERE: &str = "GPU-30900000-0000-0000-0000-000000000001";
const ADA: &str = "GPU-40900000-0000-0000-0000-000000000002";
const BLACKWELL: &str = "GPU-50900000-0000-0000-0000-000000000003";
const HOPPER: &str = "GPU-20000000-0000-0000-0000-000000000004";

const BUILDS: [&str; 5] = ["cpu-v2", "ampere", "ada", "hopper", "blackwell"];

/// The machine as the stand-in is to show it.
fn cards(driver: &str) -> String {
    format!(
        "driver {driver}\n\
         gpu {OLD} 00000000:01:00.0 7 5 8192 8000 41 0 NVIDIA GeForce RTX 2080\n\
         gpu {AMPERE} 00000000:11:00.0 8 6 24576 20480 55 0 NVIDIA GeForce RTX 3090\n\
         gpu {ADA} 00000000:21:00.0 8 9 24576 24000 50 0 NVIDIA GeForce RTX 4090\n\
         gpu {BLACKWELL} 00000000:31:00.0 12 0 32768 32000 88 0 NVIDIA GeForce RTX 5090\n\
         gpu {HOPPER} 00000000:41:00.0 9 0 144384 140000 -1 0 NVIDIA H200\n\
         process 1 1 4096\n"
    )
}

/// The stand-in for the management library, compiled once, in a folder of its own.
fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fake-nvml-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_nvml/nvml.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
            .arg(folder.join("libnvidia-ml.so.1"))
            .arg(source)
            .output()
            .expect("cc, which links every Rust program, is there");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        folder
    })
}

/// Installs the stub as `<plugins>/<build>/stub.so`, claiming to be that build in that version.
fn install(plugins: &Path, build: &str, version: &str) {
    static STUB: OnceLock<Vec<u8>> = OnceLock::new();
    let mut bytes = STUB.get_or_init(|| std::fs::read(plugin("stub")).unwrap()).clone();
    let own = br#"{"abi":""#;
    let place = bytes.windows(own.len()).position(|window| window == own).expect("its descriptor");
    let end = place + bytes[place..].iter().position(|&byte| byte == 0).unwrap();
    let was = String::from_utf8(bytes[place..end].to_vec()).unwrap();
    let gpu = match build {
        "ampere" => r#","machine_code":[80],"ptx":80,"cuda":13000"#,
        "ada" => r#","machine_code":[89],"ptx":89,"cuda":13000"#,
        "hopper" => r#","machine_code":[90],"ptx":0,"cuda":13000"#,
        "blackwell" => r#","machine_code":[100,120],"ptx":100,"cuda":13000"#,
        _ => "",
    };
    let claims = was
        .replace("cpu-v2", build)
        .replace(
            &format!("\"version\":\"{}\"", env!("CARGO_PKG_VERSION")),
            &format!("\"version\":\"{version}\""),
        )
        .replace('}', &format!("{gpu}}}"));
    assert!(claims.len() <= 512, "the descriptor has room for 512 bytes");
    bytes[place..place + 512].fill(0);
    bytes[place..place + claims.len()].copy_from_slice(claims.as_bytes());
    let folder = plugins.join(build);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("stub.so"), bytes).unwrap();
}

/// A machine and its configuration.
struct MixedBox {
    folder: tempfile::TempDir,
    visible: Option<&'static str>,
}

impl MixedBox {
    fn with(builds: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plugins = folder.path().join("plugins");
        std::fs::create_dir(&plugins).unwrap();
        builds.iter().for_each(|build| install(&plugins, build, "1.0.0"));
        let text = "listen = \"127.0.0.1:0\"\n[plugins]\ndirectories = [\"plugins\"]\nsearch_defaults = false\n\
                    [engine]\nthreads = 1\nmemory = \"1 GiB\"\n[cuda]\ncache = \"cache\"\nlibs = [\"libraries\"]\n";
        std::fs::write(folder.path().join("neuron.toml"), text).unwrap();
        let machine = Self { folder, visible: None };
        machine.becomes(&cards("580.65.06 13000"));
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// From now on the stand-in shows this.
    fn becomes(&self, cards: &str) {
        std::fs::write(self.path("cards"), cards).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(NEURON);
        command.args(words).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if ["NEURON_", "HF_", "CUDA_"].iter().any(|prefix| name.starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        command.env("NEURON_CONFIG", self.path("neuron.toml"));
        command.env("HF_HOME", self.path("hub")).env("HF_HUB_OFFLINE", "1");
        command.env("LD_LIBRARY_PATH", library()).env("FAKE_NVML", self.path("cards"));
        if let Some(visible) = self.visible {
            command.env("CUDA_VISIBLE_DEVICES", visible);
        }
        command
    }

    fn json(&self, words: &[&str]) -> Value {
        let output = self.command(words).output().unwrap();
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{words:?}: {error}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    fn said(&self, words: &[&str]) -> String {
        String::from_utf8(self.command(words).output().unwrap().stdout).unwrap()
    }
}

/// A running `neuron serve`; ended with the test.
struct Served {
    child: Child,
    base: String,
    client: reqwest::Client,
}

impl Served {
    fn start(machine: &MixedBox) -> Self {
        let mut child = machine.command(&["serve"]).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = log.by_ref().find_map(|line| {
            let line = line.unwrap();
            let (_, rest) = line.split_once("neuron serves")?;
            let (_, rest) = rest.split_once("address=")?;
            Some(rest.split_whitespace().next()?.to_owned())
        });
        let base = format!("http://{}", address.expect("it says where it listens before it ends"));
        // Somebody has to read the rest, or the process stops at a full pipe.
        std::thread::spawn(move || log.for_each(drop));
        Self { child, base, client: reqwest::Client::new() }
    }

    async fn get(&self, path: &str) -> Value {
        let response = within(self.client.get(format!("{}{path}", self.base)).send()).await.unwrap();
        response.json().await.unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let response =
            within(self.client.post(format!("{}{path}", self.base)).json(&body).send()).await.unwrap();
        (response.status().as_u16(), within(response.json()).await.unwrap())
    }

    /// Loads the echo model onto devices; where it then is, or the refusal's message.
    async fn load(&self, name: &str, devices: &[&str]) -> Result<Value, String> {
        let model = root().join("fixtures/models/echo");
        let body = json!({"model": model, "name": name, "devices": devices, "wait": true});
        let (status, answer) = self.post("/models/load", body).await;
        if status != 200 {
            return Err(answer["error"]["message"].as_str().unwrap().to_owned());
        }
        let models = self.get("/models").await;
        let status = models["models"].as_array().unwrap().iter().find(|model| model["id"] == name).cloned();
        Ok(status.unwrap()["details"].clone())
    }

    async fn says_over_again(&self, name: &str) {
        let messages = json!([{"role": "user", "content": "once more"}]);
        let (status, answer) = self
            .post("/v1/chat/completions", json!({"model": name, "messages": messages, "temperature": 0}))
            .await;
        assert_eq!(
            (status, &answer["choices"][0]["message"]["content"]),
            (200, &json!("once more")),
            "{answer}"
        );
    }

    /// Environment and thread names of the workers.
    fn workers(&self) -> Vec<(String, Vec<String>)> {
        let own = format!("PPid:\t{}\n", self.child.id());
        let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
        let workers = processes.filter(|process| {
            std::fs::read_to_string(process.join("status")).is_ok_and(|status| status.contains(&own))
        });
        workers
            .map(|process| {
                let environment = std::fs::read(process.join("environ")).unwrap_or_default();
                let tasks = std::fs::read_dir(process.join("task")).into_iter().flatten().flatten();
                let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
                let names = names.map(|name| name.trim().to_owned()).collect();
                (String::from_utf8_lossy(&environment).replace('\0', "\n"), names)
            })
            .collect()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Already ended: nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn of<'a>(list: &'a Value, key: &str, value: &str) -> &'a Value {
    list.as_array()
        .unwrap()
        .iter()
        .find(|entry| entry[key] == value)
        .unwrap_or_else(|| panic!("no {value} in {list:#}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_card_gets_the_build_made_for_it() {
    let machine = MixedBox::with(&BUILDS);
    let served = Served::start(&machine);
    let cases = [
        ("cuda-1", "ampere", AMPERE, "cuda-dev-1"),
        ("GPU-409", "ada", ADA, "cuda-dev-2"),
        ("31:00.0", "blackwell", BLACKWELL, "cuda-dev-3"),
        ("4", "hopper", HOPPER, "cuda-dev-4"),
    ];
    for (place, (device, build, uuid, thread)) in cases.into_iter().enumerate() {
        let name = format!("m{place}");
        let details = served.load(&name, &[device]).await.unwrap();
        assert_eq!(details["build"], build, "{details}");
        assert_eq!(details["devices"], json!([thread.replace("dev-", "")]));
        assert!(details["warnings"].is_null(), "{details}");
        served.says_over_again(&name).await;
        let workers = served.workers();
        let (environment, threads) = workers
            .iter()
            .find(|(_, threads)| threads.iter().any(|name| name == thread))
            .unwrap_or_else(|| {
                panic!("no worker has a thread {thread}: {workers:?}");
            });
        let cache = machine.path("cache");
        for expected in [
            format!("CUDA_VISIBLE_DEVICES={uuid}"),
            "CUDA_DEVICE_ORDER=PCI_BUS_ID".into(),
            "CUDA_MODULE_LOADING=LAZY".into(),
            format!("CUDA_CACHE_PATH={}", cache.display()),
            format!("NEURON_CUDA_LIBS={}", machine.path("libraries").display()),
        ] {
            assert!(
                environment.lines().any(|line| line == expected),
                "{expected} is missing in\n{environment}"
            );
        }
        assert_eq!(threads.iter().filter(|name| name.starts_with("cuda-dev-")).count(), 1, "{threads:?}");
    }
    // Without a wish, the card with most memory left; split over two that share no machine code, PTX for both.
    assert_eq!(served.load("any", &[]).await.unwrap()["devices"], json!(["cuda-4"]));
    let pair = served.load("pair", &["cuda-3", "cuda-4"]).await.unwrap();
    assert_eq!((&pair["build"], &pair["devices"]), (&json!("ada"), &json!(["cuda-3", "cuda-4"])));
    let warning = pair["warnings"][0].as_str().unwrap();
    assert!(warning.contains("the driver compiles ada for cuda-3 and cuda-4"), "{warning}");
    served.says_over_again("pair").await;
    let both = format!("CUDA_VISIBLE_DEVICES={BLACKWELL},{HOPPER}");
    let workers = served.workers();
    let (environment, threads) =
        workers.iter().find(|(environment, _)| environment.contains(&both)).expect("a worker sees both");
    assert!(environment.contains("CUDA_MODULE_LOADING=EAGER"), "{environment}");
    assert!(["cuda-dev-3", "cuda-dev-4"].iter().all(|thread| threads.iter().any(|name| name == thread)));
    let alike = served.load("alike", &["cuda-1", "cuda-2"]).await.unwrap();
    assert_eq!(
        (&alike["build"], &alike["warnings"]),
        (&json!("ampere"), &Value::Null),
        "one build serves both"
    );
    served.says_over_again("alike").await;
    let on_cpu = served.load("on-cpu", &["cpu"]).await.unwrap();
    assert_eq!((&on_cpu["build"], &on_cpu["devices"]), (&json!("cpu-v2"), &json!(["cpu-0"])));
    assert!(served.workers().iter().any(|(environment, _)| environment.contains("CUDA_VISIBLE_DEVICES=\n")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_is_refused_and_never_replaced_by_the_processor() {
    let machine = MixedBox::with(&["cpu-v2", "ada", "hopper"]);
    machine.becomes(&cards("580.65.06 13000").replace("55 0 NVIDIA", "55 1 NVIDIA"));
    let served = Served::start(&machine);
    let cases: [(&[&str], &str); 8] = [
        (&["cuda-0"], "ada holds no machine code for compute capability 7.5, only for 8.9"),
        (&["cuda-1"], "cannot be used: it is split into MIG instances, which neuron does not use"),
        (&["cuda-9"], "the device cuda-9 is not here; there are cpu-0, cuda-0 (NVIDIA GeForce RTX 2080)"),
        (&["GPU-20"], "may be cuda-0 (GPU-20800000-0000-0000-0000-000000000000) or cuda-4"),
        (&["MIG-1/2"], "is a MIG instance; neuron computes on whole GPUs only"),
        (&["cuda-2", "21:00.0"], "the device 21:00.0 is named twice"),
        (&["cpu", "cuda-2"], "over GPUs or over parts of the processor, not over both"),
        (&["cuda-4", "cuda-0"], "cuda-4 (NVIDIA H200) and cuda-0 (NVIDIA GeForce RTX 2080): no single build"),
    ];
    for (place, (devices, expected)) in cases.into_iter().enumerate() {
        let refused = served.load(&format!("m{place}"), devices).await.unwrap_err();
        assert!(refused.contains(expected), "{devices:?}: {refused}");
    }
    // PTX, with a warning, where there is no machine code.
    let details = served.load("compiled", &["cuda-3"]).await.unwrap();
    assert_eq!(details["build"], "ada");
    let warning = details["warnings"][0].as_str().unwrap();
    assert!(warning.contains("PTX for 8.9 that the driver compiles for 12.0"), "{warning}");

    let old = MixedBox::with(&["cpu-v2", "hopper"]);
    old.becomes(&cards("570.10 12080"));
    let served = Served::start(&old);
    let refused = served.load("m", &["cuda-4"]).await.unwrap_err();
    assert!(refused.contains("compiled with CUDA 13.0; the driver only knows 12.8"), "{refused}");
    // Nobody asked for a GPU: the processor serves, and the model says why it does.
    let details = served.load("n", &[]).await.unwrap();
    assert_eq!(details["devices"], json!(["cpu-0"]));
    let warning = details["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("the processor computes, because no GPU can: cuda-0"), "{warning}");
    served.says_over_again("n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_lost_gets_another_worker() {
    let machine = MixedBox::with(&BUILDS);
    let served = Served::start(&machine);
    let model = root().join("fixtures/models/echo");
    let options = json!({"fault": {"kind": "device_lost", "text": "boom"}});
    let body = json!({"model": model, "name": "m", "devices": ["cuda-2"], "options": options, "wait": true});
    assert_eq!(served.post("/models/load", body).await.0, 200);
    let worker = || {
        let tasks =
            |pid: &str| std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let own = served.child.id().to_string();
        let children =
            tasks(&own).filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        let children: Vec<String> = children
            .flat_map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        children.into_iter().find(|pid| {
            tasks(pid).any(|task| {
                std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "cuda-dev-2\n")
            })
        })
    };
    let first = worker().expect("a worker with a thread for the card");
    let messages = json!([{"role": "user", "content": "boom"}]);
    let (status, answer) =
        served.post("/v1/chat/completions", json!({"model": "m", "messages": messages})).await;
    assert_eq!(status, 503, "lost within one request, and worth another try: {answer}");
    served.says_over_again("m").await;
    let second = worker().expect("another worker for the same card");
    assert_ne!(first, second);
    let models = served.get("/models").await;
    assert_eq!(models["models"][0]["details"]["devices"], json!(["cuda-2"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_shows_cards_builds_and_reasons() {
    let machine = MixedBox::with(&["cpu-v2", "ampere", "hopper"]);
    let manifest = json!({"build": "hopper", "sass": ["sm_90a"], "ptx": [], "cuda": "13.0", "git": "abc",
        "hardware_runs": ["NVIDIA H200"]});
    std::fs::write(machine.path("plugins/hopper/stub.json"), manifest.to_string()).unwrap();
    std::fs::write(machine.path("plugins/ampere/stub.json"), r#"{"sha256": "00"}"#).unwrap();
    let served = Served::start(&machine);
    served.load("m", &["cuda-4"]).await.unwrap(); // the catalogue has looked by then
    let discovery = served.get("/discovery").await;
    let host = &discovery["host"];
    assert_eq!((&host["driver"], &host["cuda"]), (&json!("580.65.06"), &json!("13.0")));
    assert!(host["physical_cores"].as_u64().unwrap() > 0 && host["affinity"].as_u64().unwrap() > 0);
    let devices = &discovery["devices"];
    assert_eq!(devices.as_array().unwrap().len(), 6);
    let ampere = of(devices, "id", "cuda-1");
    assert_eq!((&ampere["uuid"], &ampere["pci_bus"]), (&json!(AMPERE), &json!("0000:11:00.0")));
    assert_eq!((&ampere["compute_capability"], &ampere["temperature_celsius"]), (&json!(86), &json!(55)));
    assert_eq!(ampere["memory_free_bytes"], json!(20480u64 << 20));
    assert_eq!(ampere["memory_others_bytes"], json!(4096u64 << 20));
    let build = &ampere["builds"][0];
    assert_eq!((&build["architecture"], &build["build"]), (&json!("echo"), &json!("ampere")));
    assert_eq!(build["reason"], "ampere holds machine code for 8.0, which runs on 8.6");
    let considered = build["considered"].as_array().unwrap();
    assert_eq!(considered.len(), 3);
    assert!(considered.iter().all(|other| other["fits"] == (other["build"] == "ampere")));
    let old = of(devices, "id", "cuda-0");
    assert!(
        old["fault"].as_str().unwrap().contains("no plugin here computes on compute capability 7.5"),
        "{old}"
    );
    assert!(of(devices, "id", "cuda-4")["temperature_celsius"].is_null());
    let hopper = of(&discovery["plugins"], "build", "hopper");
    assert_eq!(hopper["chosen_for"], json!(["cuda-4"]));
    assert_eq!(
        (&hopper["manifest"]["sass"], &hopper["manifest"]["git"]),
        (&json!(["sm_90a"]), &json!("abc"))
    );
    assert_eq!(hopper["manifest"]["hardware_runs"], json!(["NVIDIA H200"]));
    let doubted = of(&discovery["plugins"], "build", "ampere");
    assert!(doubted["reason"].as_str().unwrap().contains("was written for another file"), "{doubted}");
    // Figures only, where they are asked for every second.
    let models = served.get("/models").await;
    assert!(of(&models["devices"], "id", "cuda-1")["builds"].is_null());
    assert_eq!(of(&models["devices"], "id", "cuda-1")["memory_free_bytes"], json!(20480u64 << 20));
    let promised = of(&models["devices"], "id", "cuda-4")["memory_leased_bytes"].as_u64().unwrap();
    assert!(promised > 0, "what the model was promised there and does not hold yet");

    machine.becomes("driver 580.65.06 13000\n");
    assert_eq!(served.get("/discovery").await["devices"].as_array().unwrap().len(), 1, "cards may go");
}

#[test]
fn plugins_and_doctor_explain_every_device() {
    let mut machine = MixedBox::with(&["cpu-v2", "ampere", "hopper"]);
    let plugins = machine.json(&["plugins", "--json"]);
    let builds: Vec<(&str, &str)> = plugins["served"]
        .as_array()
        .unwrap()
        .iter()
        .map(|served| (served["device"].as_str().unwrap(), served["build"].as_str().unwrap_or("-")))
        .collect();
    let expected = [
        ("cpu-0", "cpu-v2"),
        ("cuda-0", "-"),
        ("cuda-1", "ampere"),
        ("cuda-2", "ampere"),
        ("cuda-3", "ampere"),
        ("cuda-4", "hopper"),
    ];
    assert_eq!(builds, expected);
    let said = machine.said(&["plugins"]);
    for expected in [
        "cuda-4  NVIDIA H200 (compute capability 9.0, 136.7 GiB of 141.0 GiB free)  0000:41:00.0  GPU-20000000",
        "hopper holds machine code for compute capability 9.0",
        "warning: ampere holds PTX for 8.0 that the driver compiles for 12.0; the first load takes minutes",
        "no build of a plugin for model_type \"echo\" fits the device: ampere holds no machine code for compute capability 7.5",
    ] {
        assert!(said.contains(expected), "{expected} is missing in\n{said}");
    }
    let findings = machine.json(&["doctor", "--json"]);
    let about = |what: &str| {
        let all = findings.as_array().unwrap();
        let found = all.iter().find(|finding| finding["message"].as_str().unwrap().contains(what));
        found.unwrap_or_else(|| panic!("nothing about {what} in {findings:#}")).clone()
    };
    for (what, verdict) in [
        ("5 GPU(s), driver 580.65.06", "good"),
        (
            "cuda-1 NVIDIA GeForce RTX 3090, compute capability 8.6, 20.0 GiB of 24.0 GiB free, 4.0 GiB held by others, 55",
            "good",
        ),
        ("cuda-3 NVIDIA GeForce RTX 5090, compute capability 12.0", "notice"), // 88 °C
        ("on cuda-0 (NVIDIA GeForce RTX 2080): nothing", "notice"),
        ("on cuda-4 (NVIDIA H200): echo (hopper)", "good"),
        ("on cuda-3 (NVIDIA GeForce RTX 5090): echo (ampere); ampere holds PTX", "notice"),
    ] {
        assert_eq!(about(what)["verdict"], verdict, "{what}: {}", about(what));
    }

    machine.visible = Some("1,GPU-nothing,4");
    let plugins = machine.json(&["plugins", "--json"]);
    let usable = plugins["devices"].as_array().unwrap().iter().filter(|device| device["fault"].is_null());
    let usable: Vec<&str> = usable.map(|device| device["device"].as_str().unwrap()).collect();
    assert_eq!(usable, ["cpu-0", "cuda-1"]);
    assert!(machine.said(&["plugins"]).contains("CUDA_VISIBLE_DEVICES ends at \"GPU-nothing\""));
    assert!(machine.said(&["doctor"]).contains("cuda-4 NVIDIA H200 is not used: CUDA_VISIBLE_DEVICES="));

    machine.visible = None;
    std::fs::remove_file(machine.path("cards")).unwrap();
    let said = machine.said(&["plugins"]);
    assert!(said.contains("NVIDIA's kernel module is not loaded"), "{said}");
    machine.becomes(&cards("570.10 12080"));
    assert!(machine.said(&["doctor"]).contains("upgrade NVIDIA's driver to 580 or newer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parts_of_a_model_share_one_build_or_are_refused() {
    let machine = MixedBox::with(&["hopper", "blackwell"]);
    let served = Served::start(&machine);
    let refused = served.load("pair", &["cuda-3", "cuda-4"]).await.unwrap_err();
    for expected in ["fits all of them", "hopper holds no machine code for compute capability 12.0"] {
        assert!(refused.contains(expected), "{expected} is missing in {refused}");
    }
    served.load("m", &["cuda-3"]).await.unwrap();
    served.load("n", &["cuda-4"]).await.unwrap();
}
