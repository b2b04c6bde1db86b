//! Quantized matrices as the kernels want them: sixteen rows interleaved.
//!
//! A packed matrix takes as many bits per weight as its file (formats of 256: an eighth of a bit more), and
//! it is the only copy in memory: rows for an embedding are read back out of it. Codes and scales are those
//! of the file, bit for bit.

use half::f16;
use memmap2::{Advice, MmapMut};

use super::block::{self, Unpacked};
use crate::error::{Error, Result};
use crate::kernel::quantized::{Format, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use crate::kernel::simd::LANES;
use crate::kernel::{Shared, pool};
use crate::weights::Stored;

/// Constants of a [`Format`] as values.
#[derive(Debug, Clone, Copy)]
struct Layout {
    bits: usize,
    offset: i32,
    groups: usize,
    sub: usize,
    head: usize,
    group_bytes: usize,
    record: usize,
}

const fn layout<F: Format>() -> Layout {
    Layout {
        bits: F::BITS as usize,
        offset: F::OFFSET,
        groups: F::GROUPS,
        sub: F::SUB,
        head: F::HEAD,
        group_bytes: F::GROUP_BYTES,
        record: F::RECORD,
    }
}

fn layout_of(stored: Stored) -> Layout {
    match stored {
        Stored::Q4_0 => layout::<Q4_0>(),
        Stored::Q4_1 => layout::<Q4_1>(),
        Stored::Q5_0 => layout::<Q5_0>(),
        Stored::Q5_1 => layout::<Q5_1>(),
        Stored::Q8_0 => layout::<Q8_0>(),
        Stored::Q4K => layout::<Q4K>(),
        Stored::Q5K => layout::<Q5K>(),
        Stored::Q6K => layout::<Q6K>(),
        Stored::F32 | Stored::F16 | Stored::BF16 => unreachable!("dense matrices are not packed"),
    }
}

/// A quantized matrix, packed.
pub struct Packed {
    data: MmapMut,
    stored: Stored,
    rows: usize,
    columns: usize,
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packed({:?}, {} × {})", self.stored, self.rows, self.columns)
    }
}

/// Where a packed matrix gets its blocks from.
pub trait BlockRows: Sync {
    /// Appends the blocks of rows `first .. first + count`, row after row.
    fn append(&self, first: usize, count: usize, blocks: &mut Vec<u8>) -> Result<()>;
}

impl Packed {
    /// Packs `rows` rows of `columns` values (whole blocks), panels in parallel.
    pub fn pack(stored: Stored, rows: usize, columns: usize, source: &dyn BlockRows) -> Result<Self> {
        let panel_bytes = Self::panel_bytes_of(stored, columns);
        let panels = rows.div_ceil(LANES);
        let size = (panels * panel_bytes).max(1);
        let mut data = MmapMut::map_anon(size).map_err(|_| {
            Error::OutOfMemory(format!("no {size} bytes of memory for a matrix of {rows} × {columns}"))
        })?;
        // Large pages are a matter of speed only.
        let _ = data.advise(Advice::HugePage);
        let failure = std::sync::Mutex::new(None);
        let base = Shared(data.as_mut_ptr());
        pool::split(panels, 4, &|start, end| {
            let mut blocks = Vec::new();
            for panel in start..end {
                let first = panel * LANES;
                let count = LANES.min(rows - first);
                blocks.clear();
                if let Err(error) = source.append(first, count, &mut blocks) {
                    *failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                    return;
                }
                // SAFETY: panels lie side by side in `data`, and each task has panels of its own.
                let to = unsafe { std::slice::from_raw_parts_mut(base.at(panel * panel_bytes), panel_bytes) };
                pack_panel(stored, &blocks, count, columns, to);
            }
        });
        match failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(Self { data, stored, rows, columns }),
        }
    }

    fn panel_bytes_of(stored: Stored, columns: usize) -> usize {
        let layout = layout_of(stored);
        columns / (32 * layout.groups) * layout.record
    }

    /// Format of the weights.
    pub fn stored(&self) -> Stored {
        self.stored
    }

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the matrix.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.data.len() as u64
    }

    /// Bytes between panels.
    pub fn panel_bytes(&self) -> usize {
        Self::panel_bytes_of(self.stored, self.columns)
    }

    /// First panel.
    pub fn as_ptr(&self) -> *const u8 {
        self.data.as_ptr()
    }

    /// Values of one row.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let layout = layout_of(self.stored);
        let lane = row % LANES;
        let panel = &self.data[row / LANES * self.panel_bytes()..][..self.panel_bytes()];
        let half = |record: &[u8], at: usize| {
            f16::from_le_bytes([record[at + 2 * lane], record[at + 2 * lane + 1]]).to_f32()
        };
        for (record, out) in panel.chunks_exact(layout.record).zip(out.chunks_exact_mut(32 * layout.groups)) {
            let d = half(record, 0);
            for (g, out) in out.chunks_exact_mut(32).enumerate() {
                let codes = &record[layout.head + g * layout.group_bytes..];
                let min = match self.stored {
                    Stored::Q4_1 | Stored::Q5_1 => half(record, 32),
                    Stored::Q4K | Stored::Q5K => {
                        -half(record, 32) * f32::from(record[64 + 128 + 16 * g + lane])
                    }
                    _ => 0.0,
                };
                for (e, out) in out.iter_mut().enumerate() {
                    let scale = match self.stored {
                        Stored::Q4K | Stored::Q5K => d * f32::from(record[64 + 16 * g + lane]),
                        Stored::Q6K => d * f32::from(record[32 + 16 * (2 * g + e / layout.sub) + lane] as i8),
                        _ => d,
                    };
                    let code = i32::from(code(codes, layout.bits, lane, e)) - layout.offset;
                    *out = scale * code as f32 + min;
                }
            }
        }
    }
}

