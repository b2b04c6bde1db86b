//! Which kernels of `cuda/gated_delta_net.cu` run, over which grids, on what.
//!
//! Addresses are numbers here, so that a test can have the kernels run on the CPU by the very same steps. The constants
//! are those at the top of the kernels' file.

use super::kernel::{Heads, KeyHeads};
use crate::device::launch::{Activations, Address, Argument, Grid, Launcher, elementwise, shared};
use crate::error::Result;

const MAX_ROWS: usize = 64;
const CHUNK: usize = 64;
const COLUMNS: usize = 32;
const SLICES: usize = 4;
const PANEL: usize = 16;
const WIDE: usize = 32;
const RUN: usize = 8;
/// Threads of a block of the chunked form.
const CHUNK_THREADS: u32 = 256;

/// Shortest row for which the chunked form is worth its preparations.
const CHUNKED_FROM: usize = 16;
/// Tokens prepared at a time: their scratch memory is bounded, whatever the prompt.
const PIECE: usize = 1024;
/// The sequences of a launch, as the kernels take them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    state: [Address; MAX_ROWS],
    first: [i32; MAX_ROWS],
    tokens: [i32; MAX_ROWS],
}

/// Counts and sizes of the heads, as the kernels take them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadSizes {
    key_heads: i32,
    value_heads: i32,
    key_dim: i32,
    value_dim: i32,
    tiled: i32,
}

impl From<&Heads> for HeadSizes {
    fn from(heads: &Heads) -> Self {
        Self {
            key_heads: heads.key_heads as i32,
            value_heads: heads.value_heads as i32,
            key_dim: heads.key_dim as i32,
            value_dim: heads.value_dim as i32,
            tiled: i32::from(heads.layout == KeyHeads::Tiled),
        }
    }
}

/// A sequence's tokens in a step, and where its state is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub state: Address,
    pub first: usize,
    pub tokens: usize,
}

fn by_value(rows: &[Row]) -> Argument {
    let mut all = Rows { state: [0; MAX_ROWS], first: [0; MAX_ROWS], tokens: [0; MAX_ROWS] };
    for (i, row) in rows.iter().enumerate() {
        (all.state[i], all.first[i], all.tokens[i]) = (row.state, row.first as i32, row.tokens as i32);
    }
    Argument::Rows(Box::new(all))
}

/// The convolution of every row, `[tokens, channels]` to f32 of the same shape at `out`; advances the rows' states.
pub(super) fn conv<L: Launcher>(
    launcher: &L,
    mixed: Activations,
    taps: Address,
    (channels, kernel): (usize, usize),
    rows: &[Row],
    out: Address,
) -> Result<()> {
    use Argument::{Address as At, Int};
    let sizes = || [Int(channels as i32), Int(kernel as i32)];
    let (single, long): (Vec<Row>, Vec<Row>) = rows.iter().partition(|row| row.tokens == 1);
    for rows in single.chunks(MAX_ROWS) {
        let arguments =
            mixed.arguments().into_iter().chain([At(taps), by_value(rows)]).chain(sizes()).chain([At(out)]);
        let arguments: Vec<_> = arguments.collect();
        launcher.launch("gdn_conv_step", elementwise(channels, rows.len()), &arguments)?;
    }
    for rows in long.chunks(MAX_ROWS) {
        let longest = rows.iter().map(|row| row.tokens).max().unwrap_or(0);
        let mut grid = elementwise(channels, longest.div_ceil(RUN));
        grid.blocks[2] = rows.len() as u32;
        let arguments =
            mixed.arguments().into_iter().chain([At(taps), by_value(rows)]).chain(sizes()).chain([At(out)]);
        launcher.launch("gdn_conv", grid, &arguments.collect::<Vec<_>>())?;
        let arguments = mixed.arguments().into_iter().chain([by_value(rows)]).chain(sizes());
        launcher.launch(
            "gdn_conv_keep",
            elementwise(channels, rows.len()),
            &arguments.collect::<Vec<_>>(),
        )?;
    }
    Ok(())
}

