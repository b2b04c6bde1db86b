//! Gated DeltaNet: linear attention with a decaying, error-correcting state.
//!
//! Per value head the layer keeps a matrix `M` of `[key_dim, value_dim]`. A token decays it, predicts its value
//! from its key, and writes the error back:
//!
//! ```text
//! M ← e^g · M        u = β (v − Mᵀk)        M ← M + k uᵀ        o = Mᵀq
//! ```
//!
//! The parts of the mixer stand here in the order of the paper: the short causal [`CausalConv`], the [`Gates`] and the
//! [`delta_rule`]. All of it computes in f32 whatever the activation type is: the state lives for the whole
//! sequence, and what is rounded into it is never rounded out again.
//!
//! The arithmetic is in [`kernel`], on plain slices. What is here only cuts a batch into its rows and hands each row the
//! state of its sequence. On a GPU the same arithmetic is in `cuda/gated_delta_net.cu`; `launch` says which of its
//! kernels run on what, and a test runs them on the CPU against [`kernel`].
//! The state must never be truncated or rewound: a shorter prefix needs its own saved copy.

#[cfg(feature = "cuda")]
mod cuda;
pub mod kernel;
#[cfg(any(feature = "cuda", test))]
pub(crate) mod launch;
mod state;

use std::ops::Range;

use candle_core::{Device, Tensor};
use kernel::{Heads, Inputs};

use crate::error::{Error, Result};
use crate::slice;
use crate::weights::Weights;

pub use kernel::{Form, KeyHeads};
pub use state::DeltaState;

/// The sizes of one rank's part of the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaDims {
    /// Key heads on this rank; queries have as many.
    pub key_heads: usize,
    /// Value heads on this rank, a multiple of `key_heads`.
    pub value_heads: usize,
    /// Size of a key and of a query.
    pub key_dim: usize,
    /// Size of a value.
    pub value_dim: usize,
    /// Taps of the causal convolution.
    pub conv_kernel: usize,
    /// Which key head a value head reads.
    pub layout: KeyHeads,
    /// The form that takes a row of several tokens; a single token is always recurrent.
    pub prefill: Form,
}

impl DeltaDims {
    /// Channels of the fused projection and of the convolution: queries, keys, values.
    pub fn channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }

    /// Width of the layer's output, all value heads side by side.
    pub fn value_width(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Bytes one sequence keeps for one such layer, at any length.
    pub fn state_bytes(&self) -> usize {
        let recurrent = self.value_heads * self.key_dim * self.value_dim;
        let conv = (self.conv_kernel - 1) * self.channels();
        (recurrent + conv) * size_of::<f32>()
    }

    fn heads(&self) -> Heads {
        Heads {
            key_heads: self.key_heads,
            value_heads: self.value_heads,
            key_dim: self.key_dim,
            value_dim: self.value_dim,
            layout: self.layout,
        }
    }
}

/// Depthwise causal convolution along time, then SiLU, over the query, key and value channels.
#[derive(Debug)]
pub struct CausalConv {
    /// `[K, channels]`: one row per tap, the last one for the current token.
    taps: Vec<f32>,
    kernel: usize,
    channels: usize,
    /// The taps where a GPU reads them.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only a GPU asks"))]
    placed: Option<Tensor>,
}

/// f32 values on a GPU; `None` on the host, where slices are read.
fn placed(values: &[f32], w: &Weights) -> Result<Option<Tensor>> {
    match &w.placement().device {
        Device::Cpu => Ok(None),
        device => Ok(Some(Tensor::from_slice(values, values.len(), device)?)),
    }
}

impl CausalConv {
    /// The scope holds `weight`, `[all channels, 1, K]` or `[all channels, K]`; this rank keeps `channels` of it.
    pub fn load(w: &Weights, kernel: usize, channels: &[Range<usize>]) -> Result<Self> {
        let stored = w.raw("weight")?.to_f32();
        let end = channels.iter().map(|range| range.end).max().unwrap_or(0);
        if kernel == 0 || stored.len() < end * kernel || !stored.len().is_multiple_of(kernel) {
            return Err(Error::InvalidInput(format!(
                "{} has {} values, not {kernel} taps for {end} channels",
                w.name("weight"),
                stored.len()
            )));
        }
        let kept: Vec<usize> = channels.iter().cloned().flatten().collect();
        let taps: Vec<f32> = (0..kernel)
            .flat_map(|tap| kept.iter().map(move |c| c * kernel + tap))
            .map(|at| stored[at])
            .collect();
        Ok(Self { placed: placed(&taps, w)?, taps, kernel, channels: kept.len() })
    }

    /// Convolves every row of the batch in the light of its own past and remembers its newest columns.
    ///
    /// `mixed` is `[tokens, channels]`; `rows[i]` are the tokens of the sequence that owns `states[i]`.
    /// Returns f32 `[tokens, channels]`.
    pub fn forward(
        &self,
        mixed: &Tensor,
        rows: &[Range<usize>],
        states: &mut [&mut DeltaState],
    ) -> Result<Tensor> {
        let (tokens, channels) = mixed.dims2()?;
        debug_assert_eq!(channels, self.channels, "one tap row per channel");
        #[cfg(feature = "cuda")]
        if let (Device::Cuda(device), Some(taps)) = (mixed.device(), &self.placed) {
            return cuda::conv(device, mixed, taps, self.kernel, rows, states);
        }
        let input = slice::to_vec(mixed)?;
        let mut out = vec![0f32; tokens * channels];
        for (row, state) in rows.iter().zip(states) {
            let span = row.start * channels..row.end * channels;
            kernel::causal_conv(
                &self.taps,
                self.kernel,
                &input[span.clone()],
                state.host()?.0,
                &mut out[span],
            );
        }
        Ok(Tensor::from_vec(out, (tokens, channels), mixed.device())?)
    }
}

