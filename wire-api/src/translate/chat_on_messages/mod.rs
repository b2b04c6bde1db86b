//! Clients of OpenAI chat on servers that speak the Anthropic dialect.
