//! Stand-ins that CUDA code links with instead of the CUDA libraries, so that a plugin loads anywhere.
//!
//! The bindings used here link dynamically, which would make a plugin need `libcuda.so.1` before any of its own
//! code can say what is missing. So `-lcuda` and its like find static archives made here. Each holds one trampoline
//! per entry point the bindings can name; its first call opens the real library and goes on there. While the
//! library is missing, every entry point returns a status that the bindings turn into an error. A plugin learns
//! what was found through `neuron_shim_<library>_report`.
//!
//! The entry points are read from the bindings' own source, so that the archives never lag behind it.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// The part of every archive that is written by hand.
pub const SOURCE: &str = include_str!("shim.c");

/// One CUDA library.
struct Library {
    /// The name after `-l`.
    link: &'static str,
    /// What people call it.
    name: &'static str,
    /// The bindings' module.
    module: &'static str,
    /// The file to open.
    soname: &'static str,
    /// Status of every call while it is missing: one that says so, where the library has one.
    absent: u32,
    /// Status of a call the found library does not know.
    unknown: u32,
    /// How it tells its version: kind and entry point.
    version: (&'static str, &'static str),
    /// Oldest version that will do, in its own counting.
    needed: u32,
    /// What to do when it is missing.
    remedy: &'static str,
}

const RUNTIME: &str = "install the CUDA 13 runtime libraries, or name their folder in NEURON_CUDA_LIBS";

/// Statuses: `CUDA_ERROR_STUB_LIBRARY` and `NOT_SUPPORTED` for the driver, else "not initialized" or the like.
const LIBRARIES: &[Library] = &[
    Library {
        link: "cuda",
        name: "the NVIDIA driver",
        module: "driver",
        soname: "libcuda.so.1",
        absent: 34,
        unknown: 801,
        version: ("STATUS", "cuDriverGetVersion"),
        needed: 13000,
        remedy: "install an NVIDIA driver of series 580 or newer",
    },
    Library {
        link: "cublas",
        name: "cuBLAS",
        module: "cublas",
        soname: "libcublas.so.13",
        absent: 1,
        unknown: 15,
        version: ("PROPERTY", "cublasGetProperty"),
        needed: 130000,
        remedy: RUNTIME,
    },
    Library {
        link: "cublasLt",
        name: "cuBLASLt",
        module: "cublaslt",
        soname: "libcublasLt.so.13",
        absent: 1,
        unknown: 15,
        version: ("PROPERTY", "cublasLtGetProperty"),
        needed: 130000,
        remedy: RUNTIME,
    },
    Library {
        link: "curand",
        name: "cuRAND",
        module: "curand",
        soname: "libcurand.so.10",
        absent: 203,
        unknown: 203,
        version: ("PROPERTY", "curandGetProperty"),
        needed: 100000,
        remedy: RUNTIME,
    },
    Library {
        link: "nvrtc",
        name: "NVRTC",
        module: "nvrtc",
        soname: "libnvrtc.so.13",
        absent: 11,
        unknown: 11,
        version: ("PAIR", "nvrtcVersion"),
        needed: 13000,
        remedy: RUNTIME,
    },
    Library {
        link: "nccl",
        name: "NCCL",
        module: "nccl",
        soname: "libnccl.so.2",
        absent: 2,
        unknown: 2,
        version: ("STATUS", "ncclGetVersion"),
        needed: 22200,
        remedy: "install NCCL 2, or name its folder in NEURON_CUDA_LIBS; one GPU alone needs none",
    },
    Library {
        link: "cudnn",
        name: "cuDNN",
        module: "cudnn",
        soname: "libcudnn.so.9",
        absent: 1001,
        unknown: 3000,
        version: ("NUMBER", "cudnnGetVersion"),
        needed: 90000,
        remedy: RUNTIME,
    },
];

/// An entry point and the kind of its answer: `s`tatus, `t`ext or `n`umber.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    name: String,
    answer: char,
}

