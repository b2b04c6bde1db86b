//! Built-in routing strategies, one file each.
//!
//! A router is a pure function from a request and the candidates to one candidate. It has no clock,
//! no randomness of its own and no memory: time, seed and ordinal are in the request, and whatever
//! was learned is in the candidates. Equal inputs give equal answers, so every strategy is tested on
//! tables and runs unchanged in the simulator.
//!
//! All of them but [`fit`] look only at the warmest candidates (resident before loading before
//! loadable) and leave the choice among cold nodes to [`pool`]; `fit` weighs serving and loading
//! against each other in seconds.
//!
//! To add one: a file here with a `router!` entry, and its line below.

pub mod fit;
pub mod kv_aware;
pub mod least_inflight;
pub mod least_tokens;
pub mod peak_ewma;
pub mod pool;
pub mod power_of_two;
pub mod prefix_affinity;
pub mod rendezvous;
pub mod round_robin;
pub mod seconds;
pub mod session_hash;

#[cfg(test)]
mod table;
