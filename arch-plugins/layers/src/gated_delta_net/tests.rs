//! The two forms against each other and against the recurrence in f64, in batches and in pieces.

use candle_core::{Device, Tensor};

use super::kernel::{self, Form, Heads, Inputs};
use super::{DeltaDims, DeltaState, KeyHeads, delta_rule, softplus};

/// Numbers in −1…1 from a counter, so that a failure can be repeated.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ (x >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn many(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }
}

struct Case {
    heads: Heads,
    mixed: Vec<f32>,
    beta: Vec<f32>,
    decay: Vec<f32>,
    state: Vec<f32>,
}

impl Case {
    /// Realistic gates, and one head that forgets everything within a token or two.
    fn new(tokens: usize, heads: Heads, seed: u64) -> Self {
        let mut noise = Noise(seed);
        let channels = 2 * heads.key_heads * heads.key_dim + heads.value_heads * heads.value_dim;
        let decay = (0..tokens * heads.value_heads)
            .map(|i| if i % heads.value_heads == 1 { -38.0 } else { -0.3 * (noise.next() + 1.0) })
            .collect();
        Self {
            heads,
            mixed: noise.many(tokens * channels),
            beta: noise.many(tokens * heads.value_heads).iter().map(|x| 0.5 + 0.5 * x).collect(),
            decay,
            state: noise
                .many(heads.value_heads * heads.key_dim * heads.value_dim)
                .iter()
                .map(|x| 0.1 * x)
                .collect(),
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs { mixed: &self.mixed, beta: &self.beta, decay: &self.decay }
    }

    fn run(&self, form: Form) -> (Vec<f32>, Vec<f32>) {
        let tokens = self.decay.len() / self.heads.value_heads;
        let mut state = self.state.clone();
        let mut out = vec![0f32; tokens * self.heads.value_heads * self.heads.value_dim];
        kernel::delta_rule(&self.heads, vec![(0, form, self.inputs(), &mut state)], &mut out);
        (out, state)
    }

    /// The recurrence as it is written in the paper, in f64.
    fn reference(&self) -> (Vec<f64>, Vec<f64>) {
        let Heads { key_heads, value_heads, key_dim: dk, value_dim: dv, .. } = self.heads;
        let tokens = self.decay.len() / value_heads;
        let channels = 2 * key_heads * dk + value_heads * dv;
        let mut state: Vec<f64> = self.state.iter().map(|&x| f64::from(x)).collect();
        let mut out = vec![0f64; tokens * value_heads * dv];
        for t in 0..tokens {
            let token: Vec<f64> =
                self.mixed[t * channels..(t + 1) * channels].iter().map(|&x| f64::from(x)).collect();
            for h in 0..value_heads {
                let key_head = match self.heads.layout {
                    KeyHeads::Grouped => h * key_heads / value_heads,
                    KeyHeads::Tiled => h % key_heads,
                };
                let unit = |x: &[f64]| -> Vec<f64> {
                    let length = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
                    x.iter().map(|x| x / length).collect()
                };
                let q: Vec<f64> = unit(&token[key_head * dk..(key_head + 1) * dk])
                    .iter()
                    .map(|x| x / (dk as f64).sqrt())
                    .collect();
                let k = unit(&token[(key_heads + key_head) * dk..(key_heads + key_head + 1) * dk]);
                let v = &token[2 * key_heads * dk + h * dv..2 * key_heads * dk + (h + 1) * dv];
                let (g, beta) =
                    (f64::from(self.decay[t * value_heads + h]), f64::from(self.beta[t * value_heads + h]));
                let m = &mut state[h * dk * dv..(h + 1) * dk * dv];
                m.iter_mut().for_each(|m| *m *= g.exp());
                for j in 0..dv {
                    let u = beta * (v[j] - (0..dk).map(|i| m[i * dv + j] * k[i]).sum::<f64>());
                    (0..dk).for_each(|i| m[i * dv + j] += k[i] * u);
                    out[(t * value_heads + h) * dv + j] = (0..dk).map(|i| m[i * dv + j] * q[i]).sum();
                }
            }
        }
        (out, state)
    }
}

fn heads(key_heads: usize, value_heads: usize, key_dim: usize, value_dim: usize) -> Heads {
    Heads { key_heads, value_heads, key_dim, value_dim, layout: KeyHeads::Grouped }
}

fn distance(got: &[f32], expected: &[f64]) -> f64 {
    assert!(got.iter().all(|x| x.is_finite()), "not finite");
    got.iter().zip(expected).map(|(x, y)| (f64::from(*x) - y).abs()).fold(0.0, f64::max)
}

fn check(case: &Case, what: &str) {
    let (out, state) = case.reference();
    for form in [Form::Recurrent, Form::Chunked] {
        let (got_out, got_state) = case.run(form);
        let (out_error, state_error) = (distance(&got_out, &out), distance(&got_state, &state));
        assert!(out_error < 2e-6, "{what}, {form:?}: output differs by {out_error}");
        assert!(state_error < 1e-5, "{what}, {form:?}: state differs by {state_error}");
    }
}

#[test]
fn both_forms_match_the_recurrence_in_f64() {
    for tokens in [1, 2, 5, 63, 64, 65, 130, 200] {
        check(&Case::new(tokens, heads(2, 6, 16, 32), tokens as u64), &format!("{tokens} tokens"));
    }
    check(&Case::new(70, heads(1, 2, 128, 128), 7), "published sizes");
    check(&Case::new(70, heads(2, 4, 24, 20), 7), "sizes that are no multiple of a register");
    let tiled = Heads { layout: KeyHeads::Tiled, ..heads(2, 6, 16, 16) };
    check(&Case::new(70, tiled, 7), "value heads that cycle");
}

#[test]
fn equal_keys_written_at_full_strength_stay_finite() {
    let mut case = Case::new(128, heads(1, 2, 32, 32), 3);
    let channels = 2 * 32 + 2 * 32;
    let key: Vec<f32> = case.mixed[32..64].to_vec();
    for t in 0..128 {
        case.mixed[t * channels + 32..t * channels + 64].copy_from_slice(&key);
    }
    case.beta.fill(1.0);
    case.decay.fill(0.0);
    check(&case, "equal keys, no decay");
}

#[test]
fn a_sequence_does_not_notice_its_neighbours() {
    let dims = DeltaDims {
        key_heads: 2,
        value_heads: 4,
        key_dim: 16,
        value_dim: 16,
        conv_kernel: 4,
        layout: KeyHeads::Grouped,
        prefill: Form::Chunked,
    };
    let case = Case::new(75, heads(2, 4, 16, 16), 11);
    let tensor = |values: &[f32], width: usize| {
        Tensor::from_slice(values, (values.len() / width, width), &Device::Cpu).expect("a tensor")
    };
    let (mixed, beta, decay) =
        (tensor(&case.mixed, dims.channels()), tensor(&case.beta, 4), tensor(&case.decay, 4));
    let run = |rows: &[std::ops::Range<usize>]| -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
        let mut states: Vec<DeltaState> = rows.iter().map(|_| DeltaState::new(&dims)).collect();
        let mut borrowed: Vec<&mut DeltaState> = states.iter_mut().collect();
        let out = delta_rule(&dims, &mixed, &beta, &decay, rows, &mut borrowed).expect("runs");
        let states = states.iter().map(|state| state.recurrent().expect("f32").to_vec1().expect("f32"));
        (out.flatten_from(1).expect("flat").to_vec2().expect("f32"), states.collect())
    };
    let (together, states) = run(&[0..1, 1..70, 70..75]);
    for (i, span) in [0..1, 1..70, 70..75].into_iter().enumerate() {
        let (alone, state) = run(std::slice::from_ref(&span));
        assert_eq!(together[span.clone()], alone[span.clone()], "row {i}");
        assert_eq!(states[i], state[0], "state of row {i}");
    }
}

