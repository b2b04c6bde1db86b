//! Mixtures of experts: every token visits the few feed-forwards a router chooses for it.
//!
//! The router's softmax runs over *all* experts, in f32, before the best are taken. Tokens are then gathered expert by expert, so
//! that each expert's weights are read once per step however many tokens visit it. With several ranks every rank holds a
//! slice of each expert's inner width; the slices' sums meet in one all-reduce, together with the shared expert's.
//!
//! No token is ever dropped and no expert has a capacity.

#[cfg(any(feature = "cuda", test))]
mod decode;

use std::sync::Arc;

use candle_core::{DType, Tensor};

use crate::activation::{sigmoid, silu_mul};
use crate::comm::Communicator;
use crate::device::on_host;
use crate::error::{Error, Result};
use crate::linear::{Bias, Linear, share};
use crate::mistake::{Mistake, made};
use crate::mlp::SwiGlu;
use crate::placement::Placement;
use crate::slice;
use crate::trace::Trace;
use crate::weights::Weights;

/// Sizes and rules of a mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoeConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Experts.
    pub experts: usize,
    /// Experts a token visits.
    pub experts_per_token: usize,
    /// Inner width of an expert.
    pub expert_size: usize,
    /// Whether the chosen experts' weights are scaled to sum to one.
    pub renormalise: bool,
    /// Inner width of the expert every token visits, if there is one.
    pub shared_size: Option<usize>,
}

/// A feed-forward made of a router, its experts and possibly a shared expert.
#[derive(Clone)]
pub struct SparseMoe {
    router: Router,
    experts: Vec<Expert>,
    shared: Option<SharedExpert>,
    /// Where a GPU finds the experts of a few tokens.
    #[cfg(feature = "cuda")]
    tables: Option<cuda::Tables>,
    comm: Arc<dyn Communicator>,
}

impl SparseMoe {
    /// The scope holds `gate`, `experts` and, with a shared expert, `shared_expert` and `shared_expert_gate`.
    pub fn load(w: &Weights, config: &MoeConfig) -> Result<Self> {
        let shared =
            config.shared_size.map(|size| SharedExpert::load(w, config.hidden_size, size)).transpose()?;
        let experts = load_experts(&w.pp("experts"), config)?;
        Ok(Self {
            router: Router::load(&w.pp("gate"), config)?,
            #[cfg(feature = "cuda")]
            tables: cuda::Tables::of(&experts, config)?,
            experts,
            shared,
            comm: w.placement().comm.clone(),
        })
    }

    /// `x [tokens, hidden]` → the same shape. `scope` names the layer in the trace.
    pub fn forward(&self, x: &Tensor, trace: &Trace, scope: &str) -> Result<Tensor> {
        let mut y = self.visited(x, trace, scope)?;
        if let Some(shared) = &self.shared {
            y = (y + shared.forward_partial(x, trace, scope)?)?;
        }
        let y = self.comm.all_reduce_sum(&y)?;
        trace.tap(|| format!("{scope}/moe/out"), || Ok(y.clone()))?;
        Ok(y)
    }

    /// This rank's part of what the chosen experts say, and the choice.
    fn visited(&self, x: &Tensor, trace: &Trace, scope: &str) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let (Some(tables), false) = (&self.tables, trace.is_on())
            && let Some(y) = tables.visit(&self.router, x)?
        {
            return Ok(y);
        }
        let routes = self.router.forward(x, trace, scope)?;
        self.visit(x, &routes)
    }

    /// This rank's part of what the chosen experts say.
    fn visit(&self, x: &Tensor, routes: &[Vec<Route>]) -> Result<Tensor> {
        if !on_host(x.device()) {
            return self.visit_placed(x, routes);
        }
        let (tokens, hidden) = x.dims2()?;
        let mut sum = vec![0f32; tokens * hidden];
        for (expert, visitors) in self.experts.iter().zip(by_expert(routes, self.experts.len())) {
            if visitors.is_empty() {
                continue;
            }
            let rows: Vec<u32> = visitors.iter().map(|visitor| visitor.token as u32).collect();
            let rows = Tensor::from_vec(rows, visitors.len(), x.device())?;
            let y = expert.forward_partial(&x.index_select(&rows, 0)?)?;
            let y = slice::to_vec(&y)?;
            for (visitor, y) in visitors.iter().zip(y.chunks_exact(hidden)) {
                let sum = &mut sum[visitor.token * hidden..(visitor.token + 1) * hidden];
                sum.iter_mut().zip(y).for_each(|(sum, y)| *sum += visitor.weight * y);
            }
        }
        Ok(Tensor::from_vec(sum, (tokens, hidden), x.device())?.to_dtype(x.dtype())?)
    }
}

