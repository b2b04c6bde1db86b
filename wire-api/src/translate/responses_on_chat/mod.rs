//! Clients of OpenAI responses on servers that speak OpenAI chat.
