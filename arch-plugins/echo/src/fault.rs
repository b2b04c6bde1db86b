//! Going wrong on purpose.

use std::thread::park;

use plugin_sdk::{Error, Result};

use crate::config::{Fault, FaultKind};
use crate::sequence::Sequence;

/// What a fault leaves to the caller.
pub(crate) enum Outcome {
    /// This row fails alone.
    Row(Error),
    /// The row's logits are to be spoilt.
    Nan,
}

impl Fault {
    /// Whether it strikes when `sequence`, which already holds them, was fed the tokens from `position` on.
    pub(crate) fn strikes(&self, sequence: &Sequence, position: usize) -> bool {
        let here = self.at.is_none_or(|at| (position..sequence.len()).contains(&at));
        here && self.text.as_deref().is_none_or(|text| sequence.contains(text))
    }

    /// Strikes. An `Err` fails the whole batch.
    pub(crate) fn strike(&self) -> Result<Outcome> {
        let told = "the settings say that this goes wrong";
        match self.kind {
            FaultKind::InvalidInput => Ok(Outcome::Row(Error::InvalidInput(told.into()))),
            FaultKind::OutOfMemory => {
                Ok(Outcome::Row(Error::OutOfMemory { message: told.into(), need_bytes: 4096 }))
            }
            FaultKind::Nan => Ok(Outcome::Nan),
            FaultKind::Unsupported => Err(Error::Unsupported(told.into())),
            FaultKind::DeviceLost => Err(Error::DeviceLost(told.into())),
            FaultKind::Internal => Err(Error::Internal(told.into())),
            FaultKind::Panic => panic!("{told}"),
            FaultKind::Abort => std::process::abort(),
            FaultKind::Exit => std::process::exit(0),
            FaultKind::Hang => loop {
                park();
            },
        }
    }
}
