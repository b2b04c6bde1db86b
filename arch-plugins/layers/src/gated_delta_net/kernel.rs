//! The arithmetic of the delta rule on the CPU, f32, on plain slices.
//!
//! Two forms give the same numbers up to rounding, and both continue from any incoming state, so a prompt may be cut
//! anywhere. The recurrent form walks token by token and defines what the layer means; a block of the state's columns stays
//! in the nearest cache meanwhile. The chunked form turns 64 tokens at a time into small matrix products, with
//! more arithmetic but all of it in matrices, which is what a device with matrix units wants. On a CPU the recurrent
//! form is the faster one at any length, and its bits do not depend on where a prompt is cut.
//!
//! Decay between two tokens of a chunk is the exponential of a *difference* of cumulative sums. It must never be
//! factored into `e^{c_i} · e^{−c_j}`: one fast-forgetting head reaches `c = −2000` and the second factor overflows.

use std::sync::{Mutex, PoisonError};

use crate::kernel::delta::{self, COLUMNS};
use crate::kernel::pointwise::{self, Gate};
use crate::kernel::{Isa, pool};
use crate::mistake::{Mistake, made};

/// Tokens the chunked form takes at once.
pub const CHUNK: usize = 64;

/// Values of a row that a matrix product keeps in registers.
const LANES: usize = 16;

/// Which of the two forms computes a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Token by token.
    Recurrent,
    /// [`CHUNK`] tokens at a time.
    Chunked,
}

/// Which key head a value head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyHeads {
    /// Each key head serves consecutive value heads: the order of safetensors checkpoints.
    Grouped,
    /// Value heads cycle through the key heads: the order of GGUF files.
    Tiled,
}

/// Counts and sizes of the heads.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Key heads; queries have as many.
    pub key_heads: usize,
    /// Value heads, a multiple of `key_heads`.
    pub value_heads: usize,
    /// Size of a key and of a query.
    pub key_dim: usize,
    /// Size of a value.
    pub value_dim: usize,
    /// How value heads find their key head.
    pub layout: KeyHeads,
}

impl Heads {
    fn key_head(&self, value_head: usize) -> usize {
        match self.layout {
            KeyHeads::Grouped => value_head / (self.value_heads / self.key_heads),
            KeyHeads::Tiled => value_head % self.key_heads,
        }
    }

    fn channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }
}

/// One row's tokens, all slices row-major by token.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// `[tokens, channels]`: queries, keys, values after the convolution.
    pub mixed: &'a [f32],
    /// `[tokens, value_heads]`, how much of the error is written.
    pub beta: &'a [f32],
    /// `[tokens, value_heads]`, the logarithm of the decay, never positive.
    pub decay: &'a [f32],
}

/// `out[t] = silu(Σ_j taps[j] · x[t − (K−1) + j])`, tokens before the row coming from `past`, which afterwards holds
/// the newest `K−1` tokens. `taps` is `[K, channels]`, `past` `[K−1, channels]`, `input` and `out` `[tokens, channels]`.
pub fn causal_conv(taps: &[f32], kernel: usize, input: &[f32], past: &mut [f32], out: &mut [f32]) {
    let channels = taps.len() / kernel;
    let tokens = input.len() / channels;
    let keep = kernel - 1;
    if made(Mistake::ForgottenConv) && tokens == 1 {
        past.fill(0.0);
    }
    let column = |t: usize| -> &[f32] {
        if t < keep {
            &past[t * channels..(t + 1) * channels]
        } else {
            &input[(t - keep) * channels..(t - keep + 1) * channels]
        }
    };
    let isa = Isa::best();
    let rows: Vec<_> = out.chunks_mut(channels).map(Mutex::new).collect();
    pool::split(tokens, 4, &|start, end| {
        for (t, row) in rows.iter().enumerate().take(end).skip(start) {
            let mut row = row.lock().unwrap_or_else(PoisonError::into_inner);
            row.fill(0.0);
            for (j, tap) in taps.chunks_exact(channels).enumerate() {
                for ((o, w), x) in row.iter_mut().zip(tap).zip(column(t + j)) {
                    *o += w * x;
                }
            }
            if !made(Mistake::NoConvSilu) {
                let x = row.as_mut_ptr();
                // SAFETY: the row has `channels` values, may be its own gate, and `isa` is a level of this processor.
                unsafe { pointwise::gated(isa, x, x, x, channels, Gate::Sigmoid) };
            }
        }
    });
    drop(rows);
    let newest = (tokens..tokens + keep).flat_map(|t| column(t).iter().copied()).collect::<Vec<_>>();
    past.copy_from_slice(&newest);
}

