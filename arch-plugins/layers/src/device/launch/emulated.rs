//! The GPU's kernels, compiled for the CPU as they are.
//!
//! This is what makes a wrong kernel fail where there is no GPU. It cannot see races between warps, but a launch can be made
//! with the threads of a block in either order, and must give the same bits: with a forgotten barrier it does not.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::Library;

use super::{Address, Argument, Grid, Launcher};
use crate::error::Result;

type Emulate =
    unsafe extern "C" fn(*const c_char, *const c_uint, c_uint, c_uint, c_int, *const *mut c_void) -> c_int;

/// The kernels as a library of this machine.
pub(crate) struct Emulator {
    library: &'static Library,
    /// Threads of a block run last to first between barriers.
    reversed: bool,
}

/// Compiled once; `None`, said aloud, where there is no C++ compiler.
fn library() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    LIBRARY.get_or_init(compile).as_ref()
}

fn compile() -> Option<Library> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    if Command::new(&compiler).arg("--version").output().is_err() {
        println!("SKIPPED: there is no C++ compiler `{compiler}` to compile the GPU's kernels with");
        return None;
    }
    // Gone at the end of this function, when the library is open.
    let folder = tempfile::tempdir().expect("a folder");
    let library = folder.path().join("kernels.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/emulated_kernels.cpp");
    let built = Command::new(&compiler)
        .args(["-std=c++17", "-O2", "-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .output()
        .expect("the compiler runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    // SAFETY: the library was just made of the project's own source and runs nothing when it is opened.
    Some(unsafe { Library::new(&library) }.expect("the library opens"))
}

/// Kernels run one launch at a time: the emulation is one processor.
static RUNNING: Mutex<()> = Mutex::new(());

impl Launcher for Emulator {
    type Memory = Vec<f32>;

    fn memory(&self, values: usize) -> Result<Vec<f32>> {
        Ok(vec![f32::NAN; values])
    }

    fn address(&self, memory: &Vec<f32>) -> Address {
        memory.as_ptr() as Address
    }

    fn launch(&self, kernel: &'static str, grid: Grid, arguments: &[Argument]) -> Result<()> {
        let mut pointers: Vec<*mut c_void> = arguments
            .iter()
            .map(|argument| match argument {
                Argument::Address(x) => std::ptr::from_ref(x).cast_mut().cast(),
                Argument::Int(x) => std::ptr::from_ref(x).cast_mut().cast(),
                Argument::Float(x) => std::ptr::from_ref(x).cast_mut().cast(),
                Argument::Rows(x) => std::ptr::from_ref(&**x).cast_mut().cast(),
                Argument::Heads(x) => std::ptr::from_ref(x).cast_mut().cast(),
                Argument::Sequences(x) => std::ptr::from_ref(&**x).cast_mut().cast(),
                Argument::Shape(x) => std::ptr::from_ref(x).cast_mut().cast(),
            })
            .collect();
        let _one_at_a_time = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let name = CString::new(kernel).expect("no zero");
        // SAFETY: the function has this type; the pointers are to arguments of the kernel's types, and the addresses among
        // them to vectors that live until it returns.
        let code = unsafe {
            let emulate = self.library.get::<Emulate>(b"emulate").expect("it is there");
            emulate(
                name.as_ptr(),
                grid.blocks.as_ptr(),
                grid.threads,
                grid.shared_bytes,
                c_int::from(self.reversed),
                pointers.as_mut_ptr(),
            )
        };
        assert_eq!(code, 0, "{kernel} {grid:?}: 1 is unknown, 2 a barrier not all threads reached");
        Ok(())
    }
}

/// Numbers in −1…1 from a counter, so that a failure can be repeated.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        ((self.0 >> 40) as f32) / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn many(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }
}

/// Where values are.
pub(crate) fn at(values: &[f32]) -> Address {
    values.as_ptr() as Address
}

/// The largest difference.
pub(crate) fn distance(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    assert!(got.iter().all(|x| x.is_finite()), "not finite");
    got.iter().zip(expected).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

/// In either order of threads.
pub(crate) fn emulators() -> Vec<Emulator> {
    let Some(library) = library() else { return Vec::new() };
    [false, true].map(|reversed| Emulator { library, reversed }).into()
}
