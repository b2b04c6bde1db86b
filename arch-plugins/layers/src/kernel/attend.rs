//! Attention of a tile of query rows over blocks of keys and values.
//!
//! Keys lie transposed, `[head_dim][64]`, and values `[64][padded head_dim]`, so that scores and sums are both
//! products of a broadcast row with contiguous vectors. A row's softmax runs over blocks in order of their
//! positions, in spans of [`SPAN_BLOCKS`] blocks that are merged in order; neither depends on which other
//! rows are computed, on how a prompt was cut in pieces, or on threads.

#![allow(clippy::needless_range_loop, reason = "register tiles are indexed the same way throughout")]

use super::by_isa;
use super::simd::{LANES, Simd, exp};

/// Tokens in a block.
pub const BLOCK: usize = 64;
/// Blocks in a span, the unit in which one row's work is spread over threads.
pub const SPAN_BLOCKS: usize = 8;
/// Stands for "no key yet" among running maxima.
const LOWEST: f32 = -1e30;

/// Keys and values of one head in one block.
#[derive(Clone, Copy)]
pub struct Block {
    /// `[head_dim][64]`
    pub keys: *const f32,
    /// `[64][padded]`
    pub values: *const f32,
}

/// Which keys a row may see: positions `from ..= to`.
#[derive(Clone, Copy, Debug)]
pub struct Sees {
    /// First position.
    pub from: usize,
    /// Last position.
    pub to: usize,
}

/// A tile of query rows and its running result.
pub struct Tile {
    /// Scaled queries, `[rows][head_dim]`.
    pub queries: Vec<f32>,
    /// What each row sees.
    pub sees: Vec<Sees>,
    /// Weighted sums of values, `[rows][padded]`.
    pub sums: Vec<f32>,
    /// Largest score per row.
    pub maxima: Vec<f32>,
    /// Sum of weights per row.
    pub totals: Vec<f32>,
    scores: Vec<f32>,
    /// Values per head, and rounded up to whole vectors.
    pub head_dim: usize,
    /// `head_dim` rounded up to whole vectors.
    pub padded: usize,
}

/// `head_dim` rounded up to whole vectors.
pub fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

impl Tile {
    /// A tile of rows that have seen nothing.
    pub fn new(queries: Vec<f32>, sees: Vec<Sees>, head_dim: usize) -> Self {
        let rows = sees.len();
        let padded = padded(head_dim);
        Self {
            queries,
            sums: vec![0.0; rows * padded],
            maxima: vec![LOWEST; rows],
            totals: vec![0.0; rows],
            scores: vec![0.0; rows * BLOCK],
            sees,
            head_dim,
            padded,
        }
    }

    /// Forgets what was seen, keeping queries.
    pub fn reset(&mut self) {
        self.sums.fill(0.0);
        self.maxima.fill(LOWEST);
        self.totals.fill(0.0);
    }

    /// Takes in what `later` saw of positions after this one's.
    pub fn merge(&mut self, later: &Tile) {
        for row in 0..self.sees.len() {
            let (old, new) = (self.maxima[row], later.maxima[row]);
            let top = old.max(new);
            let (keep, take) = ((old - top).exp(), (new - top).exp());
            self.maxima[row] = top;
            self.totals[row] = self.totals[row] * keep + later.totals[row] * take;
            let at = row * self.padded;
            let (to, from) = (&mut self.sums[at..at + self.padded], &later.sums[at..at + self.padded]);
            for (to, from) in to.iter_mut().zip(from) {
                *to = *to * keep + *from * take;
            }
        }
    }

    /// Result of a row, `head_dim` values, into `out`.
    pub fn finish(&self, row: usize, out: &mut [f32]) {
        let total = self.totals[row];
        let sums = &self.sums[row * self.padded..][..self.head_dim];
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = sum / total;
        }
    }
}