/// One sequence's part of a step: its first token in the step, the form, its inputs, and its state `[value_heads,
/// key_dim, value_dim]`, which is advanced.
pub type Row<'a> = (usize, Form, Inputs<'a>, &'a mut [f32]);

/// Runs every value head of every row over the row's tokens, all of them in parallel.
///
/// `out` is `[tokens of the step, value_heads, value_dim]`.
pub fn delta_rule(heads: &Heads, rows: Vec<Row<'_>>, out: &mut [f32]) {
    let per_head = heads.key_dim * heads.value_dim;
    let jobs: Vec<Mutex<Job<'_>>> = rows
        .into_iter()
        .flat_map(|(first, form, inputs, state)| {
            let job =
                move |(head, state)| Mutex::new(Job { first, head, form, inputs, state, out: Vec::new() });
            state.chunks_mut(per_head).enumerate().map(job)
        })
        .collect();
    let isa = Isa::best();
    pool::run(jobs.len(), &|i| {
        jobs[i].lock().unwrap_or_else(PoisonError::into_inner).run(heads, isa);
    });
    for job in jobs {
        let job = job.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (t, values) in job.out.chunks_exact(heads.value_dim).enumerate() {
            let at = ((job.first + t) * heads.value_heads + job.head) * heads.value_dim;
            out[at..at + heads.value_dim].copy_from_slice(values);
        }
    }
}

/// One value head of one row.
struct Job<'a> {
    first: usize,
    head: usize,
    form: Form,
    inputs: Inputs<'a>,
    state: &'a mut [f32],
    /// `[tokens, value_dim]`.
    out: Vec<f32>,
}

impl Job<'_> {
    fn run(&mut self, heads: &Heads, isa: Isa) {
        let tokens = self.inputs.decay.len() / heads.value_heads;
        self.out = vec![0f32; tokens * heads.value_dim];
        let mut chunk = Chunk::default();
        for start in (0..tokens).step_by(CHUNK) {
            let end = (start + CHUNK).min(tokens);
            chunk.gather(heads, self.head, &self.inputs, start, end);
            let out = &mut self.out[start * heads.value_dim..end * heads.value_dim];
            match self.form {
                Form::Recurrent => chunk.recurrent(isa, self.state, out),
                Form::Chunked => chunk.chunked(self.state, out),
            }
        }
    }
}

/// Up to [`CHUNK`] tokens of one value head, gathered out of the batch.
#[derive(Default)]
struct Chunk {
    key_dim: usize,
    value_dim: usize,
    /// `[tokens, key_dim]`, unit length, scaled by `1/√key_dim`.
    q: Vec<f32>,
    /// `[tokens, key_dim]`, unit length.
    k: Vec<f32>,
    /// `[tokens, value_dim]`.
    v: Vec<f32>,
    beta: Vec<f32>,
    decay: Vec<f32>,
}

impl Chunk {
    fn gather(&mut self, heads: &Heads, head: usize, inputs: &Inputs, start: usize, end: usize) {
        let (dk, dv) = (heads.key_dim, heads.value_dim);
        (self.key_dim, self.value_dim) = (dk, dv);
        for buffer in [&mut self.q, &mut self.k, &mut self.v, &mut self.beta, &mut self.decay] {
            buffer.clear();
        }
        let key_head = heads.key_head(head);
        let q_at = key_head * dk;
        let k_at = (heads.key_heads + key_head) * dk;
        let v_at = 2 * heads.key_heads * dk + head * dv;
        let scale = if made(Mistake::NoQueryScale) { 1.0 } else { (dk as f32).sqrt().recip() };
        for t in start..end {
            let token = &inputs.mixed[t * heads.channels()..(t + 1) * heads.channels()];
            extend_normalised(&mut self.q, &token[q_at..q_at + dk], scale);
            extend_normalised(&mut self.k, &token[k_at..k_at + dk], 1.0);
            self.v.extend_from_slice(&token[v_at..v_at + dv]);
            self.beta.push(inputs.beta[t * heads.value_heads + head]);
            self.decay.push(inputs.decay[t * heads.value_heads + head]);
        }
    }

