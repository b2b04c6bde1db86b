//! Where a prompt may be cut into pieces.
//!
//! Recurrent layers compute a prompt in chunks from where a piece starts, so two runs agree bit for bit only if
//! their pieces start at the same places. Therefore hard cuts, where state is frozen and may be continued from,
//! are a function of the prompt up to the cut alone, and soft cuts, which depend on how busy the engine is,
//! fall on multiples of [`SOFT_CUT`] after the last hard one.

/// Soft cuts are multiples of this many tokens after a hard cut: the chunk of the chunked delta rule.
pub const SOFT_CUT: u32 = 64;

/// Hard cuts are at least this far apart.
const CLOSEST: u32 = 32;

/// Hard cuts of a prompt of `length` tokens: message boundaries, and at least one every `every` tokens unless
/// that is 0. Ascending, none at 0 or at the end.
pub fn cut_points(length: u32, boundaries: &[u32], every: u32) -> Vec<u32> {
    let every = if every == 0 { u32::MAX } else { every.max(SOFT_CUT).next_multiple_of(SOFT_CUT) };
    let mut cuts = Vec::new();
    let mut last = 0;
    let stretch = |last: &mut u32, to: u32, cuts: &mut Vec<u32>| {
        while to - *last > every {
            *last += every;
            cuts.push(*last);
        }
    };
    for &boundary in boundaries.iter().filter(|&&boundary| boundary < length) {
        if boundary <= last {
            continue;
        }
        stretch(&mut last, boundary, &mut cuts);
        if boundary - last >= CLOSEST {
            last = boundary;
            cuts.push(boundary);
        }
    }
    stretch(&mut last, length, &mut cuts);
    cuts
}

/// Longest piece of at most `room` tokens that starts at `position` and ends at a soft cut, `segment` being
/// the last hard cut at or before `position`. 0 when no soft cut is near enough.
pub fn soft_cut(segment: u32, position: u32, room: u32) -> u32 {
    let end = (position - segment).saturating_add(room) / SOFT_CUT * SOFT_CUT + segment;
    end.saturating_sub(position)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn boundaries_too_close_to_the_last_cut_are_passed_over() {
        assert_eq!(cut_points(300, &[10, 40, 50, 80, 290], 0), [40, 80, 290]);
        assert_eq!(cut_points(300, &[], 128), [128, 256]);
        assert_eq!(cut_points(128, &[128], 128), Vec::<u32>::new());
        assert_eq!(cut_points(400, &[150], 128), [128, 256, 384]);
    }

    proptest! {
        #[test]
        fn a_longer_prompt_is_cut_at_the_same_places(
            mut boundaries in proptest::collection::vec(1u32..2000, 0..20),
            length in 1u32..2000, every in 0u32..700,
        ) {
            boundaries.sort_unstable();
            boundaries.dedup();
            let whole = cut_points(2000, &boundaries, every);
            let part = cut_points(length, &boundaries, every);
            // What lies before the end of the shorter prompt by a full stretch cannot depend on what follows.
            prop_assert_eq!(&whole[..part.len()], &part[..]);
            prop_assert!(part.is_sorted());
        }

        #[test]
        fn soft_cuts_never_exceed_the_room(segment in 0u32..500, into in 0u32..300, room in 0u32..600) {
            let position = segment + into;
            let piece = soft_cut(segment, position, room);
            prop_assert!(piece <= room);
            prop_assert!(piece == 0 || (position + piece - segment).is_multiple_of(SOFT_CUT));
            prop_assert!(room < SOFT_CUT || piece > 0);
        }
    }
}
