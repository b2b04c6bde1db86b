//! Every device with every set of builds.

use super::*;

fn contender(file: &str, build: &str, machine_code: &[u16], ptx: u16, version: &str) -> Contender {
    let descriptor = Descriptor {
        abi: "1.0.0".into(),
        name: "x".into(),
        version: version.into(),
        build: build.into(),
        git: String::new(),
        panic: "unwind".into(),
        machine_code: machine_code.to_vec(),
        ptx,
        cuda: if machine_code.is_empty() { 0 } else { 13000 },
    };
    Contender { path: file.into(), descriptor, manifest: None }
}

/// The builds there are, by the name of their folder.
fn builds(names: &[&str]) -> Vec<Contender> {
    let all = [
        ("cpu-v2", &[][..], 0),
        ("cpu-v3", &[], 0),
        ("cpu-v4", &[], 0),
        ("ampere", &[80], 80),
        ("ada", &[89], 89),
        ("hopper", &[90], 0),
        ("blackwell", &[100, 120], 100),
    ];
    let wanted = all.iter().filter(|(build, ..)| names.contains(build));
    wanted.map(|(build, code, ptx)| contender(build, build, code, *ptx, "1.0.0")).collect()
}

fn all() -> Vec<Contender> {
    builds(&["cpu-v2", "cpu-v3", "cpu-v4", "ampere", "ada", "hopper", "blackwell"])
}

fn device(kind: DeviceKind, compute_capability: u32, cpu_level: u32, driver: u32) -> DeviceInfo {
    DeviceInfo { kind, compute_capability, cpu_level, driver, ..crate::machine::cpu_device() }
}

fn gpu(compute_capability: u32) -> DeviceInfo {
    device(DeviceKind::CUDA, compute_capability, 4, 13000)
}

#[test]
fn every_device_gets_its_best_build() {
    let cases = [
        (device(DeviceKind::CPU, 0, 2, 0), Some("cpu-v2")),
        (device(DeviceKind::CPU, 0, 3, 0), Some("cpu-v3")),
        (device(DeviceKind::CPU, 0, 4, 0), Some("cpu-v4")),
        (device(DeviceKind::CPU, 0, 1, 0), None),
        (gpu(75), None),
        (gpu(80), Some("ampere")),
        (gpu(86), Some("ampere")),
        (gpu(89), Some("ada")),
        (gpu(90), Some("hopper")),
        (gpu(103), Some("blackwell")),
        (device(DeviceKind::CUDA, 120, 4, 13010), Some("blackwell")),
        (device(DeviceKind::CUDA, 90, 4, 12080), None),
        (gpu(0), None),
    ];
    for (device, expected) in cases {
        let choice = choose_build(&all(), &device);
        assert_eq!(choice.chosen.as_deref(), expected.map(std::path::Path::new), "{choice:#?}");
        assert_eq!(choice.considered.len(), all().len(), "every candidate is explained");
        assert!(choice.considered.iter().all(|considered| !considered.verdict.reason.is_empty()));
    }
}

#[test]
fn every_wrong_combination_gets_its_sentence() {
    let cases = [
        ("ampere", gpu(75), "ampere holds no machine code for compute capability 7.5, only for 8.0"),
        ("ada", gpu(86), "ada holds no machine code for compute capability 8.6, only for 8.9"),
        ("hopper", gpu(89), "hopper holds no machine code for compute capability 8.9, only for 9.0"),
        ("hopper", gpu(120), "hopper holds no machine code for compute capability 12.0, only for 9.0"),
        (
            "blackwell",
            gpu(90),
            "blackwell holds no machine code for compute capability 9.0, only for 10.0 and 12.0",
        ),
        ("cpu-v3", gpu(90), "cpu-v3 computes on the CPU only"),
        ("hopper", device(DeviceKind::CPU, 0, 4, 0), "hopper does not compute on the CPU"),
        (
            "cpu-v4",
            device(DeviceKind::CPU, 0, 3, 0),
            "cpu-v4 needs an x86-64-v4 processor; this one is x86-64-v3",
        ),
        (
            "hopper",
            device(DeviceKind::CUDA, 90, 4, 12080),
            "hopper was compiled with CUDA 13.0; the driver only knows 12.8, and needs to be upgraded",
        ),
        (
            "hopper",
            gpu(0),
            "hopper cannot be matched: the driver does not tell the card's compute capability",
        ),
        // What runs, but not as well as it could.
        ("ampere", gpu(89), "ampere holds machine code for 8.0, which runs on 8.9"),
        (
            "ampere",
            gpu(90),
            "ampere holds PTX for 8.0 that the driver compiles for 9.0; the first load takes minutes",
        ),
        ("blackwell", gpu(121), "blackwell holds machine code for 12.0, which runs on 12.1"),
        (
            "ada",
            gpu(120),
            "ada holds PTX for 8.9 that the driver compiles for 12.0; the first load takes minutes",
        ),
    ];
    for (build, device, expected) in cases {
        let verdict = judge(&builds(&[build])[0], &device);
        assert_eq!(verdict.reason, expected);
        assert_eq!(verdict.score.is_some(), verdict.fit.is_some());
    }
}

