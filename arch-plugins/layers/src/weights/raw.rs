//! Bytes of tensors: who owns them, how numbers are stored in them.

use std::ops::Range;
use std::sync::Arc;

use candle_core::DType;
use half::{bf16, f16};
use memmap2::{Mmap, UncheckedAdvice};

use crate::error::{Error, Result};
use crate::quant::block::{self, Unpacked};

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stored {
    /// 32-bit floats.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// The upper half of 32-bit floats.
    BF16,
    /// Blocks of 32: scale, 4-bit codes around 8.
    Q4_0,
    /// Blocks of 32: scale, minimum, 4-bit codes.
    Q4_1,
    /// Blocks of 32: scale, 5-bit codes around 16.
    Q5_0,
    /// Blocks of 32: scale, minimum, 5-bit codes.
    Q5_1,
    /// Blocks of 32: scale, signed bytes.
    Q8_0,
    /// Blocks of 256: 4-bit codes, 6-bit scales and minima per 32.
    Q4K,
    /// Blocks of 256: 5-bit codes, 6-bit scales and minima per 32.
    Q5K,
    /// Blocks of 256: 6-bit codes around 32, 8-bit scales per 16.
    Q6K,
}

impl Stored {
    /// Values in a block; 1 for dense formats.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Is every number stored on its own?
    pub const fn is_dense(self) -> bool {
        self.block_len() == 1
    }

    /// Candle's name of a dense format.
    pub(crate) fn dtype(self) -> Result<DType> {
        match self {
            Self::F32 => Ok(DType::F32),
            Self::F16 => Ok(DType::F16),
            Self::BF16 => Ok(DType::BF16),
            other => Err(Error::Internal(format!("{other:?} is not a dense format"))),
        }
    }

    /// The dense format of an activation's dtype.
    pub(crate) fn of(dtype: DType) -> Self {
        match dtype {
            DType::F16 => Self::F16,
            DType::BF16 => Self::BF16,
            _ => Self::F32,
        }
    }

    /// Bytes of `values` numbers; a multiple of the block length.
    pub const fn bytes(self, values: usize) -> usize {
        values / self.block_len() * self.block_bytes()
    }
}

/// Memory that tensors lie in: a mapped file or a vector.
pub(crate) trait Memory: Send + Sync {
    /// All of it.
    fn bytes(&self) -> &[u8];

    /// These bytes are not expected to be read again soon.
    fn set_aside(&self, _range: Range<usize>) {}
}

impl Memory for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

impl Memory for Mmap {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn set_aside(&self, range: Range<usize>) {
        // SAFETY: the mapping is of a file and never written to: pages that are read again come back from
        // the file with the same bytes.
        let _ = unsafe { self.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
    }
}

pub(crate) type Owner = Arc<dyn Memory>;

/// One tensor's bytes where they lie; cheap to clone.
#[derive(Clone)]
pub struct RawTensor {
    owner: Owner,
    start: usize,
    end: usize,
    stored: Stored,
    shape: Vec<usize>,
}

impl std::fmt::Debug for RawTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawTensor").field("stored", &self.stored).field("shape", &self.shape).finish()
    }
}

impl RawTensor {
    /// A tensor in `owner` from byte `start` on. The last dimension must be whole blocks and the bytes must
    /// be there.
    pub(crate) fn new(owner: Owner, start: usize, stored: Stored, shape: Vec<usize>) -> Result<Self> {
        let columns = shape.last().copied().unwrap_or(1);
        if !columns.is_multiple_of(stored.block_len()) {
            return Err(Error::Unsupported(format!(
                "rows of {columns} values do not divide into {stored:?} blocks of {}",
                stored.block_len()
            )));
        }
        let values = shape.iter().try_fold(1usize, |all, &size| all.checked_mul(size));
        let end = values
            .and_then(|values| (values / stored.block_len()).checked_mul(stored.block_bytes()))
            .and_then(|bytes| start.checked_add(bytes))
            .filter(|&end| end <= owner.bytes().len());
        match end {
            Some(end) => Ok(Self { owner, start, end, stored, shape }),
            None => Err(Error::Unsupported("the file ends inside this tensor; download it again".into())),
        }
    }

    /// Numbers of a vector, for tests and for weights made at load time.
    pub fn from_f32(values: &[f32], shape: Vec<usize>) -> Result<Self> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::new(Arc::new(bytes), 0, Stored::F32, shape)
    }

    /// Blocks or numbers as bytes, for weights made at load time.
    pub fn from_bytes(bytes: Vec<u8>, stored: Stored, shape: Vec<usize>) -> Result<Self> {
        Self::new(Arc::new(bytes), 0, stored, shape)
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How the numbers are stored.
    pub fn stored(&self) -> Stored {
        self.stored
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.owner.bytes()[self.start..self.end]
    }

    /// Length of the last dimension.
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.stored.bytes(self.columns())
    }

    /// The `index`-th slice along the first dimension, e.g. one expert of a stack.
    pub fn index(&self, index: usize) -> Result<Self> {
        let [count, rest @ ..] = self.shape.as_slice() else {
            return Err(Error::Internal("a scalar has no slices".into()));
        };
        if index >= *count || rest.is_empty() {
            return Err(Error::Internal(format!("slice {index} of a tensor of shape {:?}", self.shape)));
        }
        let bytes = (self.end - self.start) / count;
        let start = self.start + index * bytes;
        Ok(Self { start, end: start + bytes, shape: rest.to_vec(), ..self.clone() })
    }

    /// The same numbers under another shape of as many.
    pub fn reshape(&self, shape: Vec<usize>) -> Result<Self> {
        let same = shape.iter().product::<usize>() == self.shape.iter().product::<usize>();
        let whole = shape.last().is_some_and(|last| last.is_multiple_of(self.stored.block_len()));
        if same && whole {
            Ok(Self { shape, ..self.clone() })
        } else {
            Err(Error::Unsupported(format!("a tensor of shape {:?} is no {shape:?}", self.shape)))
        }
    }

    /// Gives the pages of a mapped file back to the system: what was in them has been packed elsewhere. The
    /// bytes can still be read.
    pub(crate) fn set_aside(&self) {
        self.owner.set_aside(self.start..self.end);
    }

    /// All numbers as f32. For small tensors: a copy of four bytes per number.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.shape.iter().product());
        widen(self.stored, self.bytes(), &mut values);
        values
    }
}

/// Appends stored numbers as f32.
pub(crate) fn widen(stored: Stored, bytes: &[u8], out: &mut Vec<f32>) {
    match stored {
        Stored::F32 => {
            out.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        }
        Stored::F16 => out.extend(bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())),
        Stored::BF16 => {
            out.extend(bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()));
        }
        _ => {
            let mut unpacked = Unpacked::default();
            for bytes in bytes.chunks_exact(stored.block_bytes()) {
                block::unpack(stored, bytes, &mut unpacked);
                unpacked.values(out);
            }
        }
    }
}
