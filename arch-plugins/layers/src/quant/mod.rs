//! Block quantization: formats, packing for the kernels, quantizing at load time.

pub mod activations;
pub mod block;
pub mod pack;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::weights::Stored;

/// Quantization applied while loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// 8.5 bits per weight.
    Q8_0,
    /// 6.6 bits per weight.
    Q6K,
    /// 5.5 bits per weight.
    Q5K,
    /// 4.5 bits per weight.
    Q4K,
    /// 4.5 bits per weight, the plainest.
    Q4_0,
}

impl Scheme {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Q8_0, Self::Q6K, Self::Q5K, Self::Q4K, Self::Q4_0];

    /// `q8_0`, `q6k`, `q5k`, `q4k` or `q4_0`; an empty text is `None`.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        if text.is_empty() {
            return Ok(None);
        }
        Self::ALL.into_iter().find(|scheme| scheme.name() == text).map(Some).ok_or_else(|| {
            Error::Unsupported(format!(
                "quantization `{text}` is unknown; use q8_0, q6k, q5k, q4k, q4_0 or none"
            ))
        })
    }

    /// Its name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q6K => "q6k",
            Self::Q5K => "q5k",
            Self::Q4K => "q4k",
            Self::Q4_0 => "q4_0",
        }
    }

    /// The format rows of `columns` values take.
    ///
    /// Formats of 256 need rows of whole blocks; other rows take the simple format with at least as many
    /// bits. Rows that are not whole blocks of 32 stay as they are.
    pub fn stored(self, columns: usize) -> Option<Stored> {
        if !columns.is_multiple_of(32) {
            return None;
        }
        Some(match (self, columns.is_multiple_of(256)) {
            (Self::Q8_0, _) => Stored::Q8_0,
            (Self::Q4_0, _) => Stored::Q4_0,
            (Self::Q6K, true) => Stored::Q6K,
            (Self::Q5K, true) => Stored::Q5K,
            (Self::Q4K, true) => Stored::Q4K,
            (Self::Q6K, false) => Stored::Q8_0,
            (Self::Q5K, false) => Stored::Q5_1,
            (Self::Q4K, false) => Stored::Q5_0,
        })
    }
}

/// Quantizes whole rows of `columns` values into blocks.
pub fn quantize_rows(values: Vec<f32>, columns: usize, stored: Stored) -> Result<Vec<u8>> {
    let dtype = ggml_dtype(stored)?;
    let rows = values.len() / columns;
    let tensor = Tensor::from_vec(values, (rows, columns), &Device::Cpu)?;
    Ok(QTensor::quantize(&tensor, dtype)?.data()?.into_owned())
}

/// Candle's name of a quantized format.
pub(crate) fn ggml_dtype(stored: Stored) -> Result<GgmlDType> {
    Ok(match stored {
        Stored::Q4_0 => GgmlDType::Q4_0,
        Stored::Q4_1 => GgmlDType::Q4_1,
        Stored::Q5_0 => GgmlDType::Q5_0,
        Stored::Q5_1 => GgmlDType::Q5_1,
        Stored::Q8_0 => GgmlDType::Q8_0,
        Stored::Q4K => GgmlDType::Q4K,
        Stored::Q5K => GgmlDType::Q5K,
        Stored::Q6K => GgmlDType::Q6K,
        Stored::F32 | Stored::F16 | Stored::BF16 => {
            return Err(Error::Internal(format!("{stored:?} is not a quantized format")));
        }
    })
}
