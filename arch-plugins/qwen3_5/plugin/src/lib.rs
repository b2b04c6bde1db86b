//! The Qwen3.5 architecture as a loadable plugin.
