//! Continues token ids greedily, to compare with other implementations.
//!
//! ```text
//! cargo run --release -p arch-llama --example greedy -- MODEL.gguf COUNT ID ID ID …
//! ```
//!
//! Prints one line per token: its id, and the margin of its logit over the second best. A small margin is
//! where implementations may differ that round activations differently.

use std::path::PathBuf;

use arch_llama::checkpoint::Checkpoint;
use layers::batch::{Batch, BatchRow, Cancel, Decoder};
use layers::placement::Placement;
use layers::trace::Trace;
use layers::weights::{Container, Weights};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = PathBuf::from(arguments.next().ok_or("which .gguf?")?);
    let count: usize = arguments.next().ok_or("how many tokens?")?.parse()?;
    let mut tokens = arguments.map(|id| id.parse()).collect::<Result<Vec<u32>, _>>()?;

    let weights = Weights::open(&[path], Container::Gguf, Placement::cpu())?;
    let decoder = Checkpoint::new("", &weights)?.load(&weights)?;
    let mut state = decoder.new_state();
    for _ in 0..count {
        let (position, len) = (state.len(), tokens.len());
        let row = BatchRow { state: &mut state, offset: 0, len, position, images: Vec::new() };
        let mut batch = Batch {
            tokens: &tokens,
            rows: vec![row],
            logits_of: vec![len as u32 - 1],
            cancel: Cancel::never(),
        };
        let logits = decoder.forward(&mut batch, &Trace::off())?.flatten_all()?.to_vec1::<f32>()?;
        let mut best: Vec<(f32, u32)> = logits.into_iter().zip(0..).collect();
        best.sort_by(|a, b| b.0.total_cmp(&a.0));
        println!("{} {:.4}", best[0].1, best[0].0 - best[1].0);
        tokens = vec![best[0].1];
    }
    Ok(())
}
