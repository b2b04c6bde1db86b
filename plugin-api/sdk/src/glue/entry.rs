//! What the macros submit and `inventory` gathers: one entry per implementation in this file.

use plugin_abi::arch::Plan;

use super::budget::Budget;
use super::model::{ErasedModel, Sequences};
use crate::arch::{Architecture, Description, Options, Progress, Source};
use crate::error::Result;
use crate::strategy::{Evictor, Router};

/// An architecture with its model type erased.
pub trait ErasedArchitecture: Sync {
    #[doc(hidden)]
    fn describe(&self) -> Description;
    #[doc(hidden)]
    fn plan(&self, source: &Source<'_>, options: &Options<'_>) -> Result<Plan>;
    #[doc(hidden)]
    fn load(
        &self,
        source: &Source<'_>,
        options: &Options<'_>,
        progress: &Progress<'_>,
    ) -> Result<Box<dyn ErasedModel>>;
    #[doc(hidden)]
    fn communicator_id(&self) -> Result<[u8; 128]>;
}

impl<A: Architecture> ErasedArchitecture for A {
    fn describe(&self) -> Description {
        Architecture::describe(self)
    }

    fn plan(&self, source: &Source<'_>, options: &Options<'_>) -> Result<Plan> {
        Architecture::plan(self, source, options)
    }

    fn load(
        &self,
        source: &Source<'_>,
        options: &Options<'_>,
        progress: &Progress<'_>,
    ) -> Result<Box<dyn ErasedModel>> {
        let budget = match options.state_bytes {
            0 => Budget::UNLIMITED,
            bytes => Budget::new(bytes, &Architecture::plan(self, source, options)?),
        };
        Ok(Box::new(Sequences::new(Architecture::load(self, source, options, progress)?, budget)))
    }

    fn communicator_id(&self) -> Result<[u8; 128]> {
        Architecture::communicator_id(self)
    }
}

/// Submitted by [`architecture!`](crate::architecture).
pub struct ArchitectureEntry(pub &'static dyn ErasedArchitecture);

/// A strategy: `S` is `dyn Router` or `dyn Evictor`.
pub struct StrategyEntry<S: ?Sized + 'static> {
    /// Name used in configuration.
    pub name: &'static str,
    /// One sentence for people.
    pub summary: &'static str,
    /// Makes a strategy from a JSON object of options.
    pub create: fn(&str) -> Result<Box<S>>,
}

/// Submitted by [`router!`](crate::router).
pub type RouterEntry = StrategyEntry<dyn Router>;

/// Submitted by [`evictor!`](crate::evictor).
pub type EvictorEntry = StrategyEntry<dyn Evictor>;

inventory::collect!(ArchitectureEntry);
inventory::collect!(RouterEntry);
inventory::collect!(EvictorEntry);
