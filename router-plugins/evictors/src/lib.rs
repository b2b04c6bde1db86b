//! Built-in eviction strategies, one file each.
//!
//! An evictor is a pure function from a need and the loaded models of one node to victims, in the
//! order they should go. It chooses only among residents the host marked eligible (idle, unpinned,
//! long enough resident, no higher class); the host checks the answer and carries it out.
//!
//! What they share is in [`select`]: victims are taken in ascending order of a score until the need
//! is met, then those that turn out superfluous are let off, the most valuable first; and a sweep,
//! which needs no bytes, names what has been idle beyond its own limit.
//!
//! To add one: a file here with an `evictor!` entry, and its line below.

pub mod gd_wait;
pub mod gdsf;
pub mod knapsack;
pub mod lfu_aging;
pub mod lru;
pub mod need;
pub mod priority;
pub mod select;
pub mod ttl_idle;

#[cfg(test)]
mod table;
