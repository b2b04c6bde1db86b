//! The engine: one loaded model, many sequences.
//!
//! A submission is admitted on bytes ([`ledger`]), waits its turn ([`queue`]), has its longest known prefix
//! forked from the [`prefix_cache`], is prefilled in chunks between other sequences' decode steps
//! ([`schedule`]), and gets its tokens chosen by the [`sampler`]. [`run`] is the loop that does this on one
//! thread; everything else here is data and pure functions that it calls.
//!
//! The engine never sees text and never touches a device: it speaks to [`crate::device::group`].

mod admission;
pub mod images;
pub mod ledger;
pub mod prefix_cache;
pub mod prompt;
pub mod queue;
pub mod run;
pub mod sampler;
pub mod schedule;
pub mod sequence;
mod step;

#[cfg(test)]
mod tests;
