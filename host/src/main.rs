//! The `neuron` binary.

fn main() {}
