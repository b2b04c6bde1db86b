//! Who gets how many tokens of the next step.
//!
//! Continuous batching with chunked prefill: every sequence that decodes gets its one token in every step,
//! whatever else goes on; what is left of the step goes to prefill, limited while others decode so that their
//! next token does not wait for a whole prompt. Among prompts the oldest gets at least half, so that none
//! starves, and the rest goes to those with least left, so that a short prompt is not stuck behind a long one.

use super::prefix_cache::{SOFT_CUT, soft_cut};

/// A running sequence as the schedule sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Tokens it holds.
    pub position: u32,
    /// Tokens that are still to be fed before the next one can be chosen; at least 1.
    pub remaining: u32,
    /// Last hard cut at or before `position`.
    pub segment: u32,
    /// Tokens up to the next hard cut, if one comes before the end.
    pub to_cut: Option<u32>,
}

/// What a step may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// Tokens of all rows.
    pub max_step_tokens: u32,
    /// Prefill tokens while others decode.
    pub prefill_chunk: u32,
    /// Tokens of one row; 0 is no limit of its own.
    pub max_row_tokens: u32,
}

/// Tokens for each candidate, in their order, which is that of admission. 0 leaves one out of this step.
pub fn plan(candidates: &[Candidate], limits: &StepLimits) -> Vec<u32> {
    let mut tokens = vec![0; candidates.len()];
    let mut room = limits.max_step_tokens;
    for (candidate, tokens) in candidates.iter().zip(&mut tokens) {
        if candidate.remaining == 1 && room > 0 {
            *tokens = 1;
            room -= 1;
        }
    }
    let decoding = tokens.iter().any(|&tokens| tokens > 0);
    if decoding {
        room = room.min(limits.prefill_chunk);
    }
    let mut prefills: Vec<usize> = (0..candidates.len()).filter(|&i| candidates[i].remaining > 1).collect();
    let Some(&oldest) = prefills.first() else { return tokens };
    prefills[1..].sort_by_key(|&index| candidates[index].remaining);
    let for_others: u64 = prefills[1..].iter().map(|&index| u64::from(candidates[index].remaining)).sum();
    let share = room - u64::from(room / 2).min(for_others) as u32;
    let piece_of_oldest = piece(&candidates[oldest], share, limits.max_row_tokens);
    tokens[oldest] = if piece_of_oldest == 0 && !decoding {
        // Nothing else may move this step; going on unaligned is better than not going on.
        candidates[oldest].remaining.min(share.max(1))
    } else {
        piece_of_oldest
    };
    room -= tokens[oldest];
    for &index in &prefills[1..] {
        tokens[index] = piece(&candidates[index], room, limits.max_row_tokens);
        room -= tokens[index];
    }
    tokens
}

/// The next piece of a prompt, at most `room` tokens: up to its end, to a hard cut, or to a soft one.
fn piece(candidate: &Candidate, room: u32, max_row: u32) -> u32 {
    let room = if max_row == 0 { room } else { room.min(max_row) };
    let goal = candidate.to_cut.unwrap_or(candidate.remaining).min(candidate.remaining);
    if goal <= room || (1..SOFT_CUT).contains(&max_row) {
        return goal.min(room); // a model that takes only tiny rows cannot be held to soft cuts
    }
    soft_cut(candidate.segment, candidate.position, room)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: StepLimits = StepLimits { max_step_tokens: 512, prefill_chunk: 256, max_row_tokens: 0 };

    fn decode() -> Candidate {
        Candidate { position: 100, remaining: 1, segment: 0, to_cut: None }
    }

    fn prefill(remaining: u32) -> Candidate {
        Candidate { position: 0, remaining, segment: 0, to_cut: None }
    }

    #[test]
    fn decoding_rows_always_get_their_token() {
        assert_eq!(plan(&[decode(), prefill(9000), decode()], &LIMITS), [1, 256, 1]);
        assert_eq!(plan(&[prefill(9000)], &LIMITS), [512]);
    }

    #[test]
    fn a_short_prompt_does_not_wait_for_a_long_one() {
        assert_eq!(plan(&[prefill(9000), prefill(500), prefill(50)], &LIMITS), [256, 192, 50]);
        assert_eq!(plan(&[prefill(9000), prefill(10)], &LIMITS), [448, 10]);
    }

    #[test]
    fn pieces_end_at_hard_cuts() {
        let cut = Candidate { to_cut: Some(100), ..prefill(9000) };
        assert_eq!(plan(&[cut], &LIMITS), [100]);
        let after = Candidate { position: 130, remaining: 8870, segment: 100, to_cut: None };
        assert_eq!(plan(&[after], &LIMITS), [64 * 8 - 30]);
    }

    proptest! {
        #[test]
        fn the_limits_hold_and_the_oldest_always_moves(
            rows in proptest::collection::vec((0u32..3000, 1u32..3000, proptest::option::of(1u32..500)), 1..40),
            max_step_tokens in 200u32..2000, prefill_chunk in 128u32..1000,
        ) {
            let rows: Vec<_> = rows.into_iter().map(|(position, remaining, to_cut)| Candidate {
                position, remaining, segment: position / 3, to_cut }).collect();
            let limits = StepLimits { max_step_tokens, prefill_chunk, max_row_tokens: 0 };
            let tokens = plan(&rows, &limits);
            prop_assert!(tokens.iter().sum::<u32>() <= max_step_tokens);
            for (row, &tokens) in rows.iter().zip(&tokens) {
                prop_assert!(tokens <= row.remaining);
                prop_assert!(row.to_cut.is_none_or(|cut| tokens <= cut));
                prop_assert!(row.remaining > 1 || tokens == 1, "a decoding row was left out");
            }
            if let Some(oldest) = rows.iter().position(|row| row.remaining > 1) {
                prop_assert!(tokens[oldest] > 0, "the oldest prompt does not move");
            }
        }
    }
}