/// How strongly each value head writes, and how fast it forgets.
#[derive(Debug)]
pub struct Gates {
    /// `−exp(A_log)` per value head.
    decay_rate: Vec<f32>,
    /// `dt_bias` per value head.
    bias: Vec<f32>,
    /// Both where a GPU reads them.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only a GPU asks"))]
    placed: Option<(Tensor, Tensor)>,
}

impl Gates {
    /// The scope holds `A_log` and `dt_bias`, `[all value heads]` each; a GGUF holds `decay_rate = −exp(A_log)` instead of
    /// the former. This rank keeps `heads` of both.
    pub fn load(w: &Weights, heads: Range<usize>) -> Result<Self> {
        let of_heads = |name: &str| -> Result<Vec<f32>> {
            let values = w.raw(name)?.to_f32();
            let part = values.get(heads.clone()).map(<[f32]>::to_vec);
            part.ok_or_else(|| {
                Error::InvalidInput(format!(
                    "{} has {} values, heads {heads:?} are missing",
                    w.name(name),
                    values.len()
                ))
            })
        };
        let decay_rate = if w.contains("decay_rate") {
            of_heads("decay_rate")?
        } else {
            of_heads("A_log")?.iter().map(|a| -a.exp()).collect()
        };
        let bias = of_heads("dt_bias")?;
        let placed = placed(&decay_rate, w)?.zip(placed(&bias, w)?);
        Ok(Self { decay_rate, bias, placed })
    }

    /// `β = σ(b)` and `g = −exp(A_log)·softplus(a + dt_bias)`, both f32 `[tokens, value_heads]`; `g ≤ 0`.
    pub fn forward(&self, b: &Tensor, a: &Tensor) -> Result<(Tensor, Tensor)> {
        let (tokens, heads) = a.dims2()?;
        #[cfg(feature = "cuda")]
        if let (Device::Cuda(device), Some((rate, bias))) = (a.device(), &self.placed) {
            return cuda::gates(device, b, a, rate, bias);
        }
        let beta = slice::to_vec(b)?.into_iter().map(sigmoid).collect::<Vec<_>>();
        let mut decay = slice::to_vec(a)?;
        for token in decay.chunks_exact_mut(heads) {
            for ((x, rate), bias) in token.iter_mut().zip(&self.decay_rate).zip(&self.bias) {
                *x = rate * softplus(*x + bias);
            }
        }
        let device = a.device();
        Ok((
            Tensor::from_vec(beta, (tokens, heads), device)?,
            Tensor::from_vec(decay, (tokens, heads), device)?,
        ))
    }
}

/// The delta rule over a batch: reads the convolved queries, keys and values, advances every sequence's state, and
/// returns what the heads read from it.
///
/// * `conv`: f32 `[tokens, channels]`, all queries head-major, then all keys, then all values;
/// * `beta`, `decay`: f32 `[tokens, value_heads]`, the two outputs of [`Gates::forward`];
/// * `rows[i]`: the tokens of the sequence that owns `states[i]`.
///
/// Queries and keys are normalised to unit length here and queries scaled by `1/√key_dim`.
/// Returns f32 `[tokens, value_heads, value_dim]`.
pub fn delta_rule(
    dims: &DeltaDims,
    conv: &Tensor,
    beta: &Tensor,
    decay: &Tensor,
    rows: &[Range<usize>],
    states: &mut [&mut DeltaState],
) -> Result<Tensor> {
    let tokens = conv.dim(0)?;
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = conv.device() {
        return cuda::delta_rule(device, dims, conv, beta, decay, rows, states);
    }
    let (mixed, beta, decay) = (slice::to_vec(conv)?, slice::to_vec(beta)?, slice::to_vec(decay)?);
    let rows = rows.iter().zip(states).map(|(row, state)| {
        let inputs = Inputs {
            mixed: &mixed[row.start * dims.channels()..row.end * dims.channels()],
            beta: &beta[row.start * dims.value_heads..row.end * dims.value_heads],
            decay: &decay[row.start * dims.value_heads..row.end * dims.value_heads],
        };
        let form = if row.len() == 1 { Form::Recurrent } else { dims.prefill };
        Ok((row.start, form, inputs, state.host()?.1))
    });
    let rows = rows.collect::<Result<Vec<_>>>()?;
    let mut out = vec![0f32; tokens * dims.value_width()];
    kernel::delta_rule(&dims.heads(), rows, &mut out);
    Ok(Tensor::from_vec(out, (tokens, dims.value_heads, dims.value_dim), conv.device())?)
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `ln(1 + eˣ)`, exact for large x where the exponential would overflow.
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests;
