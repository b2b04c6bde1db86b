//! The linear mixer: Gated DeltaNet between its projections.
//!
//! Queries, keys and values pass a short causal convolution; the output gate `z` and the two per-head scalars do not.
//! With several ranks a key head and the value heads that read it stay together, so the three segments of the fused
//! projection are split each for itself and the state never crosses a rank.

use std::ops::Range;

use layers::gated_delta_net::{CausalConv, DeltaDims, DeltaState, Gates, KeyHeads, delta_rule};
use layers::linear::{Bias, Linear};
use layers::norm::GatedRmsNorm;
use layers::trace::Trace;
use layers::weights::Weights;
use layers::{Error, Result, Tensor};

use crate::config::{LinearConfig, TextConfig};

/// One layer's Gated DeltaNet, this rank's heads of it.
pub struct GatedDeltaNet {
    dims: DeltaDims,
    in_proj_qkv: Linear,
    in_proj_z: Linear,
    in_proj_b: Linear,
    in_proj_a: Linear,
    conv: CausalConv,
    gates: Gates,
    norm: GatedRmsNorm,
    out_proj: Linear,
}

impl GatedDeltaNet {
    /// The scope is `linear_attn`.
    pub fn load(w: &Weights, config: &TextConfig, layout: KeyHeads) -> Result<Self> {
        let (hidden, whole) = (config.hidden_size, &config.linear);
        let comm = &w.placement().comm;
        let part = Part::of(whole, comm.rank(), comm.world())?;
        let channels = whole.channels();
        let qkv = part.segments(whole);
        let values = part.value_rows(whole);
        let heads = part.value_heads.clone();
        let all_values = whole.value_heads * whole.value_dim;
        Ok(Self {
            dims: whole.on_rank(layout, comm.world()),
            in_proj_qkv: Linear::rows(&w.pp("in_proj_qkv"), hidden, channels, &qkv, Bias::None)?,
            in_proj_z: Linear::rows(
                &w.pp("in_proj_z"),
                hidden,
                all_values,
                std::slice::from_ref(&values),
                Bias::None,
            )?,
            in_proj_b: Linear::rows(
                &w.pp("in_proj_b"),
                hidden,
                whole.value_heads,
                std::slice::from_ref(&heads),
                Bias::None,
            )?,
            in_proj_a: Linear::rows(
                &w.pp("in_proj_a"),
                hidden,
                whole.value_heads,
                std::slice::from_ref(&heads),
                Bias::None,
            )?,
            conv: CausalConv::load(&w.pp("conv1d"), whole.conv_kernel, &qkv)?,
            gates: Gates::load(w, heads)?,
            norm: GatedRmsNorm::load(&w.pp("norm"), whole.value_dim, config.rms_norm_eps)?,
            out_proj: Linear::columns(&w.pp("out_proj"), all_values, hidden, values, Bias::None)?,
        })
    }

    /// `x [tokens, hidden]`, already normed; `rows[i]` are the tokens of the sequence that owns `states[i]`.
    pub fn forward(
        &self,
        x: &Tensor,
        rows: &[Range<usize>],
        states: &mut [&mut DeltaState],
        trace: &Trace,
        scope: &str,
    ) -> Result<Tensor> {
        let inputs = [&self.in_proj_qkv, &self.in_proj_z, &self.in_proj_b, &self.in_proj_a];
        let [mixed, z, b, a] = four(Linear::forward_group(&inputs, x)?)?;

        let conv = self.conv.forward(&mixed, rows, states)?;
        let (beta, decay) = self.gates.forward(&b, &a)?;
        let core = delta_rule(&self.dims, &conv, &beta, &decay, rows, states)?;

        let z = z.reshape(core.shape())?;
        let y = self.norm.forward(&core.to_dtype(x.dtype())?, &z)?.flatten_from(1)?;
        let out = self.out_proj.forward(&y)?;

        let tapped = [
            ("mixed_qkv", &mixed),
            ("z", &z),
            ("b", &b),
            ("a", &a),
            ("conv_out", &conv),
            ("beta", &beta),
            ("g", &decay),
        ];
        for (name, tensor) in
            tapped.into_iter().chain([("core_out", &core), ("gated_norm", &y), ("out", &out)])
        {
            trace.tap(|| format!("{scope}/linear/{name}"), || Ok(tensor.clone()))?;
        }
        self.tap_state(states, trace, scope)?;
        Ok(out)
    }

    /// The state as the reference prints it, of the first sequence.
    fn tap_state(&self, states: &[&mut DeltaState], trace: &Trace, scope: &str) -> Result<()> {
        let Some(state) = states.first() else { return Ok(()) };
        let DeltaDims { value_heads, key_dim, value_dim, conv_kernel, .. } = self.dims;
        trace.tap(
            || format!("{scope}/linear/recurrent_state"),
            || Ok(state.recurrent()?.reshape((value_heads, key_dim, value_dim))?),
        )?;
        trace.tap(
            || format!("{scope}/linear/conv_state"),
            || Ok(state.conv()?.reshape((conv_kernel - 1, self.dims.channels()))?.t()?),
        )
    }
}

/// The heads of one rank.
struct Part {
    key_heads: Range<usize>,
    value_heads: Range<usize>,
}

impl Part {
    fn of(whole: &LinearConfig, rank: usize, world: usize) -> Result<Self> {
        if !whole.key_heads.is_multiple_of(world) {
            return Err(Error::Unsupported(format!(
                "linear_num_key_heads {} does not divide over {world} ranks",
                whole.key_heads
            )));
        }
        let share = |heads: usize| rank * (heads / world)..(rank + 1) * (heads / world);
        Ok(Self { key_heads: share(whole.key_heads), value_heads: share(whole.value_heads) })
    }

    /// Rows of the fused projection: queries, keys, values.
    fn segments(&self, whole: &LinearConfig) -> [Range<usize>; 3] {
        let keys = whole.key_heads * whole.key_dim;
        let (start, end) = (self.key_heads.start * whole.key_dim, self.key_heads.end * whole.key_dim);
        let values = self.value_rows(whole);
        [start..end, keys + start..keys + end, 2 * keys + values.start..2 * keys + values.end]
    }

    fn value_rows(&self, whole: &LinearConfig) -> Range<usize> {
        self.value_heads.start * whole.value_dim..self.value_heads.end * whole.value_dim
    }
}

fn four(tensors: Vec<Tensor>) -> Result<[Tensor; 4]> {
    tensors
        .try_into()
        .map_err(|_| Error::Internal("a group of four linears did not give four results".into()))
}
