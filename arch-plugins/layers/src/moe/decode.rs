//! The experts of a few tokens, without asking the host where they go: kernels of `cuda/decode.cu`.
//!
//! Every warp reads one row of one expert's weights, wherever those lie: a table of addresses leads there. For more tokens the
//! same weights would be read again and again; those go expert by expert instead.

use crate::device::launch::{Address, Argument, Grid, Launcher, shared};
use crate::error::Result;

/// Most tokens worth it.
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only a GPU asks"))]
pub(super) const MOST_TOKENS: usize = 16;

const THREADS: u32 = 128;
/// Values of a block: one per warp.
const WARPS: usize = THREADS as usize / 32;

/// Sizes of a mixture on one rank.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub hidden: usize,
    pub inner: usize,
    pub experts: usize,
    pub chosen: usize,
    pub renormalise: bool,
}

impl Sizes {
    /// Do the kernels take sizes like these?
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only a GPU asks"))]
    pub(super) fn fit(self) -> bool {
        self.hidden.is_multiple_of(8) && self.inner.is_multiple_of(8) && self.experts <= 8192
    }
}

/// Addresses of the experts' matrices, a table on the device for each of the three.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tables {
    pub gate: Address,
    pub up: Address,
    pub down: Address,
}

/// Room on the device for what the kernels hand on: ids and shares `[tokens, chosen]`, f32 `[tokens · chosen, inner]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Between {
    pub ids: Address,
    pub shares: Address,
    pub inner: Address,
}

/// `logits [tokens, experts]` and `x [tokens, hidden]`, in bf16 or f32 like the weights → `out [tokens, hidden]`.
pub(super) fn visit<L: Launcher>(
    launcher: &L,
    bf16: bool,
    sizes: Sizes,
    tokens: usize,
    (logits, x, out): (Address, Address, Address),
    tables: Tables,
    between: Between,
) -> Result<()> {
    use Argument::{Address as At, Int};
    let [route, inside, outside] = match bf16 {
        true => ["route_bf16", "expert_in_bf16", "expert_out_bf16"],
        false => ["route_f32", "expert_in_f32", "expert_out_f32"],
    };
    let grid = Grid {
        blocks: [tokens as u32, 1, 1],
        threads: 32,
        shared_bytes: shared(sizes.experts, "a mixture of this many experts")?,
    };
    let chosen = || Int(sizes.chosen as i32);
    let arguments = [
        At(logits),
        Int(sizes.experts as i32),
        chosen(),
        Int(i32::from(sizes.renormalise)),
        At(between.ids),
        At(between.shares),
    ];
    launcher.launch(route, grid, &arguments)?;
    let widths = || [Int(sizes.hidden as i32), Int(sizes.inner as i32)];
    let warps = |values: usize, rows: usize| Grid {
        blocks: [values.div_ceil(WARPS) as u32, rows as u32, 1],
        threads: THREADS,
        shared_bytes: 0,
    };
    let arguments = [At(x), At(tables.gate), At(tables.up), At(between.ids), chosen()].into_iter();
    let arguments: Vec<_> = arguments.chain(widths()).chain([At(between.inner)]).collect();
    launcher.launch(inside, warps(sizes.inner, tokens * sizes.chosen), &arguments)?;
    let arguments =
        [At(between.inner), At(tables.down), At(between.ids), At(between.shares), chosen()].into_iter();
    let arguments: Vec<_> = arguments.chain(widths()).chain([At(out)]).collect();
    launcher.launch(outside, warps(sizes.hidden, tokens), &arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::launch::emulated::{Noise, at, distance, emulators};
    use crate::moe::choose;

    fn product(matrix: &[f32], x: &[f32]) -> Vec<f32> {
        matrix.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
    }

    #[test]
    fn tokens_visit_the_experts_the_host_would_send_them_to() {
        let mut noise = Noise(4);
        let sizes = Sizes { hidden: 24, inner: 40, experts: 37, chosen: 5, renormalise: true };
        for (renormalise, tokens) in [(true, 3), (false, 1)] {
            let sizes = Sizes { renormalise, ..sizes };
            let mut logits = noise.many(tokens * sizes.experts);
            // Equals: the lower index goes first.
            (logits[7], logits[3], logits[30]) = (2.0, 2.0, 2.0);
            let x = noise.many(tokens * sizes.hidden);
            let mut weights =
                |_: usize| (0..sizes.experts).map(|_| noise.many(sizes.hidden * sizes.inner)).collect();
            let [gate, up, down]: [Vec<Vec<f32>>; 3] = std::array::from_fn(&mut weights);
            let mut expected = Vec::new();
            let mut routes_of_all = Vec::new();
            for (logits, x) in logits.chunks_exact(sizes.experts).zip(x.chunks_exact(sizes.hidden)) {
                let mut sum = vec![0f32; sizes.hidden];
                let routes = choose(logits, sizes.chosen, renormalise);
                for route in &routes {
                    let (g, u) = (product(&gate[route.expert], x), product(&up[route.expert], x));
                    let h: Vec<f32> = g.iter().zip(&u).map(|(g, u)| u * g / (1.0 + (-g).exp())).collect();
                    let y = product(&down[route.expert], &h);
                    sum.iter_mut().zip(y).for_each(|(sum, y)| *sum += route.weight * y);
                }
                routes_of_all.extend(routes);
                expected.extend(sum);
            }
            for emulator in emulators() {
                let table =
                    |matrices: &[Vec<f32>]| matrices.iter().map(|matrix| at(matrix)).collect::<Vec<_>>();
                let (gates, ups, downs) = (table(&gate), table(&up), table(&down));
                let address = |table: &[Address]| table.as_ptr() as Address;
                let tables = Tables { gate: address(&gates), up: address(&ups), down: address(&downs) };
                let pairs = tokens * sizes.chosen;
                let (ids, shares) = (vec![u32::MAX; pairs], vec![f32::NAN; pairs]);
                let (inner, out) = (vec![f32::NAN; pairs * sizes.inner], vec![f32::NAN; expected.len()]);
                let between =
                    Between { ids: ids.as_ptr() as Address, shares: at(&shares), inner: at(&inner) };
                let activations = (at(&logits), at(&x), at(&out));
                visit(&emulator, false, sizes, tokens, activations, tables, between).expect("it launches");
                let experts: Vec<u32> = routes_of_all.iter().map(|route| route.expert as u32).collect();
                assert_eq!(ids, experts);
                let weights: Vec<f32> = routes_of_all.iter().map(|route| route.weight).collect();
                assert!(distance(&shares, &weights) < 1e-6);
                assert!(distance(&out, &expected) < 1e-4, "{}", distance(&out, &expected));
            }
        }
    }
}
