//! Golden tests: an architecture against what the reference implementation computed from the same checkpoint.
//!
//! A checkpoint folder holds, beside the model's own files, `expected.json` (prompts, limits, greedy answers) and
//! `expected.safetensors` (logits and intermediate tensors). Folders are found in `GOLDEN_DIR`, or in the project's own
//! `fixtures/models`, by the `model_type` of their `config.json`, so that the same tests run on checkpoints nobody here has
//! seen.
//!
//! `GOLDEN_DEVICE=cuda` runs them on the first GPU, for an architecture built with its feature `cuda`.
//!
//! Everything is compared before anything is judged: a [`Report`] lists each stage that is out of its limit, in the
//! order of the computation, and the first of them is usually the cause of the rest.

mod fixture;
mod gguf;
mod parity;
mod place;
mod report;
mod session;
mod text;

pub use fixture::{Expected, Fixture, fixtures};
pub use gguf::{Value as GgufValue, write_gguf};
pub use parity::{
    check_batch, check_batch_near, check_fork, check_fork_near, check_pieces, check_pieces_near, check_ranks,
    group_id,
};
pub use place::placement;
pub use report::{Distance, Report};
pub use session::{Session, Tokens};
pub use text::{
    check_bf16, check_greedy, check_logits, check_quantized, check_quantized_as, check_stages, likeliest,
    values,
};
