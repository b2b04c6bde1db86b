//! Parts of a stored matrix on their way to where they are multiplied: which rows, and as which blocks.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::kernel::{Shared, pool};
use crate::quant::pack::BlockRows;
use crate::quant::quantize_rows;
use crate::weights::{RawTensor, Stored, widen};

/// Blocks of the file, as they are.
pub(super) struct FileBlocks<'a> {
    pub raw: &'a RawTensor,
    pub rows: &'a RowMap,
    pub bytes: Range<usize>,
}

impl BlockRows for FileBlocks<'_> {
    fn append(&self, first: usize, count: usize, blocks: &mut Vec<u8>) -> Result<()> {
        let row_bytes = self.raw.row_bytes();
        for row in first..first + count {
            let start = self.rows.source(row) * row_bytes;
            blocks.extend_from_slice(&self.raw.bytes()[start + self.bytes.start..start + self.bytes.end]);
        }
        Ok(())
    }
}

/// Dense rows, quantized on the way.
pub(super) struct Quantizing<'a> {
    pub raw: &'a RawTensor,
    pub rows: &'a RowMap,
    pub columns: Range<usize>,
    pub stored: Stored,
}

impl BlockRows for Quantizing<'_> {
    fn append(&self, first: usize, count: usize, blocks: &mut Vec<u8>) -> Result<()> {
        let size = self.raw.stored().block_bytes();
        let row_bytes = self.raw.row_bytes();
        let mut values = Vec::with_capacity(count * self.columns.len());
        for row in first..first + count {
            let start = self.rows.source(row) * row_bytes;
            let bytes = start + self.columns.start * size..start + self.columns.end * size;
            widen(self.raw.stored(), &self.raw.bytes()[bytes], &mut values);
        }
        blocks.extend(quantize_rows(values, self.columns.len(), self.stored)?);
        Ok(())
    }
}

/// The blocks of a part of a stored matrix: those of the file, or made of dense rows on the way.
pub(super) struct BlockSource<'a> {
    raw: &'a RawTensor,
    rows: &'a RowMap,
    columns: Range<usize>,
    /// Set when dense rows are quantized.
    quantized: Option<Stored>,
}

impl<'a> BlockSource<'a> {
    pub(super) fn new(
        raw: &'a RawTensor,
        rows: &'a RowMap,
        columns: Range<usize>,
        quantized: Option<Stored>,
    ) -> Self {
        Self { raw, rows, columns, quantized }
    }

    pub(super) fn stored(&self) -> Stored {
        self.quantized.unwrap_or(self.raw.stored())
    }

    /// A part that begins or ends inside a block takes the whole block.
    fn covered(&self) -> Range<usize> {
        match self.quantized {
            Some(_) => self.columns.clone(),
            None => {
                let block = self.raw.stored().block_len();
                self.columns.start / block * block..self.columns.end.next_multiple_of(block)
            }
        }
    }

    /// Columns of a row in blocks.
    pub(super) fn columns(&self) -> usize {
        self.covered().len()
    }

    /// Columns of the first block that lie before the part.
    pub(super) fn lead(&self) -> usize {
        self.columns.start - self.covered().start
    }

    /// All rows, one after the other; made on all threads.
    pub(super) fn all(&self, rows: usize) -> Result<Vec<u8>> {
        let row_bytes = self.stored().bytes(self.columns());
        let mut blocks = vec![0u8; rows * row_bytes];
        let failure = Mutex::new(None);
        let to = Shared(blocks.as_mut_ptr());
        pool::split(rows, 16, &|start, end| {
            let mut part = Vec::with_capacity((end - start) * row_bytes);
            match self.append(start, end - start, &mut part) {
                // SAFETY: each task has rows of its own in a vector of `rows · row_bytes`.
                Ok(()) => unsafe {
                    let to =
                        std::slice::from_raw_parts_mut(to.at(start * row_bytes), (end - start) * row_bytes);
                    to.copy_from_slice(&part);
                },
                Err(error) => {
                    *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(blocks),
        }
    }
}

impl BlockRows for BlockSource<'_> {
    fn append(&self, first: usize, count: usize, blocks: &mut Vec<u8>) -> Result<()> {
        let (raw, rows) = (self.raw, self.rows);
        match self.quantized {
            Some(stored) => {
                Quantizing { raw, rows, columns: self.columns.clone(), stored }.append(first, count, blocks)
            }
            None => {
                let covered = self.covered();
                let bytes = raw.stored().bytes(covered.start)..raw.stored().bytes(covered.end);
                FileBlocks { raw, rows, bytes }.append(first, count, blocks)
            }
        }
    }
}

/// Which stored rows make up a matrix, in order.
pub(super) struct RowMap(Vec<Range<usize>>);

impl RowMap {
    pub(super) fn new(ranges: &[Range<usize>]) -> Self {
        let mut joined: Vec<Range<usize>> = Vec::new();
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            match joined.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => joined.push(range.clone()),
            }
        }
        Self(joined)
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(ExactSizeIterator::len).sum()
    }

    /// One past the last stored row that is read.
    pub(super) fn end(&self) -> usize {
        self.0.iter().map(|range| range.end).max().unwrap_or(0)
    }

    /// The rows, when they lie side by side.
    pub(super) fn single(&self) -> Option<&Range<usize>> {
        match self.0.as_slice() {
            [rows] => Some(rows),
            _ => None,
        }
    }

    pub(super) fn source(&self, mut row: usize) -> usize {
        for range in &self.0 {
            if row < range.len() {
                return range.start + row;
            }
            row -= range.len();
        }
        unreachable!("rows are counted before they are looked up")
    }
}
