//! The Qwen3 architecture: `qwen3` and `qwen3_moe`.

pub mod config;
pub mod model;
