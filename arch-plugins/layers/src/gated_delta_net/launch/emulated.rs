//! The kernels of linear attention, emulated, against the CPU's own.

use super::*;
use crate::device::launch::CHANNELS;
use crate::device::launch::emulated::{Noise, at, distance, emulators};
use crate::gated_delta_net::kernel::{self, Form};

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
