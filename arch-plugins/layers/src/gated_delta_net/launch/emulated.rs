//! The GPU's kernels, compiled for the CPU as they are, against the CPU's own.
//!
//! This is what makes a wrong kernel fail where there is no GPU. It cannot see races between warps, but every launch is
//! made twice, with the threads of a block in either order, and must give the same bits: a forgotten barrier does not.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::process::Command;

use libloading::Library;

use super::*;
use crate::gated_delta_net::kernel::{self, Form};

type Emulate =
    unsafe extern "C" fn(*const c_char, *const c_uint, c_uint, c_uint, c_int, *const *mut c_void) -> c_int;

/// The kernels as a library of this machine.
struct Emulator {
    library: Library,
    reversed: bool,
    _folder: tempfile::TempDir,
}

impl Emulator {
    /// `None`, said aloud, where there is no C++ compiler.
    fn build(reversed: bool) -> Option<Self> {
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        if Command::new(&compiler).arg("--version").output().is_err() {
            println!("SKIPPED: there is no C++ compiler `{compiler}` to compile the GPU's kernels with");
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let library = folder.path().join("kernels.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/emulated_gated_delta_net.cpp");
        let built = Command::new(&compiler)
            .args(["-std=c++17", "-O1", "-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .output()
            .expect("the compiler runs");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        // SAFETY: the library was just made of the project's own source and runs nothing when it is opened.
        let library = unsafe { Library::new(&library) }.expect("the library opens");
        Some(Self { library, reversed, _folder: folder })
    }
}

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
                Argument::Rows(x) => std::ptr::from_ref(&**x).cast_mut().cast(),
                Argument::Heads(x) => std::ptr::from_ref(x).cast_mut().cast(),
            })
            .collect();
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
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        ((self.0 >> 40) as f32) / (1u64 << 23) as f32 - 1.0
    }

    fn many(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }
}

fn at(values: &[f32]) -> Address {
    values.as_ptr() as Address
}

fn distance(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    assert!(got.iter().all(|x| x.is_finite()), "not finite");
    got.iter().zip(expected).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

fn emulators() -> Vec<Emulator> {
    [false, true].into_iter().filter_map(Emulator::build).collect()
}

/// Lengths of the rows of a step: decodes, short rows, chunks with and without a rest, several pieces.
const ROWS: [&[usize]; 5] = [&[1, 1, 1], &[5, 1, 15], &[64], &[70, 1, 130, 16], &[PIECE + 33]];

#[test]
fn the_delta_rule_is_that_of_the_cpu() {
    let emulators = emulators();
    let mut noise = Noise(1);
    let shapes = [
        (1, 1, 16, 16, KeyHeads::Grouped),
        (2, 4, 32, 40, KeyHeads::Tiled),
        (1, 2, 128, 128, KeyHeads::Grouped),
    ];
    for (key_heads, value_heads, key_dim, value_dim, layout) in shapes {
        let heads = Heads { key_heads, value_heads, key_dim, value_dim, layout };
        let channels = 2 * key_heads * key_dim + value_heads * value_dim;
        let per_state = value_heads * key_dim * value_dim;
        // The longest row is left to the smallest shape: the arithmetic is the same and takes its time.
        for lengths in &ROWS[..if key_dim == 16 { ROWS.len() } else { ROWS.len() - 1 }] {
            let tokens: usize = lengths.iter().sum();
            let mixed = noise.many(tokens * channels);
            let beta: Vec<f32> = noise.many(tokens * value_heads).iter().map(|x| 0.5 + 0.5 * x).collect();
            // One head forgets everything within a token or two.
            let decay: Vec<f32> = (0..tokens * value_heads)
                .map(|i| if i % value_heads == 1 { -38.0 } else { -0.3 * (noise.next() + 1.0) })
                .collect();
            let states: Vec<Vec<f32>> =
                lengths.iter().map(|_| noise.many(per_state).iter().map(|x| 0.1 * x).collect()).collect();

            let mut expected_states = states.clone();
            let mut expected = vec![0f32; tokens * value_heads * value_dim];
            let mut first = 0;
            let rows = lengths.iter().zip(&mut expected_states).map(|(&length, state)| {
                let span = first..first + length;
                first += length;
                let inputs = kernel::Inputs {
                    mixed: &mixed[span.start * channels..span.end * channels],
                    beta: &beta[span.start * value_heads..span.end * value_heads],
                    decay: &decay[span.start * value_heads..span.end * value_heads],
                };
                (span.start, Form::Recurrent, inputs, state.as_mut_slice())
            });
            kernel::delta_rule(&heads, rows.collect(), &mut expected);

            let mut answers = Vec::new();
            for emulator in &emulators {
                let states = states.clone();
                let out = vec![f32::NAN; expected.len()];
                let mut first = 0;
                let rows = lengths.iter().zip(&states).map(|(&tokens, state)| {
                    first += tokens;
                    Row { state: at(state), first: first - tokens, tokens }
                });
                let inputs = Inputs { mixed: at(&mixed), beta: at(&beta), decay: at(&decay) };
                delta_rule(emulator, &heads, inputs, &rows.collect::<Vec<_>>(), at(&out))
                    .expect("it launches");
                let what = format!("{heads:?} rows {lengths:?}");
                assert!(distance(&out, &expected) < 2e-6, "{what}: output {}", distance(&out, &expected));
                let (got, expected) = (states.concat(), expected_states.concat());
                assert!(distance(&got, &expected) < 5e-6, "{what}: state {}", distance(&got, &expected));
                answers.push((out, states));
            }
            assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "the order of threads is seen");
        }
    }
}