/// `β` and `g` of `count` values `[tokens, heads]` to f32 at `beta` and `decay`; `b` and `a` are of one dtype.
pub(super) fn gates<L: Launcher>(
    launcher: &L,
    (b, a): (Activations, Activations),
    (rate, bias): (Address, Address),
    (heads, count): (usize, usize),
    (beta, decay): (Address, Address),
) -> Result<()> {
    use Argument::{Address as At, Int};
    let [address, dtype] = a.arguments();
    let arguments = [
        At(b.address),
        address,
        dtype,
        At(rate),
        At(bias),
        Int(heads as i32),
        Int(count as i32),
        At(beta),
        At(decay),
    ];
    launcher.launch("gdn_gates", elementwise(count, 1), &arguments)
}

/// The inputs of the delta rule, f32 as [`super::delta_rule`] describes them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs {
    pub mixed: Address,
    pub beta: Address,
    pub decay: Address,
}

/// The delta rule of every row, to f32 `[tokens, value_heads, value_dim]` at `out`; advances the rows' states.
pub(super) fn delta_rule<L: Launcher>(
    launcher: &L,
    heads: &Heads,
    inputs: Inputs,
    rows: &[Row],
    out: Address,
) -> Result<()> {
    let (short, long): (Vec<Row>, Vec<Row>) = rows.iter().partition(|row| row.tokens < CHUNKED_FROM);
    for rows in short.chunks(MAX_ROWS) {
        recurrent(launcher, heads, inputs, rows, out)?;
    }
    for row in long {
        for start in (0..row.tokens).step_by(PIECE) {
            let piece = Row { first: row.first + start, tokens: PIECE.min(row.tokens - start), ..row };
            chunked(launcher, heads, inputs, piece, out)?;
        }
    }
    Ok(())
}

fn recurrent<L: Launcher>(
    launcher: &L,
    heads: &Heads,
    inputs: Inputs,
    rows: &[Row],
    out: Address,
) -> Result<()> {
    use Argument::Address as At;
    let values = heads.key_dim * (COLUMNS + 2) + 2 * SLICES * COLUMNS;
    let grid = Grid {
        blocks: [heads.value_dim.div_ceil(COLUMNS) as u32, heads.value_heads as u32, rows.len() as u32],
        threads: (COLUMNS * SLICES) as u32,
        shared_bytes: shared(values, "a linear attention with keys this long")?,
    };
    let arguments = [
        At(inputs.mixed),
        At(inputs.beta),
        At(inputs.decay),
        by_value(rows),
        Argument::Heads(heads.into()),
        At(out),
    ];
    launcher.launch("gdn_recurrent", grid, &arguments)
}

fn chunked<L: Launcher>(launcher: &L, heads: &Heads, inputs: Inputs, row: Row, out: Address) -> Result<()> {
    use Argument::{Address as At, Int};
    let each = row.tokens * heads.value_heads;
    let memory = [heads.value_dim, heads.key_dim, CHUNK, 3]
        .into_iter()
        .map(|width| launcher.memory(each * width))
        .collect::<Result<Vec<_>>>()?;
    let scratch = || memory.iter().map(|memory| At(launcher.address(memory)));
    let place = || [Int(row.first as i32), Int(row.tokens as i32), Argument::Heads(heads.into())];

    let values = 2 * CHUNK * (CHUNK + 1) + 2 * CHUNK + CHUNK * (WIDE + 1) + 4 * CHUNK;
    let grid = Grid {
        blocks: [row.tokens.div_ceil(CHUNK) as u32, heads.value_heads as u32, 1],
        threads: CHUNK_THREADS,
        shared_bytes: shared(values, "a linear attention with keys this long")?,
    };
    let arguments = [At(inputs.mixed), At(inputs.beta), At(inputs.decay)].into_iter().chain(place());
    launcher.launch("gdn_chunk_prepare", grid, &arguments.chain(scratch()).collect::<Vec<_>>())?;

    let values = heads.key_dim * COLUMNS + CHUNK * (COLUMNS + 1) + CHUNK * (PANEL + 1);
    let grid = Grid {
        blocks: [heads.value_dim.div_ceil(COLUMNS) as u32, heads.value_heads as u32, 1],
        threads: CHUNK_THREADS,
        shared_bytes: shared(values, "a linear attention with keys this long")?,
    };
    let arguments = [At(inputs.mixed)].into_iter().chain(scratch()).chain([At(row.state)]).chain(place());
    launcher.launch("gdn_chunk_scan", grid, &arguments.chain([At(out)]).collect::<Vec<_>>())
}

#[cfg(test)]
mod emulated;
