//! A new plugin builds, passes its own tests and keeps every promise, in a folder outside the checkout.

#[path = "../../loader/tests/built/mod.rs"]
mod built;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use plugin_conformance::template::{Kind, Sdk, TemplateError, write};
use plugin_conformance::{Options, check};

/// The flags that let a foreign crate share the checkout's compiled dependencies.
const SHARED: [&str; 4] = [
    "--offline",
    "--config=profile.dev.debug='line-tables-only'",
    "--config=profile.dev.package.'*'.debug=false",
    "--config=profile.test.debug='line-tables-only'",
];

#[test]
fn a_new_plugin_of_each_kind_is_complete() {
    for (name, kind) in
        [("new-arch", Kind::Architecture), ("new-router", Kind::Router), ("new-evictor", Kind::Evictor)]
    {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        if place.exists() {
            fs::remove_dir_all(&place).expect("an earlier run's crate can go");
        }
        let sdk = Sdk::Path(built::root().join("plugin-api/sdk"));
        write(&place, name, kind, &sdk).expect("written");
        assert!(matches!(write(&place, name, kind, &sdk), Err(TemplateError::Exists(_))));
        fs::copy(built::root().join("Cargo.lock"), place.join("Cargo.lock")).expect("copied");
        let tests = Command::new(env!("CARGO"))
            .args(["test", "--quiet"])
            .args(SHARED)
            .current_dir(&place)
            .output()
            .expect("cargo runs");
        let said =
            format!("{}{}", String::from_utf8_lossy(&tests.stdout), String::from_utf8_lossy(&tests.stderr));
        assert!(tests.status.success(), "{name}'s own tests fail:\n{said}");
        assert!(!said.contains("warning:"), "{name} is not clean:\n{said}");
        let library = built::library_in(&place, name, &SHARED);
        let options =
            Options { loads: 40, ..Options::new(PathBuf::from(env!("CARGO_BIN_EXE_plugin-check-child"))) };
        let report = check(&library, &options);
        assert!(report.passed(), "{report}");
    }
}
