//! Every promise is kept by sound plugins, and each is shown to be broken by a plugin that breaks it.

#[path = "../../loader/tests/built/mod.rs"]
mod built;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use plugin_conformance::{Options, Report, Verdict, check};

fn report(path: &Path) -> Report {
    let options = Options {
        loads: 40,
        timeout: Duration::from_secs(60),
        ..Options::new(PathBuf::from(env!("CARGO_BIN_EXE_plugin-check-child")))
    };
    check(path, &options)
}

fn broken(report: &Report) -> Vec<String> {
    report.broken().map(|finding| format!("{}: {}", finding.subject, finding.promise)).collect()
}

#[test]
fn sound_plugins_keep_every_promise() {
    for package in ["echo-plugin", "faulty-plugin", "strategies-plugin"] {
        let report = report(&built::library(package, &[]));
        assert!(report.passed(), "{report}");
        assert!(report.findings.len() > 20, "{report}");
        let skipped: Vec<_> =
            report.findings.iter().filter(|finding| matches!(finding.verdict, Verdict::Skipped(_))).collect();
        assert!(
            skipped.iter().all(|finding| ["ranks-agree", "images"].contains(&finding.promise.as_str())),
            "{report}"
        );
    }
}

/// A fault of the faulty plugin, the part it shows in, and the promise it breaks.
const FAULTS: &[(&str, &str, &str)] = &[
    ("constructor-aborts", "file", "opens"),
    ("constructor-exits", "file", "opens"),
    ("no-name", "file", "opens"),
    ("catches-signals", "file", "signals"),
    ("changes-directory", "file", "surroundings"),
    ("world-is-one", "file", "offers-what-it-names"),
    ("plan-panics", "architecture faulty", "plan-total"),
    ("plan-accepts-anything", "architecture faulty", "plan-total"),
    ("refuses-as-internal", "architecture faulty", "plan-total"),
    ("plan-varies", "architecture faulty", "plan-steady"),
    ("plan-understates", "architecture faulty", "plan-honest"),
    ("info-contradicts-plan", "architecture faulty", "plan-honest"),
    ("options-go-unread", "architecture faulty", "refuses-unknown-options"),
    ("load-accepts-anything", "architecture faulty", "load-refuses"),
    ("load-ignores-cancel", "architecture faulty", "load-cancels"),
    ("load-leaks", "architecture faulty", "load-leaves-nothing"),
    ("load-leaks-threads", "architecture faulty", "load-leaves-nothing"),
    ("prints", "architecture faulty", "quiet"),
    ("step-prints", "architecture faulty", "quiet"),
    ("logits-are-nan", "architecture faulty", "logits-are-numbers"),
    ("logits-are-missing", "architecture faulty", "logits-are-numbers"),
    ("not-deterministic", "architecture faulty", "deterministic"),
    ("chunks-matter", "architecture faulty", "chunked-is-whole"),
    ("batches-matter", "architecture faulty", "batched-is-alone"),
    ("all-is-shifted", "architecture faulty", "all-is-last"),
    ("state-is-shared", "architecture faulty", "fork-continues"),
    ("fork-forgets", "architecture faulty", "fork-continues"),
    ("fork-refuses", "architecture faulty", "fork-and-trim-as-declared"),
    ("trim-forgets", "architecture faulty", "fork-and-trim-as-declared"),
    ("step-ignores-cancel", "architecture faulty", "cancel"),
    ("sequences-leak", "architecture faulty", "sequences-leave-nothing"),
    ("budget-is-ignored", "architecture faulty", "out-of-memory"),
    ("out-of-memory-aborts", "architecture faulty", "out-of-memory"),
    ("row-fails-batch", "architecture faulty", "hostile-batches"),
    ("bad-row-taints", "architecture faulty", "a-bad-row-fails-alone"),
    ("ranks-differ", "architecture faulty", "ranks-agree"),
    ("measures-blindly", "architecture faulty", "images"),
    ("step-panics", "architecture faulty", "deterministic"),
    ("step-hangs", "architecture faulty", "plan-honest"),
    ("router-panics-alone", "router faulty", "total"),
    ("router-panics-busy", "router faulty", "total"),
    ("router-leaves-the-table", "router faulty", "total"),
    ("router-is-impure", "router faulty", "pure"),
    ("router-is-slow", "router faulty", "quick"),
    ("router-is-silent", "router faulty", "explains"),
    ("router-scores-nan", "router faulty", "explains"),
    ("router-mutters", "router faulty", "quiet"),
    ("options-are-ignored", "router faulty", "refuses-unknown-options"),
    ("options-are-ignored", "evictor faulty", "refuses-unknown-options"),
    ("evictor-panics-empty", "evictor faulty", "total"),
    ("evictor-takes-all", "evictor faulty", "total"),
    ("evictor-acts-in-vain", "evictor faulty", "total"),
    ("evictor-is-impure", "evictor faulty", "pure"),
    ("evictor-is-slow", "evictor faulty", "quick"),
    ("evictor-is-silent", "evictor faulty", "explains"),
];