/// Code of element `e` (0..32) of a lane in a group.
fn code(codes: &[u8], bits: usize, lane: usize, e: usize) -> u8 {
    let (slice, at) = (e / 4, 4 * lane + e % 4);
    if bits == 8 {
        return codes[64 * slice + at];
    }
    let planes = bits - 4;
    let nibble = codes[64 * (planes + slice % 4) + at] >> (4 * (slice / 4)) & 0x0f;
    match bits {
        5 => nibble | (codes[at] >> slice & 1) << 4,
        6 => nibble | (codes[64 * (slice / 4) + at] >> (2 * (slice % 4)) & 3) << 4,
        _ => nibble,
    }
}

/// Writes 32 codes of a lane into a zeroed group.
fn put_codes(group: &mut [u8], bits: usize, lane: usize, codes: &[u8]) {
    for (slice, four) in codes.chunks_exact(4).enumerate() {
        let at = 4 * lane;
        if bits == 8 {
            group[64 * slice + at..][..4].copy_from_slice(four);
            continue;
        }
        let planes = bits - 4;
        let nibbles = 64 * (planes + slice % 4) + at;
        let plane = 64 * if bits == 6 { slice / 4 } else { 0 } + at;
        for (j, &code) in four.iter().enumerate() {
            group[nibbles + j] |= (code & 0x0f) << (4 * (slice / 4));
            match bits {
                5 => group[plane + j] |= (code >> 4) << slice,
                6 => group[plane + j] |= (code >> 4) << (2 * (slice % 4)),
                _ => {}
            }
        }
    }
}

/// Interleaves the blocks of up to sixteen rows; lanes without a row stay zero.
fn pack_panel(stored: Stored, blocks: &[u8], rows: usize, columns: usize, panel: &mut [u8]) {
    let layout = layout_of(stored);
    let row_bytes = stored.bytes(columns);
    let mut unpacked = Unpacked::default();
    for lane in 0..rows {
        let row = &blocks[lane * row_bytes..][..row_bytes];
        let records = panel.chunks_exact_mut(layout.record);
        for (bytes, record) in row.chunks_exact(stored.block_bytes()).zip(records) {
            block::unpack(stored, bytes, &mut unpacked);
            record[2 * lane..][..2].copy_from_slice(&unpacked.d.to_le_bytes());
            match stored {
                Stored::Q4_1 | Stored::Q5_1 => {
                    record[32 + 2 * lane..][..2].copy_from_slice(&unpacked.m.to_le_bytes());
                }
                Stored::Q4K | Stored::Q5K => {
                    record[32 + 2 * lane..][..2].copy_from_slice(&unpacked.m.to_le_bytes());
                    for g in 0..8 {
                        record[64 + 16 * g + lane] = unpacked.scales[g];
                        record[64 + 128 + 16 * g + lane] = unpacked.minima[g];
                    }
                }
                Stored::Q6K => {
                    for half in 0..16 {
                        record[32 + 16 * half + lane] = unpacked.scales[half];
                    }
                }
                _ => {}
            }
            for g in 0..layout.groups {
                let at = layout.head + g * layout.group_bytes;
                let group = &mut record[at..at + layout.group_bytes];
                put_codes(group, layout.bits, lane, &unpacked.codes[32 * g..32 * (g + 1)]);
            }
        }
    }
}
