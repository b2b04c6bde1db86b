//! Random numbers without a state.
//!
//! A number is a mix of (seed, position), so a sequence that is continued elsewhere, after a preemption or by
//! another worker, draws what it would have drawn. The mixer is the finaliser of SplitMix64 (Steele, Lea,
//! Flood 2014), applied to the seed and then to the seed's mix plus position times the golden ratio.

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A number in [0, 1), uniform over seeds and positions.
pub fn uniform(seed: u64, position: u32) -> f64 {
    let key = mix(seed.wrapping_add(GOLDEN));
    let bits = mix(key.wrapping_add(u64::from(position).wrapping_add(1).wrapping_mul(GOLDEN)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spread_evenly_over_seeds_and_positions() {
        for (what, draw) in [
            ("positions", &(|i: u32| uniform(42, i)) as &dyn Fn(u32) -> f64),
            ("seeds", &|i: u32| uniform(u64::from(i), 7)),
        ] {
            let mut buckets = [0u32; 16];
            for index in 0..16_000 {
                let number = draw(index);
                assert!((0.0..1.0).contains(&number));
                buckets[(number * 16.0) as usize] += 1;
            }
            assert!(buckets.iter().all(|count| (850..1150).contains(count)), "{what}: {buckets:?}");
        }
    }
}
