//! How hard to think, as a word and as a number of tokens.

use crate::openai::chat::ReasoningEffort;

/// Words and the budgets they stand for, most first.
const LADDER: [(ReasoningEffort, u32); 5] = [
    (ReasoningEffort::Xhigh, 8192),
    (ReasoningEffort::High, 4096),
    (ReasoningEffort::Medium, 2048),
    (ReasoningEffort::Low, 1024),
    (ReasoningEffort::Minimal, 128),
];

/// The most effort a budget pays for.
pub fn of_budget(budget_tokens: u32) -> ReasoningEffort {
    LADDER
        .into_iter()
        .find(|(_, threshold)| *threshold <= budget_tokens)
        .map_or(ReasoningEffort::Minimal, |(effort, _)| effort)
}

/// The budget a word stands for; `None` for no thinking.
pub fn budget_of(effort: ReasoningEffort) -> Option<u32> {
    match effort {
        ReasoningEffort::None => None,
        ReasoningEffort::Max => Some(LADDER[0].1),
        effort => LADDER.into_iter().find(|(word, _)| *word == effort).map(|(_, budget)| budget),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t29_budgets_buy_effort() {
        use ReasoningEffort::{High, Low, Medium, Minimal, Xhigh};
        let cases = [
            (0, Minimal),
            (128, Minimal),
            (1023, Minimal),
            (1024, Low),
            (2047, Low),
            (2048, Medium),
            (4096, High),
            (8191, High),
            (8192, Xhigh),
            (32_000, Xhigh),
        ];
        for (budget, effort) in cases {
            assert_eq!(of_budget(budget), effort, "{budget}");
        }
        for effort in ReasoningEffort::ALL {
            assert_eq!(budget_of(effort).is_none(), effort == ReasoningEffort::None);
        }
    }
}
