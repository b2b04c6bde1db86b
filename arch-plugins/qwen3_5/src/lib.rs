//! The Qwen3.5 architecture: `qwen3_5`, `qwen3_5_text`, `qwen3_5_moe` and `qwen3_5_moe_text`.
pub mod attention;
pub mod checkpoint;
pub mod config;
pub mod delta_net;
pub mod image;
pub mod model;
pub mod positions;
pub mod state;
pub mod vision;
