//! The plugin author's side: ordinary safe Rust in, a loadable plugin out.
//!
//! An author implements a trait ([`Architecture`] and [`Model`], or [`Router`], or [`Evictor`]), submits one
//! entry per implementation, and lets a leaf `cdylib` crate of one line export the file. `neuron plugin new`
//! writes all of it; `neuron plugin check` plays the host against the result.
//!
//! # A complete plugin
//! A language model that knows one thing: after a number comes the next one. Its whole state is what it was
//! fed, so it can be forked and trimmed anywhere.
//!
//! ```
//! use plugin_sdk::arch::Description;
//! use plugin_sdk::{
//!     Architecture, Batch, Error, Loaded, Model, Options, Phase, Plan, Progress, Result, Source, Want, capability,
//! };
//!
//! const VOCABULARY: usize = 100;
//! const CONTEXT: usize = 1024;
//!
//! struct Counting;
//!
//! plugin_sdk::architecture!(Counting);
//!
//! impl Architecture for Counting {
//!     type Model = Counter;
//!
//!     fn describe(&self) -> Description {
//!         Description {
//!             name: "counting",
//!             model_types: &["counting"], // `model_type` in config.json
//!             gguf_architectures: &[],
//!             capabilities: capability::WEIGHTLESS,
//!             max_world: 1,
//!         }
//!     }
//!
//!     fn plan(&self, source: &Source<'_>, options: &Options<'_>) -> Result<Plan> {
//!         check(source, options)?;
//!         Ok(Plan {
//!             kv_bytes_per_token: size_of::<u32>() as u64,
//!             max_context: CONTEXT as u32,
//!             vocab_size: VOCABULARY as u32,
//!             layers: 1,
//!             ..Plan::default()
//!         })
//!     }
//!
//!     fn load(&self, source: &Source<'_>, options: &Options<'_>, progress: &Progress<'_>) -> Result<Counter> {
//!         check(source, options)?;
//!         progress.report(Phase::READ, 0, 0)?; // a real model reports bytes, and stops here when cancelled
//!         tracing::info!("ready to count"); // arrives in the host's log
//!         Ok(Counter)
//!     }
//! }
//!
//! fn check(source: &Source<'_>, options: &Options<'_>) -> Result<()> {
//!     if !source.config.contains("\"counting\"") {
//!         return Err(Error::InvalidInput("config.json is not that of a counting model".into()));
//!     }
//!     if !options.options.is_empty() {
//!         return Err(Error::InvalidInput("counting has no options".into()));
//!     }
//!     Ok(())
//! }
//!
//! struct Counter;
//!
//! impl Model for Counter {
//!     type Sequence = Vec<u32>; // the state of one sequence; a real model keeps its KV cache here
//!     type Image = ();
//!
//!     fn info(&self) -> Loaded {
//!         Loaded {
//!             vocab_size: VOCABULARY,
//!             max_context: CONTEXT,
//!             image_token: None,
//!             fork_any_length: true,
//!             weight_bytes: 0,
//!         }
//!     }
//!
//!     fn sequence(&mut self) -> Result<Vec<u32>> {
//!         Ok(Vec::new())
//!     }
//!
//!     fn length(&self, sequence: &Vec<u32>) -> usize {
//!         sequence.len()
//!     }
//!
//!     fn fork(&mut self, sequence: &Vec<u32>, length: usize) -> Result<Vec<u32>> {
//!         Ok(sequence[..length].to_vec())
//!     }
//!
//!     fn trim(&mut self, sequence: &mut Vec<u32>, length: usize) -> Result<()> {
//!         sequence.truncate(length);
//!         Ok(())
//!     }
//!
//!     fn bytes(&self, sequence: &Vec<u32>) -> u64 {
//!         size_of_val(&sequence[..]) as u64
//!     }
//!
//!     fn step(&mut self, batch: &mut Batch<'_, Vec<u32>>) -> Result<()> {
//!         batch.check_cancelled()?; // a real model asks between layers
//!         for row in &mut batch.rows {
//!             row.sequence.extend(row.tokens);
//!             if row.logits.is_empty() {
//!                 continue; // a part of a prompt that is not its last
//!             }
//!             // One row of logits for the last token, or one for each.
//!             let wanted = if row.want == Want::ALL { row.tokens } else { &row.tokens[row.tokens.len() - 1..] };
//!             for (token, logits) in wanted.iter().zip(row.logits.chunks_exact_mut(VOCABULARY)) {
//!                 logits.fill(0.0);
//!                 logits[(*token as usize + 1) % VOCABULARY] = 10.0;
//!             }
//!         }
//!         Ok(())
//!     }
//! }
//!
//! // Tests need no host:
//! use plugin_sdk::testing;
//! let mut model =
//!     Counting.load(&testing::source(r#"{"model_type": "counting"}"#), &testing::options(), &Progress::SILENT)?;
//! assert_eq!(testing::generate(&mut model, &[40], 3)?, [41, 42, 43]);
//! # Ok::<(), Error>(())
//! ```
//!
//! The leaf crate, `crate-type = ["cdylib"]`, is this line:
//!
//! ```
//! # extern crate plugin_sdk as counting;
//! plugin_sdk::export_plugin! { name: "counting", crates: [counting] }
//! # fn main() {}
//! ```
//!
//! # What the SDK does for you
//! * **Panics** are caught at the door and become [`Error::Internal`]; a model whose step panicked refuses every
//!   later call.
//! * **Rows** are checked before the model sees them: sequence, position, tokens, images, room for the results.
//!   A wrong one fails alone.
//! * **Memory**: what all sequences hold is kept to the host's budget, going by `plan` and [`Model::bytes`].
//! * **Logs**: `tracing` events reach the host's log. Nothing may be printed.
//! * **Ids** of sequences and images are never reused; a stale one names nothing.
//! * **Threads**: [`thread_budget`] and [`Options::threads`] say how many may be busy.
//! * **Several** implementations may live in one file.
//!
//! # What is left to you
//! The five kinds of [`Error`] each have one meaning; say the fact and the remedy in one sentence. `plan` reads
//! headers only, and is believed. A step polls [`Batch::check_cancelled`] between layers. A strategy is a pure
//! function of what it is given.
//!
//! This crate must never load anything: that is the host's side (`plugin-loader`).

pub mod arch;
pub mod device;
pub mod embedded;
mod error;
mod glue;
mod host;
pub mod strategy;
pub mod testing;

pub use arch::{
    Architecture, Batch, BatchRow, Encoded, ImageView, Loaded, Model, Options, Plan, Progress, RowImage,
    Source, Want,
};
pub use error::{Error, Result};
pub use host::thread_budget;
pub use plugin_abi::arch::{DeviceInfo, DeviceKind, WeightFormat, capability};
pub use plugin_abi::host::Phase;
pub use plugin_abi::strategy::{Candidate, Purpose, Residency, Resident};
pub use strategy::{EvictChoice, EvictRequest, Evictor, Explain, RouteChoice, RouteRequest, Router};

#[doc(hidden)]
pub mod export {
    //! What the macros expand to. Not for authors.
    pub use crate::embedded::{Manifest, root};
    pub use crate::glue::entry::{ArchitectureEntry, EvictorEntry, RouterEntry};
    pub use inventory;
    pub use plugin_abi;
}

/// The guide's code is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/guides/write-a-strategy.md")]
struct WriteAStrategy;
