//! The vision tower: patches of one image in, one embedding per token out.
//!
//! ```text
//! x = patches · W + b + position(row, column)          a learned square table, interpolated to the image's grid
//! for each block:   x = x + proj(attention(norm1(x)))   over all patches of the image, rotated by row and column
//!                   x = x + fc2(gelu(fc1(norm2(x))))
//! tokens = fc2(gelu(fc1(blocks of merge · merge normed patches side by side)))
//! ```
//!
//! Everything is in block order, so the patches of a token are neighbours and tokens come out in reading order. One image is
//! encoded at a time: its patches never attend to another image's.

use layers::activation::{gelu_erf, gelu_tanh};
use layers::attention;
use layers::linear::{Bias, Linear};
use layers::mistake::{Mistake, made};
use layers::norm::LayerNorm;
use layers::placement::Placement;
use layers::rotary::Angles;
use layers::trace::Trace;
use layers::weights::Weights;
use layers::{Error, Result, Tensor};

use crate::config::{Gelu, VisionConfig};
use crate::image::{Grid, Patches, block_order};

/// Epsilon of the tower's layer norms. Part of the architecture, not of the configuration.
const NORM_EPS: f64 = 1e-6;

/// Base of the tower's rotary frequencies.
const ROPE_THETA: f64 = 10_000.0;

/// The tower on one rank.
pub struct VisionTower {
    config: VisionConfig,
    patch_embed: PatchEmbed,
    positions: PositionTable,
    blocks: Vec<Block>,
    merger: Merger,
    placement: Placement,
}

impl VisionTower {
    /// One image's patches to `[tokens, out_hidden_size]`. `scope` names the image in the trace.
    pub fn forward(&self, patches: &Patches, trace: &Trace, scope: &str) -> Result<Tensor> {
        let order = block_order(patches.grid, self.config.merge_size);
        let angles = self.angles(&order);
        let pixels = self.patch_embed.forward(patches, &self.placement)?;
        let positions = self.positions.at(patches.grid, &order, &self.placement)?;
        trace.tap(|| format!("{scope}/patch_embed"), || Ok(pixels.clone()))?;
        trace.tap(|| format!("{scope}/pos_embed"), || Ok(positions.clone()))?;
        trace.tap(|| format!("{scope}/rope_cos"), || angles.cos())?;
        trace.tap(|| format!("{scope}/rope_sin"), || angles.sin())?;

        let mut x = (pixels + positions)?;
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, &angles)?;
            trace.tap(|| format!("{scope}/block{i}"), || Ok(x.clone()))?;
        }
        let tokens = self.merger.forward(&x)?;
        trace.tap(|| format!("{scope}/merger"), || Ok(tokens.clone()))?;
        Ok(tokens)
    }

    /// A quarter of a head's dimensions turns with the row, the next with the column; the other half of the head pairs
    /// with them.
    fn angles(&self, order: &[(usize, usize)]) -> Angles {
        let head_dim = self.config.hidden_size / self.config.heads;
        let half = head_dim / 2;
        let inverse: Vec<f32> =
            (0..half / 2).map(|j| ROPE_THETA.powf(-2.0 * j as f64 / half as f64) as f32).collect();
        let still = made(Mistake::NoVisionRotary);
        let turn =
            |at: usize| inverse.iter().map(move |inverse| if still { 0.0 } else { at as f32 * inverse });
        let angles: Vec<f32> =
            order.iter().flat_map(|&(row, column)| turn(row).chain(turn(column))).collect();
        Angles::from_angles(&angles, half)
    }

    /// The scope is `model.visual`.
    pub fn load(w: &Weights, config: &VisionConfig) -> Result<Self> {
        let split = Split::of(config, w.placement());
        let blocks = (0..config.depth)
            .map(|i| Block::load(&w.pp("blocks").pp(i), config, split))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            config: config.clone(),
            patch_embed: PatchEmbed::load(&w.pp("patch_embed.proj"), config)?,
            positions: PositionTable::load(&w.pp("pos_embed"), config)?,
            blocks,
            merger: Merger::load(&w.pp("merger"), config)?,
            placement: w.placement().clone(),
        })
    }
}