    fn tokens(&self) -> usize {
        self.beta.len()
    }

    /// The defining form. The columns of the state do not touch one another, so a block of them goes through all
    /// tokens while it stays in the nearest cache.
    fn recurrent(&self, isa: Isa, state: &mut [f32], out: &mut [f32]) {
        let (tokens, dv) = (self.tokens(), self.value_dim);
        let keep: Vec<f32> = self.decay.iter().map(|decay| decay.exp()).collect();
        let mut block = vec![0f32; self.key_dim * COLUMNS];
        let (mut values, mut read) = (vec![0f32; tokens * COLUMNS], vec![0f32; tokens * COLUMNS]);
        for first in (0..dv).step_by(COLUMNS) {
            let width = COLUMNS.min(dv - first);
            let columns = |row: usize| row * dv + first..row * dv + first + width;
            for (i, lanes) in block.chunks_exact_mut(COLUMNS).enumerate() {
                lanes[..width].copy_from_slice(&state[columns(i)]);
            }
            for (t, lanes) in values.chunks_exact_mut(COLUMNS).enumerate() {
                lanes[..width].copy_from_slice(&self.v[columns(t)]);
            }
            let (q, k, beta) = (self.q.as_ptr(), self.k.as_ptr(), self.beta.as_ptr());
            // SAFETY: `block` has `key_dim` rows, `values` and `read` one per token, of COLUMNS values each; `q` and `k` have
            // `tokens · key_dim` values, `beta` and `keep` one per token; `isa` is a level of this processor.
            unsafe {
                let (m, v, out) = (block.as_mut_ptr(), values.as_ptr(), read.as_mut_ptr());
                delta::scan(isa, m, q, k, v, beta, keep.as_ptr(), out, tokens, self.key_dim);
            }
            for (t, lanes) in read.chunks_exact(COLUMNS).enumerate() {
                out[columns(t)].copy_from_slice(&lanes[..width]);
            }
            for (i, lanes) in block.chunks_exact(COLUMNS).enumerate() {
                state[columns(i)].copy_from_slice(&lanes[..width]);
            }
        }
    }

    /// The same tokens as small matrix products. With `c` the running sum of the log decay, `D_ij = e^{c_i − c_j}` and
    /// `A_ij = β_i (k_i·k_j) D_ij` below the diagonal:
    ///
    /// ```text
    /// (I + A) [U | W] = [diag(β) V | diag(β e^c) K]      by forward substitution
    /// N  = U − W M                                       the errors, each in the light of the earlier ones
    /// O  = diag(e^c) Q M + ((Q Kᵀ) ⊙ D) N                D with its diagonal
    /// M' = e^{c_C} M + (diag(e^{c_C − c}) K)ᵀ N
    /// ```
    fn chunked(&self, state: &mut [f32], out: &mut [f32]) {
        let (n, dk, dv) = (self.tokens(), self.key_dim, self.value_dim);
        let c = running_sum(&self.decay);
        let k = |i: usize| &self.k[i * dk..(i + 1) * dk];
        let q = |i: usize| &self.q[i * dk..(i + 1) * dk];

        let mut errors = self.v.clone();
        let mut reach = self.k.clone();
        for i in 0..n {
            scale(&mut errors[i * dv..(i + 1) * dv], self.beta[i]);
            scale(&mut reach[i * dk..(i + 1) * dk], self.beta[i] * c[i].exp());
            for j in 0..i {
                let a = self.beta[i] * dot(k(i), k(j)) * fade(&c, i, j);
                subtract_row(&mut errors, dv, i, j, a);
                subtract_row(&mut reach, dk, i, j, a);
            }
        }
        scale(&mut reach, -1.0);
        add_product(&mut errors, &reach, state, dk, dv);

        let mut faded = self.q.clone();
        let mut weights = vec![0f32; n * n];
        for i in 0..n {
            scale(&mut faded[i * dk..(i + 1) * dk], c[i].exp());
            for j in 0..=i {
                weights[i * n + j] = dot(q(i), k(j)) * fade(&c, i, j);
            }
        }
        out.fill(0.0);
        add_product(out, &faded, state, dk, dv);
        add_product(out, &weights, &errors, n, dv);

        scale(state, c[n - 1].exp());
        let mut keys = vec![0f32; dk * n];
        for i in 0..n {
            let kept = fade(&c, n - 1, i);
            for (d, &x) in k(i).iter().enumerate() {
                keys[d * n + i] = kept * x;
            }
        }
        add_product(state, &keys, &errors, n, dv);
    }
}

