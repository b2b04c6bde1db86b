//! Whether a plugin holds what its build promises, judged by what was found inside.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};

use crate::generation::{Build, Generation};
use crate::inspect::Contents;

/// Libraries that a plugin opens when it needs them, and must never need to load.
const OPENED_LATER: &[&str] = &["libcu", "libnv", "libnccl"];

/// Newest PTX language that drivers of the oldest supported series understand.
const NEWEST_PTX: (u32, u32) = (9, 0);

/// Oldest glibc that releases promise to run with.
const PROMISED_GLIBC: (u32, u32) = (2, 34);

/// An error that names what is wrong. Newer libraries than releases promise are only warned of: they are this
/// machine's, and right for it.
pub fn check(build: &Build, name: &str, contents: &Contents) -> Result<()> {
    let descriptor = &contents.descriptor;
    ensure!(
        descriptor.build == build.name(),
        "it says it is a build for {}, not for {}",
        descriptor.build,
        build.name()
    );
    ensure!(descriptor.name == name, "it says its name is {}, not {name}", descriptor.name);
    let forbidden = |library: &&String| OPENED_LATER.iter().any(|prefix| library.starts_with(prefix));
    if let Some(library) = contents.needed.iter().find(forbidden) {
        bail!("it does not load where {library} is missing, so it could not say so itself");
    }
    if version(&contents.glibc) > PROMISED_GLIBC {
        let (major, minor) = PROMISED_GLIBC;
        println!("  note: {name} needs glibc {}; releases promise {major}.{minor}", contents.glibc);
    }
    match build {
        Build::Cpu(_) => ensure!(
            contents.machine_code.is_empty() && contents.ptx.is_empty(),
            "a build for processors holds GPU code for {}",
            list(&contents.machine_code)
        ),
        Build::Gpu(generation) => check_code(generation, contents)?,
    }
    Ok(())
}

/// The machine code is for this generation and no other, and so is the PTX. A plugin may hold no GPU code at all
/// if its architecture computes nothing; what it claims must hold either way.
fn check_code(generation: &Generation, contents: &Contents) -> Result<()> {
    let claimed: Vec<String> = contents.descriptor.machine_code.iter().map(u16::to_string).collect();
    let promised: Vec<&str> = generation.machine_code.iter().map(|code| digits(code)).collect();
    ensure!(claimed == promised, "it claims machine code for {claimed:?}, where {promised:?} is right");
    if contents.machine_code.is_empty() && contents.ptx.is_empty() {
        return Ok(());
    }
    let wanted: BTreeSet<String> = generation.machine_code.iter().map(|code| (*code).to_owned()).collect();
    ensure!(
        contents.machine_code == wanted,
        "it holds machine code for {}, where {} is right",
        list(&contents.machine_code),
        list(&wanted)
    );
    for (target, language) in &contents.ptx {
        ensure!(target == generation.ptx, "it holds PTX for {target}, where {} is right", generation.ptx);
        ensure!(
            version(language) <= NEWEST_PTX,
            "its PTX is of version {language}; drivers of the 580 series understand {}.{} at most",
            NEWEST_PTX.0,
            NEWEST_PTX.1
        );
    }
    Ok(())
}

fn digits(target: &str) -> &str {
    target.trim_start_matches("sm_").trim_end_matches(['a', 'f'])
}

fn version(text: &str) -> (u32, u32) {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

fn list(names: &BTreeSet<String>) -> String {
    if names.is_empty() { "nothing".into() } else { names.iter().cloned().collect::<Vec<_>>().join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::Descriptor;

    fn contents(build: &str, machine_code: &[&str], ptx: &[(&str, &str)], needed: &str) -> Contents {
        let descriptor = Descriptor {
            name: "toy".into(),
            build: build.into(),
            machine_code: match build {
                "hopper" => vec![90],
                "blackwell" => vec![100, 120],
                _ => Vec::new(),
            },
            ..Descriptor::default()
        };
        Contents {
            descriptor,
            machine_code: machine_code.iter().map(|code| (*code).to_owned()).collect(),
            ptx: ptx.iter().map(|(target, version)| ((*target).into(), (*version).into())).collect(),
            needed: [needed.to_owned(), "libc.so.6".into()].into(),
            glibc: "2.34".into(),
        }
    }

    #[test]
    fn what_is_inside_decides() {
        let hopper_ptx: &[(&str, &str)] = &[("sm_90a", "9.0")];
        let cases = [
            ("hopper", contents("hopper", &["sm_90a"], hopper_ptx, "libm.so.6"), None),
            ("hopper", contents("hopper", &[], &[], "libm.so.6"), None),
            ("cpu-v3", contents("cpu-v3", &[], &[], "libm.so.6"), None),
            ("blackwell", contents("blackwell", &["sm_100f", "sm_120f"], &[("sm_100", "9.0")], ""), None),
            ("cpu-v3", contents("cpu-v2", &[], &[], "libm.so.6"), Some("a build for cpu-v2")),
            ("cpu-v3", contents("cpu-v3", &["sm_80"], &[], ""), Some("holds GPU code for sm_80")),
            ("hopper", contents("hopper", &["sm_90"], hopper_ptx, ""), Some("machine code for sm_90, where")),
            (
                "hopper",
                contents("hopper", &["sm_80", "sm_90a"], hopper_ptx, ""),
                Some("where sm_90a is right"),
            ),
            ("hopper", contents("hopper", &[], hopper_ptx, ""), Some("machine code for nothing")),
            ("hopper", contents("hopper", &["sm_90a"], &[("sm_80", "9.0")], ""), Some("PTX for sm_80")),
            ("hopper", contents("hopper", &["sm_90a"], &[("sm_90a", "9.1")], ""), Some("version 9.1")),
            ("hopper", contents("hopper", &["sm_90a"], hopper_ptx, "libcuda.so.1"), Some("libcuda.so.1")),
            ("hopper", contents("hopper", &["sm_90a"], hopper_ptx, "libcublas.so.13"), Some("libcublas")),
            ("blackwell", contents("blackwell", &["sm_100f"], &[], ""), Some("sm_100f, sm_120f is right")),
        ];
        for (build, contents, wrong) in cases {
            let Some(build) = Build::named(build) else { panic!("{build} is a build") };
            let said = check(&build, "toy", &contents).err().map(|error| error.to_string());
            match (wrong, said) {
                (None, None) => {}
                (Some(wrong), Some(said)) if said.contains(wrong) => {}
                (wrong, said) => panic!("{}: expected {wrong:?}, got {said:?}", build.name()),
            }
        }
    }
}
