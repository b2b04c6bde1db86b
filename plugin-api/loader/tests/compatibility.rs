//! Plugins and hosts of other minor versions of the ABI, and of one whose types changed.
//!
//! Each variant is this very checkout with a patch, built beside it: what is tested is what a later or a
//! careless release would produce.

mod built;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicU32;

use plugin_loader::{Cause, HostServices, Level, LoadOptions, Plugin, Policy, Row, Source, StepOutput, Want};

/// A file of the checkout, text in it, and what stands there instead.
type Patch = (&'static str, &'static str, &'static str);

/// A later minor version: one more verb.
const LATER: &[Patch] = &[
    ("plugin-api/abi/Cargo.toml", "version = \"1.1.0\"", "version = \"1.2.0\""),
    (
        "plugin-api/abi/src/arch.rs",
        "    pub stats: unsafe extern \"C\" fn(model: Handle, stats: *mut ModelStats) -> Code,\n",
        "    pub stats: unsafe extern \"C\" fn(model: Handle, stats: *mut ModelStats) -> Code,\n\
         /// Tidies up.\n pub tidy: unsafe extern \"C\" fn(model: Handle) -> Code,\n",
    ),
    ("plugin-api/sdk/src/glue/arch.rs", "    stats,\n};", "    stats,\n    tidy,\n};"),
    (
        "plugin-api/sdk/src/glue/arch.rs",
        "/// A loaded model behind its handle.",
        "unsafe extern \"C\" fn tidy(_: Handle) -> Code {\n    Code::OK\n}\n\n/// A loaded model behind its handle.",
    ),
    (
        "plugin-api/loader/src/plugin.rs",
        "    /// Where the file is;",
        "    /// Whether it has the new verb.\n    pub fn tidies(&self) -> bool {\n        \
         self.0.root.architectures().tidy().is_some()\n    }\n\n    /// Where the file is;",
    ),
    (
        "plugin-api/loader/tests/probe/child.rs",
        "[\"plugin-probe\", path] =>",
        "[\"tidies\", path] => {\n            let services = plugin_loader::HostServices::new(|_| {}, \
         plugin_loader::Level::OFF, 1);\n            let plugin = plugin_loader::Plugin::open_under(Path::new(path), \
         &services, &plugin_loader::Policy::anything());\n            println!(\"{:?}\", plugin.map(|plugin| \
         (plugin.tidies(), plugin.architectures()[0].name.clone())));\n        }\n        [\"plugin-probe\", path] =>",
    ),
];

/// The same version with a field slipped in: what nobody may do.
const CARELESS: &[Patch] = &[(
    "plugin-api/abi/src/arch.rs",
    "    /// From `sequence_new` or `fork`.\n    pub sequence: u64,\n",
    "    /// From `sequence_new` or `fork`.\n    pub sequence: u64,\n    /// Slipped in.\n    pub slipped_in: u64,\n",
)];

/// Writes the checkout's plugin crates with `patches` into a workspace of their own.
fn variant(name: &str, patches: &[Patch]) -> PathBuf {
    let workspace = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("abi-{name}"));
    let members = ["plugin-api/abi", "plugin-api/sdk", "plugin-api/loader", "arch-plugins/echo"];
    let mut files = vec![PathBuf::from("Cargo.toml"), PathBuf::from("Cargo.lock")];
    for member in members {
        list(&built::root(), Path::new(member), &mut files);
    }
    for file in files {
        let mut text = fs::read_to_string(built::root().join(&file)).expect("the checkout is text");
        if file == Path::new("Cargo.toml") {
            let begin = text.find("members = [").expect("the workspace has members");
            let end = begin + text[begin..].find(']').expect("the list ends");
            let leaf = ["arch-plugins/echo/plugin"];
            let list: Vec<_> = members.iter().chain(&leaf).map(|member| format!("{name}/{member}")).collect();
            text.replace_range(begin..=end, &format!("members = {list:?}"));
            text = text.replace("path = \"", &format!("path = \"{name}/"));
        }
        // One target folder serves all: nothing that is built may bear the same name, and cargo tells packages
        // apart by their path below the workspace.
        text = text.replace("name = \"neuron_echo\"", &format!("name = \"neuron_echo_{name}\""));
        text = text.replace("name = \"plugin-probe-child\"", &format!("name = \"plugin-probe-{name}\""));
        for (_, from, to) in patches.iter().filter(|patch| Path::new(patch.0) == file) {
            assert!(text.contains(from), "{} no longer contains {from:?}: renew the patch", file.display());
            text = text.replace(from, to);
        }
        let top = file.parent() == Some(Path::new(""));
        let path = if top { workspace.join(&file) } else { workspace.join(name).join(&file) };
        if file != Path::new("Cargo.lock") && fs::read_to_string(&path).ok().as_deref() == Some(&text) {
            continue; // keep its time, cargo goes by that
        }
        fs::create_dir_all(path.parent().expect("a file has a folder")).expect("made");
        fs::write(&path, text).expect("written");
    }
    workspace
}

fn list(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(root.join(folder)).expect("the checkout is there") {
        let path = folder.join(entry.expect("readable").file_name());
        if root.join(&path).is_dir() {
            list(root, &path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "toml") {
            files.push(path);
        }
    }
}

fn open(path: &Path) -> Result<Plugin, plugin_loader::Refusal> {
    Plugin::open_under(path, &HostServices::new(|_| {}, Level::OFF, 1), &Policy::anything())
}

#[test]
fn minor_versions_load_each_other_both_ways() {
    let workspace = variant("later", LATER);
    let later_plugin = built::library_in(&workspace, "echo-plugin", &["--offline"]);
    let plugin = open(&later_plugin).expect("this host takes a later plugin");
    let source = Source { config: r#"{"model_type": "echo"}"#.into(), ..Source::default() };
    let mut model = plugin.load(0, &source, &LoadOptions::default(), &mut |_, _, _| true).expect("it loads");
    let sequence = model.sequence_new().expect("room");
    let row = Row { sequence, position: 0, tokens: 0..2, want: Want::TOKEN, images: 0..0 };
    let mut output = StepOutput::default();
    model.step(&[row], &[7, 8], &[], &AtomicU32::new(0), &mut output).expect("it steps");
    assert_eq!(output.token(0), Some(7));

    let later_host =
        built::program_in(&workspace, "plugin-loader", &["--offline", "--bin", "plugin-probe-later"]);
    let asked = |path: &Path| {
        let output = Command::new(&later_host).arg("tidies").arg(path).output().expect("the host runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(asked(&later_plugin), r#"Ok((true, "echo"))"#);
    let ours = built::library("echo-plugin", &[]);
    assert_eq!(
        asked(&ours),
        r#"Ok((false, "echo"))"#,
        "a verb this plugin does not know is absent, not garbage"
    );
}

#[test]
fn a_changed_layout_is_refused_in_one_sentence() {
    let workspace = variant("careless", CARELESS);
    let careless = built::library_in(&workspace, "echo-plugin", &["--offline"]);
    let refusal = open(&careless).expect_err("a Row of another size");
    assert!(matches!(refusal.cause, Cause::Layout(_)), "{refusal}");
    let sentence = refusal.to_string();
    assert!(sentence.contains("laid out differently") && sentence.contains("rows"), "{sentence}");
    assert!(!sentence.contains('\n') && sentence.len() < 600, "{sentence:?} is no sentence");
}
