//! Opening a file: what is accepted, and with which sentence the rest is refused.

mod built;

use std::path::{Path, PathBuf};
use std::time::Duration;

use plugin_loader::{
    AllowList, Cause, HostServices, Level, Manifest, Ownership, Plugin, Policy, Refusal, descriptor, install,
    probe_in_child, scan,
};

fn open(path: &Path) -> Result<Plugin, Refusal> {
    open_under(path, &Policy::anything())
}

fn open_under(path: &Path, policy: &Policy) -> Result<Plugin, Refusal> {
    Plugin::open_under(path, &HostServices::new(|_| {}, Level::OFF, 1), policy)
}

/// A refusal is one sentence that begins with the file.
fn assert_sentence(refusal: &Refusal, contains: &str) {
    let sentence = refusal.to_string();
    assert!(sentence.starts_with(&format!("{}: ", refusal.path.display())), "{sentence}");
    assert!(sentence.contains(contains), "{sentence:?} does not say {contains:?}");
    assert!(!sentence.contains('\n') && sentence.len() < 500, "{sentence:?} is no sentence");
}

#[test]
fn one_file_may_hold_two_architectures_and_strategies() {
    let plugin = open(&built::library("faulty-plugin", &[])).expect("opens");
    let names: Vec<_> = plugin.architectures().iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names, ["faulty", "second"], "sorted by name");
    assert_eq!(plugin.architecture_for_model_type("second"), Some(1));
    assert_eq!(plugin.architecture_for_model_type("third"), None);
    assert_eq!(plugin.build_info().name, "faulty");
    assert!(plugin.build_info().rustc.starts_with("rustc "), "{:?}", plugin.build_info());
}

#[test]
fn a_release_build_and_other_flags_load_into_a_debug_host() {
    let release = built::library("echo-plugin", &["--release"]);
    let plugin = open(&release).expect("opens");
    assert!(!plugin.build_info().debug);
    assert_eq!(plugin.architectures()[0].name, "echo");
    let tuned = built::library(
        "faulty-plugin",
        &["--profile", "dev", "--", "-C", "target-cpu=x86-64-v2", "-C", "opt-level=3"],
    );
    assert_eq!(open(&tuned).expect("opens").architectures().len(), 2);
}

#[test]
fn a_real_panic_abort_build_is_refused_before_it_runs() {
    let aborting = built::library("faulty-plugin", &["--", "-C", "panic=abort"]);
    let refusal = open(&aborting).expect_err("panic=abort");
    assert_sentence(&refusal, "compiled with panic=\"abort\"");
}

