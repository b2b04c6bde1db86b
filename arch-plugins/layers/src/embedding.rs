//! Token embedding and output head, both split over ranks by vocabulary.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::comm::Communicator;
use crate::device::on_host;
use crate::error::{Error, Result};
use crate::linear::{Linear, Matrix};
use crate::slice;
use crate::weights::Weights;

/// The table of token embeddings; its place holds `weight [vocab, hidden]`. Kept as stored.
#[derive(Clone)]
pub struct Embedding {
    matrix: Matrix,
    range: Range<usize>,
    vocab: usize,
    device: Device,
    dtype: DType,
    comm: Arc<dyn Communicator>,
}

impl std::fmt::Debug for Embedding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Embedding({:?} of {} × {})", self.range, self.vocab, self.matrix.columns())
    }
}

/// Tokens of this rank; the last rank may have fewer.
fn vocab_share(vocab: usize, comm: &dyn Communicator) -> Range<usize> {
    let each = vocab.div_ceil(comm.world());
    (comm.rank() * each).min(vocab)..((comm.rank() + 1) * each).min(vocab)
}

impl Embedding {
    /// Loads this rank's share of the vocabulary.
    pub fn load(w: &Weights, vocab: usize, hidden: usize) -> Result<Self> {
        let placement = w.placement();
        let raw = w.raw_of("weight", &[vocab, hidden])?;
        let range = vocab_share(vocab, &*placement.comm);
        let rows = std::slice::from_ref(&range);
        let matrix = Matrix::place(&raw, rows, 0..hidden, None, placement)
            .map_err(|error| error.within(w.name("weight")))?;
        let (device, dtype) = (placement.device.clone(), placement.dtype);
        Ok(Self { matrix, range, vocab, device, dtype, comm: placement.comm.clone() })
    }

    /// `[ids, hidden]` in the compute dtype.
    pub fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab) {
            return Err(Error::InvalidInput(format!(
                "token {id} is outside the vocabulary of {}",
                self.vocab
            )));
        }
        if !on_host(&self.device) {
            return self.forward_placed(ids);
        }
        let hidden = self.matrix.columns();
        let mut values = vec![0f32; ids.len() * hidden];
        for (&id, out) in ids.iter().zip(values.chunks_exact_mut(hidden)) {
            let id = id as usize;
            if self.range.contains(&id) {
                self.matrix.row(id - self.range.start, out);
            }
        }
        let rows = slice::tensor(values, (ids.len(), hidden), DType::F32)?;
        let rows = if self.comm.world() > 1 { self.comm.all_reduce_sum(&rows)? } else { rows };
        Ok(rows.to_dtype(self.dtype)?)
    }

    fn forward_placed(&self, ids: &[u32]) -> Result<Tensor> {
        let whole = self.comm.world() == 1;
        let here = |id: &u32| self.range.contains(&(*id as usize));
        let own: Vec<u32> =
            ids.iter().map(|id| if here(id) { id - self.range.start as u32 } else { 0 }).collect();
        let rows = self.matrix.rows_placed(&Tensor::from_vec(own, ids.len(), &self.device)?)?;
        let rows = rows.to_dtype(self.dtype)?;
        if whole {
            return Ok(rows);
        }
        // Tokens of other ranks are theirs to bring.
        let mine: Vec<f32> = ids.iter().map(|id| f32::from(u8::from(here(id)))).collect();
        let mine = Tensor::from_vec(mine, (ids.len(), 1), &self.device)?.to_dtype(self.dtype)?;
        self.comm.all_reduce_sum(&rows.broadcast_mul(&mine)?)
    }

    /// Size of the vocabulary over all ranks.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Bytes of weights on this rank.
    pub fn bytes(&self) -> u64 {
        self.matrix.bytes()
    }
}

/// From hidden values to logits.
#[derive(Clone)]
pub struct Head {
    linear: Linear,
    vocab: usize,
    comm: Arc<dyn Communicator>,
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Head({:?} of {})", self.linear, self.vocab)
    }
}

impl Head {
    /// A matrix of its own, `weight [vocab, hidden]`, quantized at load time as any linear.
    pub fn load(w: &Weights, vocab: usize, hidden: usize) -> Result<Self> {
        let comm = w.placement().comm.clone();
        let range = vocab_share(vocab, &*comm);
        let bias = crate::linear::Bias::None;
        let linear = Linear::rows(w, hidden, vocab, std::slice::from_ref(&range), bias)?;
        Ok(Self { linear, vocab, comm })
    }

    /// The embedding's matrix: shared, and therefore as stored.
    pub fn tied(embedding: &Embedding) -> Self {
        Self {
            linear: Linear::from_matrix(embedding.matrix.clone()),
            vocab: embedding.vocab,
            comm: embedding.comm.clone(),
        }
    }

    /// `x [n, hidden]` → logits `[n, vocab]` in f32, gathered from all ranks.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let part = self.linear.forward(x)?.to_dtype(DType::F32)?;
        if self.comm.world() == 1 {
            return Ok(part);
        }
        // Ranks whose share is short are padded, so that all bring as much.
        let each = self.vocab.div_ceil(self.comm.world());
        let part = part.pad_with_zeros(1, 0, each - self.linear.outputs())?;
        Ok(self.comm.all_gather(&part)?.narrow(1, 0, self.vocab)?.contiguous()?)
    }

    /// Bytes of weights on this rank, those shared with an embedding included.
    pub fn bytes(&self) -> u64 {
        self.linear.bytes()
    }
}