/// Appends `x / √(Σx² + 1e-6)`, times `scale`. The epsilon is part of the architecture, not of the configuration.
fn extend_normalised(out: &mut Vec<f32>, x: &[f32], scale: f32) {
    let mut length = (dot(x, x) + 1e-6).sqrt();
    if made(Mistake::NoUnitLength) {
        length = 1.0;
    }
    out.extend(x.iter().map(|x| x / length * scale));
}

/// What is left at token `i` of what token `j` wrote, `c` being the running sum of the log decay.
fn fade(c: &[f32], i: usize, j: usize) -> f32 {
    if made(Mistake::FactoredDecay) {
        return c[i].exp() * (-c[j]).exp();
    }
    (c[i] - c[j]).exp()
}

fn running_sum(x: &[f32]) -> Vec<f32> {
    x.iter()
        .scan(0f32, |sum, x| {
            *sum += x;
            Some(*sum)
        })
        .collect()
}

fn scale(x: &mut [f32], by: f32) {
    x.iter_mut().for_each(|x| *x *= by);
}

/// Row `i` of an `[_, width]` matrix minus `a` times its earlier row `j`.
fn subtract_row(matrix: &mut [f32], width: usize, i: usize, j: usize, a: f32) {
    let (before, from_i) = matrix.split_at_mut(i * width);
    for (x, y) in from_i[..width].iter_mut().zip(&before[j * width..(j + 1) * width]) {
        *x -= a * y;
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (a_blocks, b_blocks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_blocks.zip(b_blocks) {
        for ((s, x), y) in sums.iter_mut().zip(x).zip(y) {
            *s += x * y;
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// `out += a · b` with `a [rows, inner]`, `b [inner, cols]`, all row-major. Four rows share each load of `b`, and a
/// block of [`LANES`] columns stays in registers.
fn add_product(out: &mut [f32], a: &[f32], b: &[f32], inner: usize, cols: usize) {
    for (out, a) in out.chunks_mut(4 * cols).zip(a.chunks(4 * inner)) {
        let rows = out.len() / cols;
        for first in (0..cols).step_by(LANES) {
            let width = LANES.min(cols - first);
            let mut sums = [[0f32; LANES]; 4];
            if rows == 4 && width == LANES {
                for (i, b) in b.chunks_exact(cols).enumerate() {
                    let b: &[f32; LANES] = b[first..first + LANES].try_into().expect("a whole block");
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let x = a[r * inner + i];
                        for (s, b) in sums.iter_mut().zip(b) {
                            *s += x * b;
                        }
                    }
                }
            } else {
                for (i, b) in b.chunks_exact(cols).enumerate() {
                    for (r, sums) in sums.iter_mut().enumerate().take(rows) {
                        let x = a[r * inner + i];
                        for (s, b) in sums.iter_mut().zip(&b[first..first + width]) {
                            *s += x * b;
                        }
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate().take(rows) {
                let out = &mut out[r * cols + first..r * cols + first + width];
                out.iter_mut().zip(sums).for_each(|(o, s)| *o += s);
            }
        }
    }
}