#[test]
fn the_convolution_is_that_of_the_cpu() {
    let mut noise = Noise(2);
    for emulator in emulators() {
        for (channels, kernel) in [(300, 4), (8, 2), (5, 1)] {
            for (lengths, bf16) in ROWS[..4].iter().zip([false, true, false, true]) {
                let tokens: usize = lengths.iter().sum();
                let taps = noise.many(kernel * channels);
                let halves: Vec<half::bf16> =
                    noise.many(tokens * channels).into_iter().map(half::bf16::from_f32).collect();
                let wide: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
                let address = if bf16 { halves.as_ptr() as Address } else { at(&wide) };
                let mut expected_states: Vec<Vec<f32>> =
                    lengths.iter().map(|_| noise.many((kernel - 1) * channels)).collect();
                let states = expected_states.clone();
                let (mut expected, out) = (vec![0f32; wide.len()], vec![f32::NAN; wide.len()]);
                let mut rows = Vec::new();
                let mut first = 0;
                for ((&tokens, state), past) in lengths.iter().zip(&states).zip(&mut expected_states) {
                    rows.push(Row { state: at(state), first, tokens });
                    let span = first * channels..(first + tokens) * channels;
                    kernel::causal_conv(&taps, kernel, &wide[span.clone()], past, &mut expected[span]);
                    first += tokens;
                }
                let mixed = Activations { address, bf16 };
                conv(&emulator, mixed, at(&taps), (channels, kernel), &rows, at(&out)).expect("it launches");
                assert!(
                    distance(&out, &expected) < 2e-6,
                    "{channels} channels, {kernel} taps, rows {lengths:?}"
                );
                assert_eq!(states, expected_states, "raw columns are kept as they are");
            }
        }
    }
}

#[test]
fn the_gates_are_those_of_the_cpu() {
    let mut noise = Noise(3);
    for emulator in emulators() {
        let (heads, tokens) = (5, 70);
        let count = heads * tokens;
        let (b, rate, bias) = (noise.many(count), noise.many(heads), noise.many(heads));
        let a: Vec<f32> = noise.many(count).iter().map(|x| 100.0 * x).collect();
        let (beta, decay) = (vec![f32::NAN; count], vec![f32::NAN; count]);
        let of = |values: &[f32]| Activations { address: at(values), bf16: false };
        let (placed, out) = ((at(&rate), at(&bias)), (at(&beta), at(&decay)));
        gates(&emulator, (of(&b), of(&a)), placed, (heads, count), out).expect("it launches");
        let expected: Vec<f32> = b.iter().map(|&x| crate::gated_delta_net::sigmoid(x)).collect();
        assert!(distance(&beta, &expected) < 1e-6);
        let expected: Vec<f32> = (0..count)
            .map(|i| rate[i % heads] * crate::gated_delta_net::softplus(a[i] + bias[i % heads]))
            .collect();
        assert!(distance(&decay, &expected) < 1e-5);
    }
}

#[test]
fn constants_are_those_of_the_kernels() {
    let source = include_str!("../../../cuda/gated_delta_net.cu");
    let constants = [
        ("MAX_ROWS", MAX_ROWS),
        ("CHUNK", CHUNK),
        ("COLUMNS", COLUMNS),
        ("SLICES", SLICES),
        ("PANEL", PANEL),
        ("WIDE", WIDE),
        ("CHANNELS", CHANNELS),
        ("RUN", RUN),
    ];
    for (name, value) in constants {
        assert!(source.lines().any(|line| line.starts_with(&format!("#define {name} {value} "))), "{name}");
    }
}
