//! The arithmetic of the delta rule on the CPU, f32, on plain slices.
//!
//! Two forms give the same numbers up to rounding. The recurrent form walks token by token and defines what the layer
//! means; the chunked form turns 64 tokens at a time into small matrix products, which is what a prompt wants. Both
//! continue from any incoming state, so a prompt may be cut anywhere.
//!
//! Decay between two tokens of a chunk is the exponential of a *difference* of cumulative sums. It must never be
//! factored into `e^{c_i} · e^{−c_j}`: one fast-forgetting head reaches `c = −2000` and the second factor overflows.

use std::sync::{Mutex, PoisonError};

use crate::kernel::{Isa, by_isa, pool};
use crate::mistake::{Mistake, made};

/// Tokens the chunked form takes at once.
pub const CHUNK: usize = 64;

/// Columns of the state that one pass keeps in registers.
const LANES: usize = 16;

/// Which of the two forms computes a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Token by token.
    Recurrent,
    /// [`CHUNK`] tokens at a time.
    Chunked,
}

impl Form {
    /// The form for a row of so many tokens: a decode step is recurrent, a piece of a prompt chunked.
    pub fn of(tokens: usize) -> Self {
        if tokens == 1 { Form::Recurrent } else { Form::Chunked }
    }
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
    let column = |t: usize| -> &[f32] {
        if t < keep {
            &past[t * channels..(t + 1) * channels]
        } else {
            &input[(t - keep) * channels..(t - keep + 1) * channels]
        }
    };
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
                row.iter_mut().for_each(|o| *o /= 1.0 + (-*o).exp());
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
            let job = move |(head, state)| Mutex::new(Job { first, head, form, inputs, state, out: Vec::new() });
            state.chunks_mut(per_head).enumerate().map(job)
        })
        .collect();
    let isa = Isa::best();
    pool::run(jobs.len(), &|i| {
        let mut job = jobs[i].lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `Isa::best` names a level this processor has; `run` itself asks for nothing.
        unsafe { run_job(isa, heads, &mut job) };
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

by_isa! {
    /// [`run`] in the widest instructions of the processor.
    unsafe fn run_job(heads: &Heads, job: &mut Job<'_>) { avx512: run, avx2: run, portable: run }
}

/// # Safety
/// Asks for nothing; it is unsafe because what calls it enables instructions first.
#[inline(always)]
unsafe fn run(heads: &Heads, job: &mut Job<'_>) {
    let tokens = job.inputs.decay.len() / heads.value_heads;
    job.out = vec![0f32; tokens * heads.value_dim];
    let mut chunk = Chunk::default();
    for start in (0..tokens).step_by(CHUNK) {
        let end = (start + CHUNK).min(tokens);
        chunk.gather(heads, job.head, &job.inputs, start, end);
        let out = &mut job.out[start * heads.value_dim..end * heads.value_dim];
        match job.form {
            Form::Recurrent => chunk.recurrent(job.state, out),
            Form::Chunked => chunk.chunked(job.state, out),
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
    #[inline(always)]
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

    #[inline(always)]
    fn tokens(&self) -> usize {
        self.beta.len()
    }

    /// The defining form. The columns of the state do not touch one another, so a block of them goes through all
    /// tokens while it stays in the nearest cache.
    #[inline(always)]
    fn recurrent(&self, state: &mut [f32], out: &mut [f32]) {
        let dv = self.value_dim;
        let mut block = vec![[0f32; LANES]; self.key_dim];
        for first in (0..dv).step_by(LANES) {
            let width = LANES.min(dv - first);
            for (lanes, row) in block.iter_mut().zip(state.chunks_exact(dv)) {
                lanes[..width].copy_from_slice(&row[first..first + width]);
            }
            for t in 0..self.tokens() {
                let mut value = [0f32; LANES];
                value[..width].copy_from_slice(&self.v[t * dv + first..t * dv + first + width]);
                let read = self.advance(t, &mut block, &value);
                out[t * dv + first..t * dv + first + width].copy_from_slice(&read[..width]);
            }
            for (lanes, row) in block.iter().zip(state.chunks_exact_mut(dv)) {
                row[first..first + width].copy_from_slice(&lanes[..width]);
            }
        }
    }

    /// One token over one block of columns: decay, predict, correct, read.
    #[inline(always)]
    fn advance(&self, t: usize, block: &mut [[f32; LANES]], value: &[f32; LANES]) -> [f32; LANES] {
        let dk = self.key_dim;
        let (q, k) = (&self.q[t * dk..(t + 1) * dk], &self.k[t * dk..(t + 1) * dk]);
        let keep = self.decay[t].exp();
        let mut predicted = [[0f32; LANES]; 2];
        for (i, (row, &k)) in block.iter_mut().zip(k).enumerate() {
            let sum = &mut predicted[i % 2];
            for (m, s) in row.iter_mut().zip(sum.iter_mut()) {
                *m *= keep;
                *s += *m * k;
            }
        }
        let mut error = [0f32; LANES];
        for (lane, e) in error.iter_mut().enumerate() {
            *e = self.beta[t] * (value[lane] - (predicted[0][lane] + predicted[1][lane]));
        }
        let mut read = [[0f32; LANES]; 2];
        for (i, ((row, &k), &q)) in block.iter_mut().zip(k).zip(q).enumerate() {
            let sum = &mut read[i % 2];
            for ((m, e), s) in row.iter_mut().zip(&error).zip(sum.iter_mut()) {
                *m += k * e;
                *s += *m * q;
            }
        }
        std::array::from_fn(|lane| read[0][lane] + read[1][lane])
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
    #[inline(always)]
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
#[inline(always)]
fn extend_normalised(out: &mut Vec<f32>, x: &[f32], scale: f32) {
    let mut length = (x.iter().map(|x| x * x).sum::<f32>() + 1e-6).sqrt();
    if made(Mistake::NoUnitLength) {
        length = 1.0;
    }
    out.extend(x.iter().map(|x| x / length * scale));
}

/// What is left at token `i` of what token `j` wrote, `c` being the running sum of the log decay.
#[inline(always)]
fn fade(c: &[f32], i: usize, j: usize) -> f32 {
    if made(Mistake::FactoredDecay) {
        return c[i].exp() * (-c[j]).exp();
    }
    (c[i] - c[j]).exp()
}

#[inline(always)]
fn running_sum(x: &[f32]) -> Vec<f32> {
    x.iter()
        .scan(0f32, |sum, x| {
            *sum += x;
            Some(*sum)
        })
        .collect()
}

#[inline(always)]
fn scale(x: &mut [f32], by: f32) {
    x.iter_mut().for_each(|x| *x *= by);
}

/// Row `i` of an `[_, width]` matrix minus `a` times its earlier row `j`.
#[inline(always)]
fn subtract_row(matrix: &mut [f32], width: usize, i: usize, j: usize, a: f32) {
    let (before, from_i) = matrix.split_at_mut(i * width);
    for (x, y) in from_i[..width].iter_mut().zip(&before[j * width..(j + 1) * width]) {
        *x -= a * y;
    }
}

#[inline(always)]
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
#[inline(always)]
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