#[test]
fn any_set_of_builds_is_used_as_far_as_it_goes() {
    let (exact, older, compiled) = (Some(Fit::Exact), Some(Fit::Older), Some(Fit::Compiled));
    let cases = [
        (&["ampere"][..], 86, Some("ampere"), older),
        (&["ampere"], 89, Some("ampere"), older),
        (&["ampere"], 90, Some("ampere"), compiled),
        (&["ampere", "ada"], 89, Some("ada"), exact),
        (&["ampere", "ada"], 86, Some("ampere"), older),
        (&["ampere", "ada"], 120, Some("ada"), compiled),
        (&["ada", "hopper"], 86, None, None),
        (&["ada", "hopper"], 90, Some("hopper"), exact),
        (&["hopper"], 100, None, None),
        (&["blackwell", "ampere"], 120, Some("blackwell"), exact),
        (&["blackwell", "ampere"], 103, Some("blackwell"), older),
        (&["blackwell"], 90, None, None),
        (&["cpu-v2", "cpu-v3"], 90, None, None),
        (&[], 90, None, None),
    ];
    for (names, capability, expected, fit) in cases {
        let choice = choose_build(&builds(names), &gpu(capability));
        assert_eq!(choice.chosen.as_deref(), expected.map(std::path::Path::new), "{names:?} on {capability}");
        assert_eq!(
            choice.considered.first().and_then(|best| best.verdict.fit),
            fit,
            "{names:?} on {capability}"
        );
    }
}

#[test]
fn one_build_may_serve_several_devices() {
    let cases = [
        (&[86, 89][..], Some("ampere"), Some(Fit::Older)),
        (&[89, 89], Some("ada"), Some(Fit::Exact)),
        (&[100, 120], Some("blackwell"), Some(Fit::Exact)),
        (&[89, 90], Some("ada"), Some(Fit::Compiled)),
        (&[75, 90], None, None),
        (&[], None, None),
    ];
    for (capabilities, expected, fit) in cases {
        let devices: Vec<_> = capabilities.iter().map(|&capability| gpu(capability)).collect();
        let choice = choose_common_build(&all(), &devices);
        assert_eq!(choice.chosen.as_deref(), expected.map(std::path::Path::new), "{capabilities:?}");
        assert_eq!(choice.considered[0].verdict.fit, fit, "{capabilities:?}");
    }
}

#[test]
fn what_was_found_in_a_file_counts_more_than_what_it_claims() {
    let with = |build: &str, manifest: &str| {
        let manifest = serde_json::from_str(manifest).expect("understood");
        Contender { manifest: Some(manifest), ..builds(&[build])[0].clone() }
    };
    let fit = |contender: &Contender, capability| judge(contender, &gpu(capability)).fit;
    let bound = with("blackwell", r#"{"sass":["sm_100a","sm_120a"],"ptx":[]}"#);
    assert_eq!((fit(&bound, 120), fit(&bound, 121), fit(&bound, 90)), (Some(Fit::Exact), None, None));
    let family = with("blackwell", r#"{"sass":["sm_100f","sm_120f"],"ptx":["sm_100"]}"#);
    assert_eq!((fit(&family, 103), fit(&family, 121)), (Some(Fit::Older), Some(Fit::Older)));
    let no_ptx = with("ampere", r#"{"sass":["sm_80"],"ptx":[]}"#);
    assert_eq!((fit(&no_ptx, 86), fit(&no_ptx, 90)), (Some(Fit::Older), None));
    let silent = with("ampere", "{}");
    assert_eq!(fit(&silent, 90), Some(Fit::Compiled));
    let empty = judge(&with("ada", r#"{"sass":[],"ptx":[]}"#), &gpu(89));
    assert!(empty.reason.ends_with("8.9, none at all"), "{}", empty.reason);
}

#[test]
fn ties_go_to_the_newer_version_and_then_to_the_earlier_place() {
    let contenders = [
        contender("old", "cpu-v2", &[], 0, "1.9.0"),
        contender("new", "cpu-v2", &[], 0, "1.10.0"),
        contender("again", "cpu-v2", &[], 0, "1.10.0"),
        contender("unversioned", "cpu-v2", &[], 0, "today"),
    ];
    let choice = choose_build(&contenders, &device(DeviceKind::CPU, 0, 4, 0));
    let order: Vec<_> =
        choice.considered.iter().map(|considered| considered.path.to_str().unwrap_or("")).collect();
    assert_eq!(order, ["new", "again", "old", "unversioned"]);
}