impl SparseMoe {
    /// The same off the host. Where the tokens of a prompt go is decided on the host, the one thing that comes back from a GPU
    /// within a layer: a kernel that groups tokens by expert where they are belongs here.
    fn visit_placed(&self, x: &Tensor, routes: &[Vec<Route>]) -> Result<Tensor> {
        let mut sum = Tensor::zeros(x.dims2()?, DType::F32, x.device())?;
        for (expert, visitors) in self.experts.iter().zip(by_expert(routes, self.experts.len())) {
            if visitors.is_empty() {
                continue;
            }
            let rows: Vec<u32> = visitors.iter().map(|visitor| visitor.token as u32).collect();
            let weights: Vec<f32> = visitors.iter().map(|visitor| visitor.weight).collect();
            let rows = Tensor::from_vec(rows, visitors.len(), x.device())?;
            let weights = Tensor::from_vec(weights, (visitors.len(), 1), x.device())?;
            let y = expert.forward_partial(&x.index_select(&rows, 0)?)?.to_dtype(DType::F32)?;
            sum = sum.index_add(&rows, &y.broadcast_mul(&weights)?, 0)?;
        }
        Ok(sum.to_dtype(x.dtype())?)
    }
}

/// An expert a token visits, and how much its answer counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Route {
    /// Index of the expert.
    pub expert: usize,
    /// Its share, in the precision of the activations.
    pub weight: f32,
}

/// Chooses experts.
#[derive(Clone)]
pub struct Router {
    gate: Linear,
    experts_per_token: usize,
    renormalise: bool,
}

impl Router {
    /// The scope holds `weight [experts, hidden]`. It is never quantized: a choice is not a sum of small errors.
    pub fn load(w: &Weights, config: &MoeConfig) -> Result<Self> {
        if config.experts_per_token > config.experts {
            return Err(Error::InvalidInput(format!(
                "a token cannot visit {} of {} experts",
                config.experts_per_token, config.experts
            )));
        }
        Ok(Self {
            gate: Linear::replicated_plain(w, config.hidden_size, config.experts, Bias::None)?,
            experts_per_token: config.experts_per_token,
            renormalise: config.renormalise,
        })
    }

    /// The routes of every token, likeliest first.
    pub fn forward(&self, x: &Tensor, trace: &Trace, scope: &str) -> Result<Vec<Vec<Route>>> {
        let logits = self.gate.forward(x)?;
        let rows: Vec<Vec<f32>> = logits.to_dtype(DType::F32)?.to_vec2()?;
        let mut routes: Vec<_> = rows.iter().map(|row| self.choose(row)).collect();
        if x.dtype() == DType::BF16 {
            for route in routes.iter_mut().flatten() {
                route.weight = half::bf16::from_f32(route.weight).to_f32();
            }
        }
        trace.tap(|| format!("{scope}/moe/router_logits"), || Ok(logits.clone()))?;
        trace.tap(|| format!("{scope}/moe/experts"), || table(&routes, |route| route.expert as f32))?;
        trace.tap(|| format!("{scope}/moe/weights"), || table(&routes, |route| route.weight))?;
        Ok(routes)
    }

    fn choose(&self, logits: &[f32]) -> Vec<Route> {
        choose(logits, self.experts_per_token, self.renormalise)
    }
}

/// Softmax over all experts, then the best; among equals the lower index.
fn choose(logits: &[f32], count: usize, renormalise: bool) -> Vec<Route> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shares: Vec<f32> = logits.iter().map(|x| (x - max).exp()).collect();
    let sum: f32 = shares.iter().sum();
    let mut routes: Vec<Route> =
        shares.iter().enumerate().map(|(expert, share)| Route { expert, weight: share / sum }).collect();
    routes.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    routes.truncate(count);
    if renormalise && !made(Mistake::NotRenormalised) {
        let sum: f32 = routes.iter().map(|route| route.weight).sum();
        routes.iter_mut().for_each(|route| route.weight /= sum);
    }
    routes
}

/// A token at one expert's door.
struct Visitor {
    token: usize,
    weight: f32,
}

