//! Promises of the file itself, kept without running any of it.

use std::path::PathBuf;

use object::{Object, ObjectSymbol};
use plugin_loader::descriptor;

use crate::promise::{End, Outcome, Promise, broken, ensure};

/// A file nobody has opened yet.
pub(crate) struct Unopened {
    /// Where it is.
    pub(crate) path: PathBuf,
}

/// The one symbol a plugin exports.
const ROOT: &str = "neuron_plugin_root";

/// Promises about what lies in the file.
pub(crate) const PROMISES: &[Promise<Unopened>] = &[
    Promise {
        name: "descriptor",
        says: "It says what it is without being run.",
        check: |file| descriptor(&file.path).map(drop).or_else(|refusal| broken(refusal.to_string())),
    },
    Promise {
        name: "one-symbol",
        says: "It exports one symbol and nothing that another library could collide with.",
        check: one_symbol,
    },
    Promise {
        name: "named-for-its-build",
        says: "Name, version and build are well formed.",
        check: well_formed,
    },
];

fn one_symbol(file: &mut Unopened) -> Outcome {
    let bytes = std::fs::read(&file.path).map_err(|error| End::Broken(error.to_string()))?;
    let elf = object::File::parse(&*bytes).map_err(|error| End::Broken(error.to_string()))?;
    let exported: Vec<&str> = elf
        .dynamic_symbols()
        .filter(|symbol| symbol.is_definition() && symbol.is_global())
        .filter_map(|symbol| symbol.name().ok())
        .filter(|name| !matches!(*name, "_init" | "_fini"))
        .collect();
    ensure(exported == [ROOT], || {
        let others: Vec<_> = exported.iter().filter(|name| **name != ROOT).take(5).collect();
        format!("it exports {} symbols, {others:?} among them, instead of {ROOT} alone", exported.len())
    })
}

fn well_formed(file: &mut Unopened) -> Outcome {
    let descriptor = descriptor(&file.path).or_else(|refusal| broken(refusal.to_string()))?;
    let simple = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte))
    };
    ensure(simple(&descriptor.name), || {
        format!("the name {:?} has more than lower case letters, digits, - and _", descriptor.name)
    })?;
    ensure(simple(&descriptor.build), || {
        format!("the build {:?} is none a directory could bear", descriptor.build)
    })?;
    let numbers: Vec<_> = descriptor.version.split(['-', '+']).next().unwrap_or("").split('.').collect();
    ensure(numbers.len() == 3 && numbers.iter().all(|number| number.parse::<u64>().is_ok()), || {
        format!("the version {:?} is not of the form 1.2.3", descriptor.version)
    })
}
