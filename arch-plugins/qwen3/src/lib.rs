//! The Qwen3 architecture.
