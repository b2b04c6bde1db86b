//! arch-llama
