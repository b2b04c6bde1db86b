//! The Qwen3 architecture as a loadable plugin.