fn by_expert(routes: &[Vec<Route>], experts: usize) -> Vec<Vec<Visitor>> {
    let mut visitors: Vec<Vec<Visitor>> = (0..experts).map(|_| Vec::new()).collect();
    for (token, routes) in routes.iter().enumerate() {
        for route in routes {
            visitors[route.expert].push(Visitor { token, weight: route.weight });
        }
    }
    visitors
}

fn table(routes: &[Vec<Route>], value: impl Fn(&Route) -> f32) -> Result<Tensor> {
    let width = routes.first().map_or(0, Vec::len);
    let values: Vec<f32> = routes.iter().flatten().map(value).collect();
    Ok(Tensor::from_vec(values, (routes.len(), width), &candle_core::Device::Cpu)?)
}

/// This rank's slice of one expert.
#[derive(Clone)]
struct Expert {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Expert {
    fn forward_partial(&self, x: &Tensor) -> Result<Tensor> {
        let mut halves = Linear::forward_group(&[&self.gate, &self.up], x)?.into_iter();
        let (Some(gate), Some(up)) = (halves.next(), halves.next()) else {
            return Err(Error::Internal("a group of two linears gave fewer than two results".into()));
        };
        self.down.forward_partial(&silu_mul(&gate, &up)?)
    }
}

/// Experts in any of the ways checkpoints keep them: one fused stack (`gate_up_proj [E, 2·I, H]`, gate rows first, and
/// `down_proj [E, H, I]`), the three stacks of a GGUF, or one scope per expert.
fn load_experts(w: &Weights, config: &MoeConfig) -> Result<Vec<Expert>> {
    let (hidden, inner) = (config.hidden_size, config.expert_size);
    let slice = share(inner, &*w.placement().comm, &w.name("an expert's inner width"))?;
    if w.contains("gate_up_proj") {
        let gate_up = w.raw_of("gate_up_proj", &[config.experts, 2 * inner, hidden])?;
        let down = w.raw_of("down_proj", &[config.experts, hidden, inner])?;
        let up = inner + slice.start..inner + slice.end;
        let expert = |e: usize| {
            let (gate_up, down) = (gate_up.index(e)?, down.index(e)?);
            Ok(Expert {
                gate: Linear::from_raw(&gate_up, std::slice::from_ref(&slice), 0..hidden, w)?,
                up: Linear::from_raw(&gate_up, std::slice::from_ref(&up), 0..hidden, w)?,
                down: Linear::from_raw(&down, std::slice::from_ref(&(0..hidden)), slice.clone(), w)?,
            })
        };
        return (0..config.experts).map(expert).collect();
    }
    if w.contains("gate_proj.weight") {
        let gate = w.raw_of("gate_proj.weight", &[config.experts, inner, hidden])?;
        let up = w.raw_of("up_proj.weight", &[config.experts, inner, hidden])?;
        let down = w.raw_of("down_proj.weight", &[config.experts, hidden, inner])?;
        let expert = |e: usize| {
            Ok(Expert {
                gate: Linear::from_raw(&gate.index(e)?, std::slice::from_ref(&slice), 0..hidden, w)?,
                up: Linear::from_raw(&up.index(e)?, std::slice::from_ref(&slice), 0..hidden, w)?,
                down: Linear::from_raw(
                    &down.index(e)?,
                    std::slice::from_ref(&(0..hidden)),
                    slice.clone(),
                    w,
                )?,
            })
        };
        return (0..config.experts).map(expert).collect();
    }
    let expert = |e: usize| {
        let w = w.pp(e);
        Ok(Expert {
            gate: Linear::column_parallel(&w.pp("gate_proj"), hidden, inner, Bias::None)?,
            up: Linear::column_parallel(&w.pp("up_proj"), hidden, inner, Bias::None)?,
            down: Linear::row_parallel(&w.pp("down_proj"), inner, hidden, Bias::None)?,
        })
    };
    (0..config.experts).map(expert).collect()
}

/// The expert every token visits, as much as a gate of its own lets it.
#[derive(Clone)]
struct SharedExpert {
    expert: SwiGlu,
    gate: Linear,
}

impl SharedExpert {
    fn load(w: &Weights, hidden: usize, inner: usize) -> Result<Self> {
        Ok(Self {
            expert: SwiGlu::load(&w.pp("shared_expert"), hidden, inner, Bias::None)?,
            gate: Self::gate(&w.pp("shared_expert_gate"), hidden)?,
        })
    }