/// Makes `lib<name>.a` of every library in `folder`, from the source of the bindings.
pub fn make(bindings: &Path, folder: &Path) -> Result<()> {
    for library in LIBRARIES {
        let source = bindings.join("src").join(library.module).join("sys/mod.rs");
        let text = std::fs::read_to_string(&source)
            .with_context(|| format!("cannot read the bindings of {}: {}", library.name, source.display()))?;
        let entries = entries(&text);
        if entries.is_empty() {
            bail!("{} names no entry point; its form has changed, and so must this tool", source.display());
        }
        archive(library, &entries, folder)?;
        println!("  lib{}.a: {} entry points of {}", library.link, entries.len(), library.soname);
    }
    Ok(())
}

/// The entry points that a module of the bindings can call, sorted. Each is named once where it is declared as a
/// symbol (`fn name(…) -> Status;`) and once where it is looked up (`load::<_F>("name")`, after the type that says
/// what it returns); either is enough.
fn entries(source: &str) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut signature = "";
    for line in source.lines().map(str::trim_start) {
        if line.starts_with("type _F = ") {
            signature = line;
        }
        let declared =
            line.strip_prefix("fn ").filter(|rest| rest.ends_with(';')).and_then(|rest| rest.split_once('('));
        let looked_up = line.split_once("load::<_F>(\"").and_then(|(_, rest)| rest.split_once('"'));
        if let Some((name, rest)) = declared {
            found.push(Entry { name: name.to_owned(), answer: answer(rest) });
        } else if let Some((name, _)) = looked_up {
            found.push(Entry { name: name.to_owned(), answer: answer(signature) });
        }
    }
    found.sort();
    found.dedup_by(|a, b| a.name == b.name);
    found
}

/// The kind of answer a signature ends with.
fn answer(signature: &str) -> char {
    match signature.rsplit_once(") -> ").map_or("", |(_, returned)| returned.trim_end_matches(';')) {
        text if text.contains("c_char") => 't',
        "usize" => 'n',
        _ => 's',
    }
}

/// Compiles and archives the stand-in of one library.
fn archive(library: &Library, entries: &[Entry], folder: &Path) -> Result<()> {
    let work = folder.join(format!(".{}", library.link));
    std::fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    std::fs::write(work.join("shim.h"), header(library, entries))?;
    std::fs::write(work.join("shim.c"), SOURCE)?;
    std::fs::write(work.join("trampolines.S"), trampolines(library, entries))?;
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "gcc".into());
    for (source, object) in [("shim.c", "shim.o"), ("trampolines.S", "trampolines.o")] {
        let mut compile = Command::new(&compiler);
        compile
            .current_dir(&work)
            .args(["-O2", "-fPIC", "-Wall", "-Wextra", "-Werror", "-include", "shim.h"]);
        if source.ends_with(".S") {
            compile = Command::new(&compiler);
            compile.current_dir(&work).arg("-fPIC");
        }
        process::run(compile.args(["-c", source, "-o", object]))
            .context("a C compiler is needed for the link shims: install gcc, or name one in CC")?;
    }
    let archive = folder.join(format!("lib{}.a", library.link));
    let archiver = std::env::var_os("AR").unwrap_or_else(|| "ar".into());
    process::run(
        Command::new(archiver).current_dir(&work).arg("crs").arg(&archive).args(["shim.o", "trampolines.o"]),
    )
    .context("an archiver is needed for the link shims: install binutils, or name one in AR")?;
    std::fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))
}

