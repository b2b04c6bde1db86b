//! What a configuration says, and what it is refused for.

use super::*;

fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Loaded, String> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::parse(text, Path::new("/etc/neuron/neuron.toml"), environment).map_err(|error| error.to_string())
}

const SMALL: &str = r#"
    listen = "127.0.0.1:4000"
    [engine]
    memory = "2 GiB"
    options = { echo = { step_delay_ms = 1 } }
    [plugins]
    directories = ["plugins", "/opt/plugins"]
    [[models]]
    source = "org/name@main:file.gguf"
    id = "smol"
    aliases = ["gpt-4"]
    quantize = "q8_0"
    [[models]]
    source = "./local"
    on_demand = true
"#;

#[test]
fn a_file_is_understood() {
    let config = parse(SMALL, &[]).unwrap().config;
    assert_eq!(config.listen, "127.0.0.1:4000");
    assert_eq!(config.plugins.directories, [Path::new("/etc/neuron/plugins"), Path::new("/opt/plugins")]);
    let options = config.models_options(crate::worker::process::WorkerCommand::program("neuron"));
    assert_eq!(options.memory_bytes, Some(2 << 30));
    assert_eq!(options.architecture_options, r#"{"echo":{"step_delay_ms":1}}"#);
    let request = config.models[0].request();
    assert_eq!(request.model.as_str(), "org/name@main:file.gguf");
    assert_eq!(request.name.as_ref().map(|name| name.as_str()), Some("smol"));
    assert_eq!(request.quant.as_deref(), Some("q8_0"));
    assert_eq!(config.models[1].source, "/etc/neuron/./local");
}

#[test]
fn a_model_has_settings_of_its_own() {
    let text = "[[models]]\nsource = \"a/b\"\ndevices = [\"cuda-1\", \"GPU-x\"]\nprefix_cache_bytes = \"2 GiB\"\n\
                options = { step_delay_ms = 1, deep = { er = true } }\n[[models]]\nsource = \"c/d\"\n";
    let config = parse(text, &[]).unwrap().config;
    let request = config.models[0].request();
    assert_eq!(request.prefix_cache_bytes, Some(2 << 30));
    assert_eq!(request.devices, ["cuda-1".into(), "GPU-x".into()]);
    let options = serde_json::Value::Object(request.options.unwrap());
    assert_eq!(options, serde_json::json!({"step_delay_ms": 1, "deep": {"er": true}}));
    let plain = config.models[1].request();
    assert_eq!((plain.options, plain.prefix_cache_bytes), (None, None));
}

#[test]
fn cuda_libraries_come_in_front_and_relative_paths_start_at_the_file() {
    let text = "[cuda]\nlibs = [\"libs\"]\ncache = \"cache\"\n";
    let config = parse(text, &[("NEURON_CUDA_LIBS", "/a:/b")]).unwrap().config;
    let options = config.models_options(crate::worker::process::WorkerCommand::program("neuron")).cuda;
    let expected: Vec<PathBuf> = ["/a", "/b", "/etc/neuron/libs"].map(PathBuf::from).to_vec();
    assert_eq!((options.libs, options.cache), (expected, Some("/etc/neuron/cache".into())));
}

#[test]
fn without_a_file_everything_has_a_default() {
    let loaded = parse("", &[]).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert!(loaded.settings().iter().all(|setting| setting.origin == Origin::Default));
    let path = loaded.config.plugins.search_path();
    assert_eq!(path.last().unwrap(), Path::new(SYSTEM_PLUGINS));
}

#[test]
fn unknown_keys_are_named_with_the_nearest() {
    let cases = [
        ("lissten = \"x\"", "neuron.toml: there is no setting 'lissten'; did you mean 'listen'?"),
        ("[engin]\nslots = 1", "'engin'; did you mean 'engine'?"),
        ("[limits]\nbody_mb = 3", "'limits.body_mb'; did you mean 'body_mib'?"),
        ("[limits]\nthreads = 3", "'limits.threads'; it belongs into [engine]"),
        ("[log]\nlisten = \"x\"", "'log.listen'; it belongs to the top of the file"),
        ("[hub]\npassword = \"x\"", "'hub.password'; there are endpoint, cache, offline"),
        (
            "[[models]]\nsource = \"a\"\n[[models]]\nsorce = \"b\"",
            "'models[1].sorce'; did you mean 'source'?",
        ),
    ];
    for (text, expected) in cases {
        let error = parse(text, &[]).expect_err(text);
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn wrong_values_are_named() {
    let cases = [
        ("listen = \"nowhere\"", "write host:port"),
        ("[engine]\nslots = 0", "engine.slots is 0"),
        ("[engine]\nslots = \"many\"", "line 2"),
        ("[engine]\nmemory = \"much\"", "24 GiB"),
        ("[engine]\nstate_share = 1.5", "engine.state_share is 1.5"),
        ("[log]\nfilter = \"info,=\"", "log.filter"),
        ("[[models]]\nid = \"a\"", "models[0].source is missing"),
        ("[[models]]\nsource = \"a\"\n[[models]]\nsource = \"b\"\naliases = [\"a\"]", "used twice"),
        ("[limits", "neuron.toml"),
        ("models = 3", "line 1"),
    ];
    for (text, expected) in cases {
        let error = parse(text, &[]).expect_err(text);
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn an_allow_list_is_read_and_its_signature_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugins.sha256");
    std::fs::write(&path, format!("{}  echo.so\n", "a".repeat(64))).unwrap();
    let mut plugins = Plugins { allow_list: Some(path.clone()), ..Plugins::default() };
    assert!(plugins.catalogue_options().unwrap().policy.allowed.is_some());
    plugins.trusted_keys = vec!["RWQ".into()];
    let error = plugins.catalogue_options().unwrap_err().to_string();
    assert!(error.contains("plugins.sha256.minisig"), "{error}");
    std::fs::write(path, "nonsense").unwrap();
    plugins.trusted_keys.clear();
    let error = plugins.catalogue_options().unwrap_err().to_string();
    assert!(error.contains("plugins.sha256: line 1"), "{error}");
    assert!(
        parse("[plugins]\ntrusted_keys = [\"x\"]", &[]).unwrap_err().contains("plugins.trusted_keys are set")
    );
}

#[test]
fn the_environment_overrides_and_every_value_knows_its_origin() {
    let loaded = parse(
        SMALL,
        &[
            ("NEURON_LISTEN", "0.0.0.0:1"),
            ("NEURON_PLUGINS", "/first:/second"),
            ("NEURON_LOG", "debug"),
            ("NEURON_ENGINE_SLOTS", "3"),
            ("NEURON_ENGINE_MEMORY", "1 GiB"),
            ("NEURON_ENGINE_OPTIONS", "{ a = 1 }"),
            ("NEURON_IMAGES_ALLOWED_HOSTS", "a.example, b.example"),
            ("NEURON_NAME", "42"),
            ("NEURON_ENDPOINT", "http://elsewhere"),
            ("NEURON_SERVICE_HOST", "10.0.0.1"),
            ("NEURON_PORT", "tcp://10.0.0.1:13131"),
            ("HOME", "/root"),
        ],
    )
    .unwrap();
    let config = &loaded.config;
    assert_eq!(
        (config.listen.as_str(), config.log.filter.as_str(), config.name.as_str()),
        ("0.0.0.0:1", "debug", "42")
    );
    assert_eq!((config.engine.slots, config.engine.memory), (3, Some(1 << 30)));
    assert_eq!(config.engine.options["a"].as_integer(), Some(1));
    assert_eq!(config.images.allowed_hosts, ["a.example", "b.example"]);
    let directories: Vec<_> = config.plugins.directories.iter().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(directories, ["/first", "/second", "/etc/neuron/plugins", "/opt/plugins"]);

    let settings = loaded.settings();
    let origin = |section: &str, key: &str| {
        settings
            .iter()
            .find(|setting| setting.section == section && setting.key == key)
            .unwrap()
            .origin
            .clone()
    };
    assert_eq!(origin("", "listen"), Origin::Environment("NEURON_LISTEN".into()));
    assert_eq!(origin("plugins", "directories"), Origin::Environment("NEURON_PLUGINS".into()));
    assert_eq!(origin("engine", "max_step_tokens"), Origin::Default);
    assert_eq!(origin("", "models"), Origin::File);
}

#[test]
fn a_wrong_variable_is_named() {
    for (name, value, expected) in [
        ("NEURON_LISSTEN", "x", "did you mean 'NEURON_LISTEN'?"),
        ("NEURON_ENGINE_SLOT", "1", "did you mean 'NEURON_ENGINE_SLOTS'?"),
        ("NEURON_SOMETHING_ELSE_ALTOGETHER", "1", "NEURON_SOMETHING_ELSE_ALTOGETHER"),
        ("NEURON_ENGINE_SLOTS", "many", "NEURON_ENGINE_SLOTS"),
    ] {
        let error = parse(SMALL, &[(name, value)]).expect_err(name);
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn the_example_file_says_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/neuron.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let loaded = Config::parse(&text, &path, []).unwrap();
    assert_eq!(loaded.config, Config::default(), "the example changes nothing");

    // A # right before a key or section comments it out; with all of them in force the file must still parse.
    let uncommented: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with([' ', '#']) => format!("{setting}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let loaded = Config::parse(&uncommented, &path, []).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(loaded.config.models.len(), 2);
    let unmentioned: Vec<String> = loaded
        .settings()
        .into_iter()
        .filter(|setting| setting.origin == Origin::Default)
        .map(|setting| format!("{}.{}", setting.section, setting.key))
        .collect();
    assert!(unmentioned.is_empty(), "the example does not mention {unmentioned:?}");
}