    /// One row; a GGUF drops its dimension of one.
    fn gate(w: &Weights, hidden: usize) -> Result<Linear> {
        if w.shape("weight")?.len() == 2 {
            return Linear::replicated_plain(w, hidden, 1, Bias::None);
        }
        let row = w.raw_of("weight", &[hidden])?.reshape(vec![1, hidden])?;
        let plain = w.placed(Placement { quantize: None, ..w.placement().clone() });
        Linear::from_raw(&row, std::slice::from_ref(&(0..1)), 0..hidden, &plain)
    }

    /// This rank's part; the gate is the same on all ranks, so scaling before the all-reduce scales the sum.
    fn forward_partial(&self, x: &Tensor, trace: &Trace, scope: &str) -> Result<Tensor> {
        let gate = self.gate.forward(x)?;
        trace.tap(|| format!("{scope}/moe/shared_gate"), || Ok(gate.clone()))?;
        if made(Mistake::SharedUngated) {
            return self.expert.forward_partial(x);
        }
        Ok(self.expert.forward_partial(x)?.broadcast_mul(&sigmoid(&gate)?)?)
    }
}

/// A few tokens' experts on a GPU.
#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::{DType, Device, Tensor};

    use super::decode::{self, Between, MOST_TOKENS, Sizes};
    use super::{Expert, MoeConfig, Router};
    use crate::device::gpu::{Gpu, address, empty, empty_ids, table_address};
    use crate::error::Result;

    /// Addresses of the experts' matrices, on the device.
    #[derive(Clone)]
    pub(super) struct Tables {
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        sizes: Sizes,
    }

    impl Tables {
        /// `None` where the kernels do not take such experts: quantized, of odd sizes, or not on a GPU.
        pub(super) fn of(experts: &[Expert], config: &MoeConfig) -> Result<Option<Self>> {
            let Some(first) = experts.first() else { return Ok(None) };
            let sizes = Sizes {
                hidden: config.hidden_size,
                inner: first.gate.outputs(),
                experts: config.experts,
                chosen: config.experts_per_token,
                renormalise: config.renormalise,
            };
            let of = |matrix: fn(&Expert) -> &crate::linear::Linear| -> Result<Option<Tensor>> {
                let mut addresses = Vec::with_capacity(experts.len());
                for expert in experts {
                    let Some(weight) = matrix(expert).placed_dense() else { return Ok(None) };
                    if !weight.device().is_cuda() || !matches!(weight.dtype(), DType::BF16 | DType::F32) {
                        return Ok(None);
                    }
                    addresses.push(address(weight)? as i64);
                }
                let device = matrix(&experts[0]).placed_dense().map_or(Device::Cpu, |w| w.device().clone());
                Ok(Some(Tensor::from_vec(addresses, experts.len(), &device)?))
            };
            let tables = (of(|expert| &expert.gate)?, of(|expert| &expert.up)?, of(|expert| &expert.down)?);
            Ok(match tables {
                (Some(gate), Some(up), Some(down)) if sizes.fit() => Some(Self { gate, up, down, sizes }),
                _ => None,
            })
        }

        /// What the experts say to `x [tokens, hidden]`; `None` for more tokens than are worth it.
        pub(super) fn visit(&self, router: &Router, x: &Tensor) -> Result<Option<Tensor>> {
            let tokens = x.dim(0)?;
            let (Device::Cuda(device), true) = (x.device(), tokens <= MOST_TOKENS) else { return Ok(None) };
            let (x, logits) = (x.contiguous()?, router.gate.forward(x)?.contiguous()?);
            let pairs = tokens * self.sizes.chosen;
            let (ids, shares) = (empty_ids(device, pairs)?, empty(device, pairs, DType::F32)?);
            let inner = empty(device, (pairs, self.sizes.inner), DType::F32)?;
            let out = empty(device, (tokens, self.sizes.hidden), x.dtype())?;
            let tables = decode::Tables {
                gate: table_address(&self.gate)?,
                up: table_address(&self.up)?,
                down: table_address(&self.down)?,
            };
            let between = Between { ids: ids.1, shares: address(&shares)?, inner: address(&inner)? };
            let activations = (address(&logits)?, address(&x)?, address(&out)?);
            let bf16 = x.dtype() == DType::BF16;
            decode::visit(&Gpu(device), bf16, self.sizes, tokens, activations, tables, between)?;
            Ok(Some(out))
        }
    }
}