#[test]
fn each_fault_breaks_its_promise() {
    let folder = built::folder();
    let sound = built::library("faulty-plugin", &[]);
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((fault, subject, promise)) = FAULTS.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut options = Options::new(PathBuf::from(env!("CARGO_BIN_EXE_plugin-check-child")));
            options.loads = 40;
            options.timeout = Duration::from_secs(if *fault == "step-hangs" { 1 } else { 60 });
            let place = folder.path().join(subject);
            std::fs::create_dir_all(&place).expect("made");
            let report = check(&built::faulty_copy(&sound, &place, fault), &options);
            let expected = format!("{subject}: {promise}");
            assert!(broken(&report).contains(&expected), "{fault} should break {expected:?}:\n{report}");
        }
    };
    // Children wait for each other's hangs and sleeps, not for the processor.
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(work))));
}

#[test]
fn every_promise_has_a_plugin_that_breaks_it() {
    let report = report(&built::library("faulty-plugin", &[]));
    let not_shown: Vec<_> = report
        .findings
        .iter()
        .filter(|finding| finding.subject != "architecture second")
        .filter(|finding| {
            !FAULTS.iter().any(|fault| fault.1 == finding.subject && fault.2 == finding.promise)
        })
        .map(|finding| finding.promise.as_str())
        .collect();
    // These three are broken by files, below.
    assert_eq!(not_shown, ["descriptor", "one-symbol", "named-for-its-build"]);
}

#[test]
fn files_that_break_their_promises_are_found_out() {
    let folder = built::folder();
    let sound = built::library("faulty-plugin", &[]);
    let text = folder.path().join("text.so");
    std::fs::write(&text, "no library").expect("written");
    assert!(broken(&report(&text)).contains(&"file: descriptor".into()));
    let shouting =
        built::patched(&sound, folder.path(), "shouting.so", br#""name":"faulty""#, br#""name":"FAULTY""#);
    assert!(broken(&report(&shouting)).contains(&"file: named-for-its-build".into()));
    let stray = built::library("faulty-plugin", &["--", "--cfg", "stray_symbol"]);
    assert_eq!(broken(&report(&stray)), ["file: one-symbol"]);
}

#[test]
fn a_report_is_for_people_and_for_programs() {
    let folder = built::folder();
    let report = report(&built::faulty(folder.path(), "router-is-silent"));
    let text = report.to_string();
    assert!(text.contains("\nrouter faulty\n") && text.contains("BROKEN   Asked why"), "{text}");
    assert!(text.ends_with("1 broken, 3 skipped"), "{text}");
    let json = serde_json::to_value(&report).expect("serialisable");
    let finding =
        json["findings"].as_array().and_then(|all| all.iter().find(|one| one["verdict"] == "broken"));
    assert_eq!(finding.expect("one is broken")["promise"], "explains");
    let again: Report = serde_json::from_value(json).expect("readable");
    assert_eq!(again, report);
}
