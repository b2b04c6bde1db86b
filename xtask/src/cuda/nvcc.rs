//! What stands between the kernels' build scripts and the compiler.
//!
//! A build script asks for one compute capability. Blackwell is one build for two kinds of card, so this front
//! exchanges what was asked for: machine code for each, and PTX that either can use. And a type check of CUDA code
//! needs kernels that exist, not kernels that work: the stand-in writes empty ones.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::generation::Generation;

/// The program that stands in front of the compiler; without it, the compiler is called as it is.
pub const FRONT: &str = "NEURON_NVCC";
/// The compiler behind the front.
const REAL: &str = "NEURON_NVCC_REAL";
/// Targets of machine code, separated by spaces, instead of the one that was asked for.
const MACHINE_CODE: &str = "NEURON_NVCC_MACHINE_CODE";
/// Target of PTX, instead of the one that was asked for.
const PTX: &str = "NEURON_NVCC_PTX";
/// Set for the stand-in.
pub const STAND_IN: &str = "NEURON_NVCC_STAND_IN";

/// Variables that make the front, and the compiler, build for a generation.
pub fn environment(generation: &Generation) -> Vec<(&'static str, OsString)> {
    let mut environment = vec![("NVCC_APPEND_FLAGS", "--compress-mode=size".into())];
    if generation.fat {
        environment.push((MACHINE_CODE, generation.machine_code.join(" ").into()));
        environment.push((PTX, generation.ptx.into()));
    }
    environment
}

/// Acts as `nvcc` with these arguments.
pub fn run(arguments: Vec<String>) -> Result<ExitCode> {
    if std::env::var_os(STAND_IN).is_some() {
        stand_in(&arguments)?;
        return Ok(ExitCode::SUCCESS);
    }
    let real = std::env::var_os(REAL).with_context(|| format!("{REAL} names no compiler"))?;
    let words = |name| std::env::var(name).unwrap_or_default();
    let arguments = exchange(arguments, &words(MACHINE_CODE), &words(PTX));
    // Only comes back if it could not start.
    Err(Command::new(&real).args(arguments).exec())
        .with_context(|| format!("cannot start {}", real.display()))
}

/// The arguments with the targets exchanged. Whatever compiles nothing for a GPU is left as it is.
fn exchange(arguments: Vec<String>, machine_code: &str, ptx: &str) -> Vec<String> {
    let is_target = |argument: &String| {
        ["-gencode", "--generate-code", "-arch", "--gpu-architecture"]
            .iter()
            .any(|option| argument.strip_prefix(option).is_some_and(|rest| rest.starts_with('=')))
    };
    let to_ptx = arguments.iter().any(|argument| matches!(argument.as_str(), "--ptx" | "-ptx"));
    let wanted: Vec<String> = if to_ptx {
        ptx.split_whitespace().map(|target| generate(target, "compute")).collect()
    } else {
        machine_code.split_whitespace().map(|target| generate(target, "sm")).collect()
    };
    if wanted.is_empty() || !arguments.iter().any(is_target) {
        return arguments;
    }
    wanted.into_iter().chain(arguments.into_iter().filter(|argument| !is_target(argument))).collect()
}

/// The option that generates `kind` (`sm` or `compute`) code for a target such as `sm_100f`.
fn generate(target: &str, kind: &str) -> String {
    let number = target.trim_start_matches("sm_");
    format!("-gencode=arch=compute_{number},code={kind}_{number}")
}

/// Writes the files the compiler was asked for, empty, and answers what it is asked about itself.
fn stand_in(arguments: &[String]) -> Result<()> {
    if arguments.iter().any(|argument| argument == "--version") {
        println!("nvcc: a stand-in\n\n\nCuda compilation tools, release 13.0, V13.0.0");
        return Ok(());
    }
    if arguments.iter().any(|argument| argument == "--list-gpu-code") {
        println!("sm_80\nsm_89\nsm_90\nsm_90a\nsm_100\nsm_100f\nsm_120\nsm_120f");
        return Ok(());
    }
    let after = |option: &str| {
        let place = arguments.iter().position(|argument| argument == option)?;
        arguments.get(place + 1).map(PathBuf::from)
    };
    let source = arguments.iter().map(Path::new).find(|path| path.extension().is_some_and(|e| e == "cu"));
    let output = match (after("-o"), after("--output-directory"), source.and_then(Path::file_stem)) {
        (Some(output), ..) => output,
        (None, Some(folder), Some(stem)) => folder.join(stem).with_extension("ptx"),
        _ => return Ok(()),
    };
    std::fs::write(&output, "").with_context(|| format!("cannot write {}", output.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn only_targets_are_exchanged_and_only_where_something_is_compiled() {
        let object = "-gencode=arch=compute_100a,code=sm_100a -c -o x.o -O3 x.cu";
        let ptx = "-gencode=arch=compute_100a,code=sm_100a --ptx x.cu";
        let cases = [
            (object, "", "", object),
            (
                object,
                "sm_100f sm_120f",
                "sm_100",
                "-gencode=arch=compute_100f,code=sm_100f -gencode=arch=compute_120f,code=sm_120f -c -o x.o -O3 x.cu",
            ),
            (ptx, "sm_100f sm_120f", "sm_100", "-gencode=arch=compute_100,code=compute_100 --ptx x.cu"),
            ("--arch=x --ptx", "", "sm_100", "--arch=x --ptx"),
            ("--lib -o x.a x.o", "sm_100f", "sm_100", "--lib -o x.a x.o"),
            ("--version", "sm_100f", "sm_100", "--version"),
        ];
        for (given, machine_code, to_ptx, expected) in cases {
            assert_eq!(exchange(words(given), machine_code, to_ptx), words(expected), "{given}");
        }
    }

    #[test]
    fn the_stand_in_writes_what_a_compiler_would() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        let run = |text: String| stand_in(&words(&text)).expect("it writes");
        run(format!("-c -o {} x.cu", path("x.o").display()));
        run(format!("--ptx --output-directory {} src/affine.cu", folder.path().display()));
        run("--list-gpu-code".into());
        assert!(path("x.o").exists() && path("affine.ptx").exists());
    }
}