/// A convolution whose stride is its kernel: one matrix product over flattened patches.
struct PatchEmbed {
    /// `[3 · temporal · patch · patch, hidden]`.
    weight: Tensor,
    bias: Tensor,
}

impl PatchEmbed {
    fn load(w: &Weights, config: &VisionConfig) -> Result<Self> {
        let (d, c, t, p) =
            (config.hidden_size, config.channels, config.temporal_patch_size, config.patch_size);
        let dtype = w.placement().dtype;
        let weight =
            w.tensor("weight", &[d, c, t, p, p], dtype)?.reshape((d, c * t * p * p))?.t()?.contiguous()?;
        Ok(Self { weight, bias: w.tensor("bias", &[d], dtype)? })
    }

    fn forward(&self, patches: &Patches, placement: &Placement) -> Result<Tensor> {
        let width = self.weight.dim(0)?;
        let count = patches.grid.patches();
        if patches.values.len() != count * width {
            return Err(Error::InvalidInput(format!(
                "the image's patches have {} values each, the vision tower reads {width}",
                patches.values.len() / count.max(1)
            )));
        }
        let values = Tensor::from_slice(&patches.values, (count, width), &placement.device)?;
        Ok(values.to_dtype(self.weight.dtype())?.matmul(&self.weight)?.broadcast_add(&self.bias)?)
    }
}

/// Learned positions on a square of `side · side`, read between its points with aligned corners: the first and last patch of
/// a row sit exactly on the table's edges whatever the image's size.
struct PositionTable {
    side: usize,
    width: usize,
    /// `[side · side, width]`, row by row.
    values: Vec<f32>,
}

impl PositionTable {
    fn load(w: &Weights, config: &VisionConfig) -> Result<Self> {
        let (side, width) = (config.position_side, config.hidden_size);
        let raw = w.raw("weight")?;
        if raw.shape() != [side * side, width] {
            return Err(Error::InvalidInput(format!(
                "{} is {:?}, expected {:?}",
                w.name("weight"),
                raw.shape(),
                [side * side, width]
            )));
        }
        Ok(Self { side, width, values: raw.to_f32() })
    }

    fn at(&self, grid: Grid, order: &[(usize, usize)], placement: &Placement) -> Result<Tensor> {
        let rows: Vec<_> = (0..grid.height).map(|row| self.between(row, grid.height)).collect();
        let columns: Vec<_> = (0..grid.width).map(|column| self.between(column, grid.width)).collect();
        let mut out = Vec::with_capacity(order.len() * self.width);
        for (n, &(row, column)) in order.iter().enumerate() {
            let (row, column) =
                if made(Mistake::RasterPositions) { (n / grid.width, n % grid.width) } else { (row, column) };
            if made(Mistake::SequentialPositions) {
                let entry = n % (self.side * self.side) * self.width;
                out.extend_from_slice(&self.values[entry..entry + self.width]);
                continue;
            }
            let ((y0, y1, dy), (x0, x1, dx)) = (rows[row], columns[column]);
            let corners = [
                (y0 * self.side + x0, (1.0 - dy) * (1.0 - dx)),
                (y0 * self.side + x1, (1.0 - dy) * dx),
                (y1 * self.side + x0, dy * (1.0 - dx)),
                (y1 * self.side + x1, dy * dx),
            ];
            out.extend((0..self.width).map(|i| {
                corners
                    .iter()
                    .map(|&(entry, weight)| self.values[entry * self.width + i] * weight)
                    .sum::<f32>()
            }));
        }
        Ok(Tensor::from_vec(out, (order.len(), self.width), &placement.device)?.to_dtype(placement.dtype)?)
    }

    /// The two table lines around patch `i` of `count`, and how far it is past the first.
    fn between(&self, i: usize, count: usize) -> (usize, usize, f32) {
        let last = self.side - 1;
        let at = if count > 1 { i as f32 * last as f32 / (count - 1) as f32 } else { 0.0 };
        let at = if made(Mistake::HalfPixelPositions) {
            ((i as f32 + 0.5) * self.side as f32 / count as f32 - 0.5).clamp(0.0, last as f32)
        } else {
            at
        };
        let before = (at.floor() as usize).min(last);
        (before, (before + 1).min(last), at - before as f32)
    }
}