#[test]
fn a_convolution_in_pieces_is_the_convolution() {
    let (kernel, channels, tokens) = (4, 6, 11);
    let mut noise = Noise(5);
    let (taps, input) = (noise.many(kernel * channels), noise.many(tokens * channels));
    let run = |pieces: &[usize]| {
        let (mut past, mut out, mut at) =
            (vec![0f32; (kernel - 1) * channels], vec![0f32; tokens * channels], 0);
        for piece in pieces {
            let span = at * channels..(at + piece) * channels;
            kernel::causal_conv(&taps, kernel, &input[span.clone()], &mut past, &mut out[span]);
            at += piece;
        }
        (out, past)
    };
    let whole = run(&[11]);
    assert_eq!(whole.1, input[8 * channels..], "the state is the newest raw tokens");
    for pieces in [vec![1; 11], vec![2, 9], vec![9, 2], vec![3, 3, 5], vec![1, 1, 9]] {
        assert_eq!(run(&pieces), whole, "pieces {pieces:?}");
    }
}

#[test]
fn softplus_of_large_numbers_is_the_number() {
    assert_eq!(softplus(200.0), 200.0);
    assert!((softplus(0.0) - 2f32.ln()).abs() < 1e-7);
    assert!(softplus(-200.0) >= 0.0 && softplus(-200.0) < 1e-30);
}

#[test]
fn the_recurrent_form_is_the_same_bits_wherever_a_prompt_is_cut() {
    let case = Case::new(70, heads(2, 6, 16, 32), 13);
    let channels = case.mixed.len() / 70;
    let (whole, whole_state) = case.run(Form::Recurrent);
    let (mut state, mut out) = (case.state.clone(), Vec::new());
    for (start, end) in [(0, 1), (1, 33), (33, 70)] {
        let inputs = Inputs {
            mixed: &case.mixed[start * channels..end * channels],
            beta: &case.beta[start * 6..end * 6],
            decay: &case.decay[start * 6..end * 6],
        };
        let mut piece = vec![0f32; (end - start) * 6 * 32];
        kernel::delta_rule(&case.heads, vec![(0, Form::Recurrent, inputs, &mut state)], &mut piece);
        out.extend(piece);
    }
    assert_eq!(out, whole);
    assert_eq!(state, whole_state);
}
