//! The Anthropic dialect.