/// How a block lies over the ranks: split by heads and inner width where both divide, otherwise whole on each rank.
#[derive(Clone, Copy)]
struct Split {
    rank: usize,
    world: usize,
}

impl Split {
    fn of(config: &VisionConfig, placement: &Placement) -> Self {
        let (rank, world) = (placement.comm.rank(), placement.comm.world());
        let divides = config.heads.is_multiple_of(world) && config.intermediate_size.is_multiple_of(world);
        if divides { Self { rank, world } } else { Self { rank: 0, world: 1 } }
    }

    fn is_whole(self) -> bool {
        self.world == 1
    }
}

struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
    head_dim: usize,
    activation: Gelu,
}

impl Block {
    fn forward(&self, x: &Tensor, angles: &Angles) -> Result<Tensor> {
        let x = (x + self.attention(&self.norm1.forward(x)?, angles)?)?;
        let y = self.fc1.forward(&self.norm2.forward(&x)?)?;
        let y = match self.activation {
            Gelu::Tanh => gelu_tanh(&y)?,
            Gelu::Erf => gelu_erf(&y)?,
        };
        Ok((x + self.fc2.forward(&y)?)?)
    }

    fn attention(&self, x: &Tensor, angles: &Angles) -> Result<Tensor> {
        let patches = x.dim(0)?;
        let qkv = self.qkv.forward(x)?.reshape((patches, 3, self.heads, self.head_dim))?;
        let part = |i: usize| -> Result<Tensor> { Ok(qkv.narrow(1, i, 1)?.squeeze(1)?.contiguous()?) };
        let (q, k, v) = (angles.apply(&part(0)?)?, angles.apply(&part(1)?)?, part(2)?);
        let scale = (self.head_dim as f32).sqrt().recip();
        self.proj.forward(&attention::full(&q, &k, &v, std::slice::from_ref(&(0..patches)), scale)?)
    }

    fn load(w: &Weights, config: &VisionConfig, split: Split) -> Result<Self> {
        let (d, inner) = (config.hidden_size, config.intermediate_size);
        let part = d / split.world;
        let thirds: Vec<_> =
            (0..3).map(|third| third * d + split.rank * part..third * d + (split.rank + 1) * part).collect();
        let (fc1, fc2, proj) = (w.pp("mlp.linear_fc1"), w.pp("mlp.linear_fc2"), w.pp("attn.proj"));
        let whole = split.is_whole();
        Ok(Self {
            norm1: LayerNorm::load(&w.pp("norm1"), d, NORM_EPS)?,
            qkv: Linear::rows(&w.pp("attn.qkv"), d, 3 * d, &thirds, Bias::Required)?,
            proj: if whole { Linear::replicated } else { Linear::row_parallel }(&proj, d, d, Bias::Required)?,
            norm2: LayerNorm::load(&w.pp("norm2"), d, NORM_EPS)?,
            fc1: if whole { Linear::replicated } else { Linear::column_parallel }(
                &fc1,
                d,
                inner,
                Bias::Required,
            )?,
            fc2: if whole { Linear::replicated } else { Linear::row_parallel }(
                &fc2,
                inner,
                d,
                Bias::Required,
            )?,
            heads: config.heads / split.world,
            head_dim: d / config.heads,
            activation: config.activation,
        })
    }
}

/// Blocks of patches become tokens. Each patch is normed by itself before its block is put together.
struct Merger {
    norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    /// Width of a block of patches side by side.
    width: usize,
}

impl Merger {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.norm.forward(x)?.reshape(((), self.width))?;
        let gelu = if made(Mistake::MergerTanh) { gelu_tanh } else { gelu_erf };
        self.fc2.forward(&gelu(&self.fc1.forward(&x)?)?)
    }

    fn load(w: &Weights, config: &VisionConfig) -> Result<Self> {
        let width = config.merge_size * config.merge_size * config.hidden_size;
        Ok(Self {
            norm: LayerNorm::load(&w.pp("norm"), config.hidden_size, NORM_EPS)?,
            fc1: Linear::replicated(&w.pp("linear_fc1"), width, width, Bias::Required)?,
            fc2: Linear::replicated(&w.pp("linear_fc2"), width, config.out_hidden_size, Bias::Required)?,
            width,
        })
    }
}