/// `c[row][0 .. 16·V] (+)= Σ_k a[row][k] · b[k][…]` for `R` rows.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn multiply<S: Simd, const R: usize, const V: usize>(
    a: *const f32,
    a_stride: usize,
    b: *const f32,
    b_stride: usize,
    c: *mut f32,
    c_stride: usize,
    k: usize,
    accumulate: bool,
) {
    // SAFETY: the caller promises R rows of `k` values in a, `k` rows of 16·V in b, R rows of 16·V in c.
    unsafe {
        let mut sum = [[S::splat(0.0); V]; R];
        if accumulate {
            for r in 0..R {
                for v in 0..V {
                    sum[r][v] = S::load(c.add(r * c_stride + v * LANES));
                }
            }
        }
        for i in 0..k {
            let mut row = [S::splat(0.0); V];
            for v in 0..V {
                row[v] = S::load(b.add(i * b_stride + v * LANES));
            }
            for r in 0..R {
                let factor = S::splat(*a.add(r * a_stride + i));
                for v in 0..V {
                    sum[r][v] = S::fma(factor, row[v], sum[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                S::store(c.add(r * c_stride + v * LANES), sum[r][v]);
            }
        }
    }
}

/// [`multiply`] for any number of rows and any whole number of vectors.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn product<S: Simd, const R: usize, const V: usize>(
    rows: usize,
    a: *const f32,
    a_stride: usize,
    b: *const f32,
    b_stride: usize,
    c: *mut f32,
    width: usize,
    k: usize,
    accumulate: bool,
) {
    // SAFETY: passed on; the column loop never leaves `width`, the row loop never leaves `rows`.
    unsafe {
        let mut column = 0;
        while column < width {
            let wide = width - column >= V * LANES;
            let (b, c) = (b.add(column), c.add(column));
            let mut row = 0;
            while row < rows {
                let (a, c) = (a.add(row * a_stride), c.add(row * width));
                let left = rows - row;
                row += match (wide, left) {
                    (true, left) if left >= R => {
                        multiply::<S, R, V>(a, a_stride, b, b_stride, c, width, k, accumulate);
                        R
                    }
                    (true, left) if left >= 3 => {
                        multiply::<S, 3, V>(a, a_stride, b, b_stride, c, width, k, accumulate);
                        3
                    }
                    (true, 2) => {
                        multiply::<S, 2, V>(a, a_stride, b, b_stride, c, width, k, accumulate);
                        2
                    }
                    (true, _) => {
                        multiply::<S, 1, V>(a, a_stride, b, b_stride, c, width, k, accumulate);
                        1
                    }
                    (false, left) if left >= R => {
                        multiply::<S, R, 1>(a, a_stride, b, b_stride, c, width, k, accumulate);
                        R
                    }
                    (false, _) => {
                        multiply::<S, 1, 1>(a, a_stride, b, b_stride, c, width, k, accumulate);
                        1
                    }
                };
            }
            column += if wide { V * LANES } else { LANES };
        }
    }
}

/// One block of keys and values.
#[inline(always)]
unsafe fn block_body<S: Simd, const R: usize, const V: usize>(tile: &mut Tile, block: Block, start: usize) {
    let rows = tile.sees.len();
    let (head_dim, padded) = (tile.head_dim, tile.padded);
    // SAFETY: the caller promises a block of the tile's head_dim; the tile's own vectors have `rows` rows.
    unsafe {
        let scores = tile.scores.as_mut_ptr();
        product::<S, R, V>(
            rows,
            tile.queries.as_ptr(),
            head_dim,
            block.keys,
            BLOCK,
            scores,
            BLOCK,
            head_dim,
            false,
        );
        for row in 0..rows {
            let scores = scores.add(row * BLOCK);
            let sees = tile.sees[row];
            if sees.to < start + BLOCK - 1 {
                for hidden in (sees.to + 1).max(start) - start..BLOCK {
                    *scores.add(hidden) = f32::NEG_INFINITY;
                }
            }
            if sees.from > start {
                for hidden in 0..(sees.from - start).min(BLOCK) {
                    *scores.add(hidden) = f32::NEG_INFINITY;
                }
            }
            let mut largest = S::load(scores);
            for v in 1..BLOCK / LANES {
                largest = S::max(largest, S::load(scores.add(v * LANES)));
            }
            let old = tile.maxima[row];
            let top = old.max(S::max_lane(largest));
            let mut total = S::splat(0.0);
            for v in 0..BLOCK / LANES {
                let weight = exp::<S>(S::sub(S::load(scores.add(v * LANES)), S::splat(top)));
                S::store(scores.add(v * LANES), weight);
                total = S::add(total, weight);
            }
            if top > old {
                let keep = (old - top).exp();
                tile.maxima[row] = top;
                tile.totals[row] *= keep;
                let sums = tile.sums.as_mut_ptr().add(row * padded);
                for v in 0..padded / LANES {
                    let at = sums.add(v * LANES);
                    S::store(at, S::mul(S::load(at), S::splat(keep)));
                }
            }
            tile.totals[row] += S::sum(total);
        }
        product::<S, R, V>(
            rows,
            scores,
            BLOCK,
            block.values,
            padded,
            tile.sums.as_mut_ptr(),
            padded,
            BLOCK,
            true,
        );
    }
}

by_isa! {
    /// Lets every row of the tile see a block that holds positions `start .. start + 64`.
    ///
    /// The caller promises that the block has the tile's head dimension and the level `isa`; positions that
    /// no row sees may hold any finite numbers.
    pub unsafe fn see(tile: &mut Tile, block: Block, start: usize) {
        avx512: block_body::<super::avx512::Avx512, 6, 4>,
        avx2: block_body::<super::avx2::Avx2, 3, 2>,
        portable: block_body::<super::portable::Portable, 3, 1>,
    }
}
