//! What one sequence keeps between steps: keys and values of the full layers, recurrent and convolution state of the
//! linear ones, and how far its positions have come.
//!
//! The recurrent state is a sum over the whole past and cannot be taken back, so a sequence forks where it stands and
//! nowhere else. An earlier prefix has to be saved while it is there.

use layers::device::Kept;
use layers::gated_delta_net::{DeltaDims, DeltaState, KeyHeads};
use layers::kv::{KvCache, KvShape};
use layers::sequences::SequenceState;
use layers::{Error, Result};

use crate::config::{LayerKind, TextConfig};
use crate::positions::Counter;

/// Sizes of a state on one rank.
#[derive(Clone, Debug)]
pub struct StateShape {
    /// The full layers' cache.
    pub kv: KvShape,
    /// The linear layers' state.
    pub delta: DeltaDims,
    /// Number of linear layers.
    pub linear_layers: usize,
}

impl StateShape {
    /// For one of `world` ranks, which holds so many KV heads.
    pub fn of(config: &TextConfig, kv_heads: usize, value_heads: KeyHeads, world: usize, kept: Kept) -> Self {
        let full_layers = config.layers.iter().filter(|&&kind| kind == LayerKind::Full).count();
        Self {
            kv: KvShape { layers: full_layers, kv_heads, head_dim: config.attention.head_dim, kept },
            delta: config.linear.on_rank(value_heads, world),
            linear_layers: config.layers.len() - full_layers,
        }
    }

    /// Bytes that grow with a sequence.
    pub fn bytes_per_token(&self) -> u64 {
        self.kv.bytes_per_token()
    }

    /// Bytes that do not.
    pub fn bytes_per_sequence(&self) -> u64 {
        (self.linear_layers * self.delta.state_bytes()) as u64
    }

    /// The state of an empty sequence.
    pub fn empty(&self) -> State {
        State {
            kv: KvCache::new(self.kv),
            delta: (0..self.linear_layers).map(|_| DeltaState::new(&self.delta)).collect(),
            counter: Counter::default(),
        }
    }
}

/// One sequence's state on one rank.
pub struct State {
    /// Keys and values of the full layers.
    pub kv: KvCache,
    /// One per linear layer.
    pub delta: Vec<DeltaState>,
    /// Tokens and positions so far.
    pub counter: Counter,
}

impl State {
    fn expect_here(&self, len: usize) -> Result<()> {
        if len == self.len() {
            return Ok(());
        }
        Err(Error::InvalidInput(format!(
            "a recurrent state cannot go back: the sequence holds {} tokens, {len} were asked for",
            self.len()
        )))
    }
}

impl SequenceState for State {
    fn len(&self) -> usize {
        self.counter.tokens()
    }

    fn fork(&self, len: usize) -> Result<Self> {
        self.expect_here(len)?;
        Ok(Self { kv: self.kv.fork(len)?, delta: self.delta.clone(), counter: self.counter })
    }

    fn trim(&mut self, len: usize) -> Result<()> {
        self.expect_here(len)
    }

    fn bytes(&self) -> u64 {
        let delta: usize = self.delta.iter().map(DeltaState::bytes).sum();
        self.kv.bytes() + delta as u64
    }
}