/// What `shim.c` is compiled with.
fn header(library: &Library, entries: &[Entry]) -> String {
    let Library { link, name, soname, absent, unknown, needed, remedy, .. } = library;
    let (kind, asked) = library.version;
    let names: Vec<String> = entries.iter().map(|entry| format!("\"{}\"", entry.name)).collect();
    let answers: String = entries.iter().map(|entry| entry.answer).collect();
    let stem = soname.split(".so").next().unwrap_or(soname);
    format!(
        "#define SHIM(part) neuron_shim_{link}_##part\n\
         #define SHIM_NAME \"{name}\"\n\
         #define SHIM_SONAME \"{soname}\"\n\
         #define SHIM_STEM \"{stem}\"\n\
         #define SHIM_NEEDED {needed}\n\
         #define SHIM_ABSENT {absent}\n\
         #define SHIM_UNKNOWN {unknown}\n\
         #define SHIM_VERSION_{kind} \"{asked}\"\n\
         #define SHIM_REMEDY \"{remedy}\"\n\
         #define SHIM_COUNT {}\n\
         #define SHIM_NAMES {}\n\
         #define SHIM_ANSWERS \"{answers}\"\n",
        entries.len(),
        names.join(", "),
    )
}

/// One jump per entry point through a table. Each place in the table first leads to a stub that notes the entry
/// point's number and takes the slow way: keep every register an argument can be in, ask where to go, go there.
fn trampolines(library: &Library, entries: &[Entry]) -> String {
    let prefix = format!("neuron_shim_{}", library.link);
    let mut text = String::from(".text\n");
    for (index, entry) in entries.iter().enumerate() {
        let name = &entry.name;
        let _ = write!(
            text,
            ".globl {name}\n.hidden {name}\n.type {name}, @function\n.p2align 4\n{name}:\n\
             \tjmp *{prefix}_table+{}(%rip)\n.Lfirst{index}:\n\tpushq ${index}\n\tjmp .Lslow\n\
             .size {name}, . - {name}\n",
            index * 8
        );
    }
    text.push_str(".p2align 4\n.Lslow:\n");
    // Ten words and 128 bytes below the return address: the stack is aligned to 16 again for the call.
    let integers = ["rax", "rdi", "rsi", "rdx", "rcx", "r8", "r9", "r10"];
    for register in integers {
        let _ = writeln!(text, "\tpushq %{register}");
    }
    text.push_str("\tsubq $128, %rsp\n");
    for number in 0..8 {
        let _ = writeln!(text, "\tmovups %xmm{number}, {}(%rsp)", number * 16);
    }
    let _ = write!(text, "\tmovq 192(%rsp), %rdi\n\tcall {prefix}_resolve\n\tmovq %rax, %r11\n");
    for number in 0..8 {
        let _ = writeln!(text, "\tmovups {}(%rsp), %xmm{number}", number * 16);
    }
    text.push_str("\taddq $128, %rsp\n");
    for register in integers.iter().rev() {
        let _ = writeln!(text, "\tpopq %{register}");
    }
    text.push_str("\taddq $8, %rsp\n\tjmp *%r11\n");
    let _ = write!(
        text,
        ".section .data.rel.local, \"aw\", @progbits\n.p2align 3\n.globl {prefix}_table\n.hidden {prefix}_table\n\
         {prefix}_table:\n"
    );
    for index in 0..entries.len() {
        let _ = writeln!(text, "\t.quad .Lfirst{index}");
    }
    let _ = write!(text, ".hidden {prefix}_resolve\n.section .note.GNU-stack, \"\", @progbits\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const BINDINGS: &str = r#"
pub fn cuInit(Flags: c_uint) -> CUresult {
    #[cfg(feature = "dynamic-loading")]
    {
        type _F = unsafe extern "C" fn(c_uint) -> CUresult;
        let _f = _S.get_or_init(|| unsafe { load::<_F>("cuInit") });
    }
    #[cfg(not(feature = "dynamic-loading"))]
    {
        extern "C" {
            fn cuInit(Flags: c_uint) -> CUresult;
        }
    }
}
        type _F = unsafe extern "C" fn(ncclResult_t) -> *const ::core::ffi::c_char;
        let _f = _S.get_or_init(|| unsafe { load::<_F>("ncclGetErrorString") });
            fn cudnnGetVersion() -> usize;
pub fn is_culib_present() -> bool {
"#;

    fn found() -> Vec<(String, char)> {
        entries(BINDINGS).into_iter().map(|entry| (entry.name, entry.answer)).collect()
    }

    #[test]
    fn entry_points_are_read_from_the_bindings() {
        let expected = [("cuInit", 's'), ("cudnnGetVersion", 'n'), ("ncclGetErrorString", 't')];
        assert_eq!(found(), expected.map(|(name, answer)| (name.to_owned(), answer)));
    }

    /// A program with the archive in it: works without the library, and passes every argument on with it.
    #[test]
    fn a_trampoline_answers_for_a_missing_library_and_passes_arguments_to_a_found_one() {
        let Ok(folder) = tempfile::tempdir() else { panic!("no temporary folder") };
        let at = |name: &str| folder.path().join(name);
        let library = Library {
            link: "toy",
            name: "toy",
            module: "",
            soname: "libtoy.so.3",
            absent: 34,
            unknown: 801,
            version: ("STATUS", "toyVersion"),
            needed: 3000,
            remedy: "make one",
        };
        let entry = |name: &str, answer| Entry { name: name.to_owned(), answer };
        let entries =
            [entry("toyMix", 's'), entry("toyNew", 's'), entry("toyText", 't'), entry("toyVersion", 's')];
        archive(&library, &entries, folder.path()).expect("the archive is made");
        std::fs::write(at("toy.c"), TOY).and_then(|()| std::fs::write(at("main.c"), MAIN)).expect("written");
        let compile = |arguments: &[&str]| {
            process::run(Command::new("gcc").current_dir(folder.path()).args(arguments))
                .expect("it compiles");
        };
        compile(&["-shared", "-fPIC", "-o", "real.so", "toy.c"]);
        compile(&["-o", "main", "main.c", "-L.", "-ltoy"]);
        let run = || {
            let output =
                Command::new(at("main")).env("NEURON_CUDA_LIBS", folder.path()).output().expect("it runs");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let missing = run();
        assert!(missing.starts_with("34 34 toy is not available\nlibtoy.so.3 was not found"), "{missing}");
        assert!(missing.contains("make one"), "{missing}");
        std::fs::rename(at("real.so"), at("libtoy.so.2")).expect("renamed");
        let older = run();
        assert!(
            older.contains("libtoy.so.3 is needed, but only") && older.contains("libtoy.so.2"),
            "{older}"
        );
        std::fs::rename(at("libtoy.so.2"), at("libtoy.so.3")).expect("renamed");
        let found = run();
        assert!(
            found.starts_with("0 801 real text\n") && found.contains("libtoy.so.3, version 3010"),
            "{found}"
        );
    }

    const TOY: &str = r#"
int toyVersion(int *version) { *version = 3010; return 0; }
const char *toyText(int status) { return status == 7 ? "real text" : "wrong"; }
int toyMix(long a, long b, long c, long d, long e, long f, double g, float h, double i, double j, double k,
           double l, double m, double n, long o, double p) {
    return !(a == 1 && b == 2 && c == 3 && d == 4 && e == 5 && f == 6 && g == 7.5 && h == 8.5f && i == 9.5 &&
             j == 10.5 && k == 11.5 && l == 12.5 && m == 13.5 && n == 14.5 && o == 15 && p == 16.5);
}
"#;

    const MAIN: &str = r#"
#include <stdio.h>
struct report { const char *name, *path, *sentence; int found, needed; };
const struct report *neuron_shim_toy_report(void);
int toyNew(int), toyMix(long, long, long, long, long, long, double, float, double, double, double, double,
                        double, double, long, double);
const char *toyText(int);
int main(void) {
    int mixed = toyMix(1, 2, 3, 4, 5, 6, 7.5, 8.5f, 9.5, 10.5, 11.5, 12.5, 13.5, 14.5, 15, 16.5);
    int again = toyMix(1, 2, 3, 4, 5, 6, 7.5, 8.5f, 9.5, 10.5, 11.5, 12.5, 13.5, 14.5, 15, 16.5);
    printf("%d %d %s\n", mixed, toyNew(1), toyText(7));
    printf("%s\n", neuron_shim_toy_report()->sentence);
    return mixed != again;
}
"#;
}
