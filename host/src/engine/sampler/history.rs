//! Which tokens a sequence has seen, for the penalties.

use std::collections::{HashMap, HashSet};

/// Tokens of the prompt, and how often each was generated.
#[derive(Debug, Clone, Default)]
pub struct History {
    prompt: HashSet<u32>,
    generated: HashMap<u32, u32>,
}

impl History {
    /// Takes in the prompt.
    pub fn prompt(&mut self, tokens: &[u32]) {
        self.prompt.extend(tokens);
    }

    /// Takes in a generated token.
    pub fn push(&mut self, token: u32) {
        *self.generated.entry(token).or_default() += 1;
    }

    /// Generated tokens and how often.
    pub fn generated(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.generated.iter().map(|(&token, &count)| (token, count))
    }

    /// Every token of prompt and output, once.
    pub fn seen(&self) -> impl Iterator<Item = u32> + '_ {
        let only_generated = self.generated.keys().filter(|token| !self.prompt.contains(token));
        self.prompt.iter().chain(only_generated).copied()
    }
}
