//! Running own kernels, on a GPU or, in tests, on an emulation of one.
//!
//! Addresses are numbers here, so that a test can have the kernels run on the CPU by the very same steps.

use crate::attention::decode::{Sequences, Shape};
use crate::error::{Error, Result};
use crate::gated_delta_net::launch::{HeadSizes, Rows};

/// Threads of a block of an elementwise kernel.
pub(crate) const CHANNELS: usize = 256;

/// What every GPU served gives a block without being asked for more.
pub(crate) const SHARED_LIMIT: usize = 48 << 10;

/// An address on the device.
pub(crate) type Address = u64;

/// One argument of a kernel.
#[derive(Debug)]
pub(crate) enum Argument {
    Address(Address),
    Int(i32),
    Float(f32),
    Rows(Box<Rows>),
    Heads(HeadSizes),
    Sequences(Box<Sequences>),
    Shape(Shape),
}

/// Blocks, threads of each, and the memory they share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub blocks: [u32; 3],
    pub threads: u32,
    pub shared_bytes: u32,
}

/// Something that runs the kernels.
pub(crate) trait Launcher {
    /// Memory of the device.
    type Memory;
    /// Room for so many f32, with anything in it.
    fn memory(&self, values: usize) -> Result<Self::Memory>;
    /// Where it is.
    fn address(&self, memory: &Self::Memory) -> Address;
    /// Runs one kernel after all that were launched before it.
    fn launch(&self, kernel: &'static str, grid: Grid, arguments: &[Argument]) -> Result<()>;
}

/// Activations on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Activations {
    pub address: Address,
    /// bf16, otherwise f32.
    pub bf16: bool,
}

impl Activations {
    pub(crate) fn arguments(self) -> [Argument; 2] {
        [Argument::Address(self.address), Argument::Int(i32::from(self.bf16))]
    }
}

/// A thread per value of each row.
pub(crate) fn elementwise(count: usize, rows: usize) -> Grid {
    Grid {
        blocks: [count.div_ceil(CHANNELS) as u32, rows as u32, 1],
        threads: CHANNELS as u32,
        shared_bytes: 0,
    }
}

/// Bytes of so many shared f32, if a block can have them; `what` wants them.
pub(crate) fn shared(values: usize, what: &str) -> Result<u32> {
    let bytes = values * size_of::<f32>();
    if bytes <= SHARED_LIMIT {
        return Ok(bytes as u32);
    }
    Err(Error::Unsupported(format!("{what} does not fit a GPU's shared memory: {bytes} bytes")))
}

#[cfg(test)]
pub(crate) mod emulated;