#[test]
fn what_the_descriptor_gives_away_is_refused_without_running_anything() {
    let folder = built::folder();
    let sound = built::library("faulty-plugin", &[]);
    // Every copy would abort if its constructor ever ran.
    let aborting = built::faulty_copy(&sound, folder.path(), "constructor-aborts");
    let patched = |name: &str, from: &str, to: &str| {
        built::patched(&aborting, folder.path(), name, from.as_bytes(), to.as_bytes())
    };
    let cases = [
        (
            patched("major.so", r#"{"abi":"1.1.0""#, r#"{"abi":"2.0.0""#),
            "built for plugin ABI 2.0.0, this host speaks 1.",
        ),
        (patched("panic.so", r#""panic":"unwind""#, r#""panic":"abort" "#), "compiled with panic"),
        (patched("broken.so", r#"{"abi":"1.1.0""#, r#"["abi":"1.1.0""#), "descriptor is not understood"),
        (patched("section.so", ".neuron.plugin", ".nobody.plugin"), "has no .neuron.plugin section"),
    ];
    for (path, sentence) in cases {
        assert_sentence(&open(&path).expect_err(sentence), sentence);
    }
}

#[test]
fn files_that_are_no_plugins_are_refused() {
    let folder = built::folder();
    let written = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("the folder can be written");
        path
    };
    let library = std::fs::read(built::library("faulty-plugin", &[])).expect("built");
    let cases: [(PathBuf, &str); 6] = [
        (folder.path().join("absent.so"), "cannot be read"),
        (folder.path().to_owned(), "not a regular file"),
        (written("empty.so", b""), "no ELF header"),
        (written("text.so", b"#!/bin/sh\nexit 0\n"), "no ELF header"),
        (written("cut.so", &library[..4096]), "not a shared library for this machine"),
        (std::env::current_exe().expect("this test is a file"), "it"),
    ];
    for (path, sentence) in cases {
        assert_sentence(&open(&path).expect_err(sentence), sentence);
    }
}

#[test]
fn bytes_that_were_damaged_never_end_the_host() {
    // Reading headers and section of arbitrary damage must end in an answer; what is opened is another matter.
    let folder = built::folder();
    let sound = std::fs::read(built::library("faulty-plugin", &[])).expect("built");
    let path = folder.path().join("damaged.so");
    let mut state = 20_261_121u64;
    for round in 0..200 {
        let mut bytes = sound[..sound.len().min(1 << 16)].to_vec();
        for _ in 0..8 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let place = (state >> 33) as usize % if round % 2 == 0 { 64 } else { bytes.len() };
            bytes[place] = state as u8;
        }
        std::fs::write(&path, bytes).expect("the folder can be written");
        if let Err(refusal) = descriptor(&path) {
            assert_sentence(&refusal, "");
        }
    }
}

#[test]
fn a_descriptor_that_lies_is_found_out() {
    let folder = built::folder();
    let lying = built::patched(
        &built::library("faulty-plugin", &[]),
        folder.path(),
        "lying.so",
        br#""name":"faulty""#,
        br#""name":"honest""#,
    );
    assert_sentence(
        &open(&lying).expect_err("it lies"),
        r#"descriptor says name "honest", the opened library says "faulty""#,
    );
}

#[test]
fn nonsense_about_itself_is_refused() {
    let folder = built::folder();
    assert_sentence(
        &open(&built::faulty(folder.path(), "no-name")).expect_err("no name"),
        "architecture without a name",
    );
}

#[test]
fn another_version_of_a_file_is_another_plugin() {
    let folder = built::folder();
    let sound = built::library("faulty-plugin", &[]);
    let place = folder.path().join("plugin.so");
    let put = |fault: &str| {
        let copy = built::faulty_copy(&sound, folder.path(), fault);
        std::fs::rename(copy, &place).expect("renamed into place");
    };
    put("none");
    let first = open(&place).expect("opens");
    let same = open(&place).expect("opens again");
    assert!(std::ptr::eq(first.architectures(), same.architectures()), "the same file is the same plugin");
    put("router-leaves-the-table");
    let second = open(&place).expect("opens");
    assert!(!std::ptr::eq(first.architectures(), second.architectures()));
    let candidates = [plugin_loader::Candidate { free_bytes: 1, ..zeroed() }];
    let choose = |plugin: Plugin| {
        let router = plugin.create_router("faulty", "").expect("made");
        router.choose(&plugin_loader::RouteRequest::default(), &candidates, false).is_ok()
    };
    assert!(choose(first), "the old version goes on as it was");
    assert!(!choose(second), "the new version's code runs");
}

fn zeroed() -> plugin_loader::Candidate {
    plugin_loader::Candidate {
        node: 0,
        residency: plugin_loader::Residency::RESIDENT,
        slots: 0,
        inflight: 0,
        running: 0,
        queued: 0,
        cached_tokens: 0,
        pending_prefill_tokens: 0,
        active_tokens: 0,
        prefill_tokens_per_s: 0.0,
        decode_tokens_per_s: 0.0,
        kv_used: 0.0,
        first_token_s: 0.0,
        inter_token_s: 0.0,
        weight: 1.0,
        metrics_age_ms: 0,
        load_s: 0.0,
        eviction_regret_s: 0.0,
        evictions: 0,
        priority_violation: 0,
        devices: 0,
        free_bytes: 0,
        total_bytes: 0,
        need_bytes: 0,
        reserved: [0; 4],
    }
}

#[test]
fn files_others_may_write_are_not_trusted() {
    use std::os::unix::fs::PermissionsExt;
    let folder = built::folder();
    let copy = built::faulty(folder.path(), "none");
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
    };
    let strict = Policy { ownership: Ownership::RootOrSelf, allowed: None };
    assert!(open_under(&copy, &strict).is_ok());
    mode(&copy, 0o757);
    assert_sentence(
        &open_under(&copy, &strict).expect_err("writable"),
        "can be written by others (mode 757)",
    );
    assert!(open_under(&copy, &Policy::anything()).is_ok(), "development may switch it off");
    mode(&copy, 0o755);
    mode(folder.path(), 0o777);
    assert_sentence(
        &open_under(&copy, &strict).expect_err("its folder is"),
        "can be written by others (mode 777)",
    );
    mode(folder.path(), 0o755);
    assert!(open_under(&copy, &strict).is_ok());
}

#[test]
fn only_listed_files_are_opened_when_there_is_a_list() {
    let folder = built::folder();
    let copy = built::faulty(folder.path(), "none");
    let sum =
        std::process::Command::new("sha256sum").arg(&copy).output().expect("coreutils are there").stdout;
    let policy = |text: &str| Policy {
        ownership: Ownership::Anybody,
        allowed: Some(AllowList::parse(text).expect("well formed")),
    };
    let listed = String::from_utf8(sum).expect("hex and a path");
    assert!(open_under(&copy, &policy(&listed)).is_ok());
    assert_sentence(
        &open_under(&copy, &policy("")).expect_err("no list"),
        "none.so is not on the allow-list",
    );
    let other = format!("{}  none.so", "0".repeat(64));
    assert_sentence(
        &open_under(&copy, &policy(&other)).expect_err("another"),
        "is not the one on the allow-list",
    );
}

#[test]
fn a_scan_lists_builds_and_says_what_is_wrong_with_the_rest() {
    let folder = built::folder();
    let sound = built::library("faulty-plugin", &[]);
    let build = descriptor(&sound).expect("sound").build;
    for name in [build.as_str(), "ampere"] {
        let below = folder.path().join(name);
        std::fs::create_dir(&below).expect("made");
        std::fs::copy(&sound, below.join("one.so")).expect("copied");
    }
    std::fs::copy(&sound, folder.path().join("flat.so")).expect("copied");
    std::fs::copy(&sound, folder.path().join(".half-copied.so")).expect("copied");
    std::fs::write(folder.path().join("text.so"), "no").expect("written");
    std::fs::write(folder.path().join("notes.txt"), "no").expect("written");
    let found = scan([folder.path(), Path::new("/no/such/directory")]);
    let shown: Vec<(String, bool)> = found
        .iter()
        .map(|found| {
            let path = found.path.strip_prefix(folder.path()).expect("below the folder");
            (path.display().to_string(), found.descriptor.is_ok())
        })
        .collect();
    let expected = [
        ("ampere/one.so".to_owned(), false),
        (format!("{build}/one.so"), true),
        ("flat.so".to_owned(), true),
        ("text.so".to_owned(), false),
    ];
    assert_eq!(shown, expected);
    let misplaced = found[0].descriptor.as_ref().expect_err("another build");
    assert_sentence(misplaced, "directory ampere");
    assert!(matches!(misplaced.cause, Cause::Mismatch { .. }));
}

#[test]
fn installing_puts_a_file_where_a_scan_finds_it() {
    let folder = built::folder();
    let sound = folder.path().join("sound.so");
    std::fs::copy(built::library("faulty-plugin", &[]), &sound).expect("a copy");
    let directory = folder.path().join("plugins");
    std::fs::write(sound.with_extension("json"), r#"{"git": "abc"}"#).expect("a manifest");
    let place = install(&sound, &directory).expect("installed");
    let manifest = Manifest::beside(&place).expect("understood").expect("it came along");
    assert_eq!(manifest.git, "abc");
    let build = descriptor(&sound).expect("sound").build;
    assert_eq!(place, directory.join(build).join("faulty.so"));
    let running = open(&place).expect("opens");
    let again = install(&built::faulty(folder.path(), "router-is-silent"), &directory).expect("replaced");
    assert_eq!(Manifest::beside(&again), Ok(None), "the old one's manifest is not the new one's");
    assert_eq!(again, place);
    assert_eq!(running.architectures().len(), 2, "a mapped version is not overwritten");
    let found = scan([&directory]);
    assert!(found.len() == 1 && found[0].descriptor.is_ok(), "{found:?}");

    let text = folder.path().join("text.so");
    std::fs::write(&text, "no plugin").expect("written");
    assert_sentence(&install(&text, &directory).expect_err("no plugin"), "no ELF header");
    let climbing =
        built::patched(&sound, folder.path(), "up.so", br#""name":"faulty""#, br#""name":"../..x""#);
    assert_sentence(&install(&climbing, &directory).expect_err("a path"), "cannot be the name of a file");
    assert_sentence(&install(&sound, &text).expect_err("no directory"), "cannot be installed as");
}

#[test]
fn a_child_finds_out_what_opening_does() {
    let folder = built::folder();
    let sound = built::library("faulty-plugin", &[]);
    let child = Path::new(env!("CARGO_BIN_EXE_plugin-probe-child"));
    let probe = |fault: &str, timeout_ms| {
        let copy = built::faulty_copy(&sound, folder.path(), fault);
        probe_in_child(child, &copy, Duration::from_millis(timeout_ms))
    };
    let report = probe("none", 60_000).expect("sound");
    assert_eq!(report.architectures.len(), 2);
    assert_eq!(report.evictors[0].name, "faulty");
    let cases = [
        ("constructor-aborts", 60_000, "killed by signal 6 (abort)"),
        ("constructor-crashes", 60_000, "killed by signal 11 (segmentation fault)"),
        ("constructor-exits", 60_000, "exited with success but without an answer"),
        ("constructor-hangs", 300, "did not finish within 300 ms"),
        ("constructor-spins", 300, "did not finish within 300 ms"),
        ("no-name", 60_000, "architecture without a name"),
    ];
    for (fault, timeout_ms, sentence) in cases {
        assert_sentence(&probe(fault, timeout_ms).expect_err(fault), sentence);
    }
    let absent = probe_in_child(Path::new("/no/such/program"), &sound, Duration::from_secs(1));
    assert_sentence(&absent.expect_err("no program"), "trial process could not be run");
}

#[test]
fn a_refusal_survives_the_way_out_of_the_child() {
    let refusal = open(Path::new("/no/such/plugin.so")).expect_err("absent");
    let text = serde_json::to_string(&refusal).expect("serialisable");
    assert_eq!(serde_json::from_str::<Refusal>(&text).expect("readable"), refusal);
}
