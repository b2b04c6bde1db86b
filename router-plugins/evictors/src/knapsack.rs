//! `knapsack`: the set of victims with the least total regret that frees enough.
//!
//! Greedy choices can evict a dear model where two cheap ones would do. Up to sixteen eligible models
//! every set is tried; beyond that a greedy set is improved by exchanging one victim for one or two
//! others as long as that helps.

use plugin_sdk::{EvictChoice, EvictRequest, Evictor, Explain, Purpose, Resident, Result};
use strategy_options::Options;

use crate::{need, select};

/// Most eligible models for which every set is tried: 65,536 sets.
const EXACT_LIMIT: usize = 16;

/// Least total regret.
pub struct Knapsack {
    horizon_s: f64,
}

plugin_sdk::evictor!(
    "knapsack",
    "the set of models with the least total regret that frees enough",
    Knapsack::from_options
);

impl Knapsack {
    /// Options: `horizon_s` (600), how far ahead a need counts.
    ///
    /// # Errors
    /// `InvalidInput` naming the option.
    pub fn from_options(options: &str) -> Result<Box<dyn Evictor>> {
        let mut options = Options::parse("knapsack", options)?;
        let horizon_s = options.number("horizon_s", 600.0, 1.0..=1e9)?;
        options.finish()?;
        Ok(Box::new(Self { horizon_s }))
    }
}

/// An eligible model: where it stands, what it frees, what its loss costs.
#[derive(Clone, Copy)]
struct Item {
    index: usize,
    bytes: u64,
    regret_s: f64,
}

impl Evictor for Knapsack {
    fn choose(
        &self,
        request: &EvictRequest,
        residents: &[Resident],
        explain: &mut Explain<'_>,
    ) -> Result<EvictChoice> {
        // A tiny cost per victim: of equal regret, fewer evictions.
        let regret = |resident: &Resident| need::regret_s(request, resident, self.horizon_s) + 1e-6;
        let density = |resident: &Resident| regret(resident) / resident.bytes.max(1) as f64;
        let mut choice = select::ascending(request, residents, explain, density, |resident| {
            format!("regret_s={:.3}", regret(resident))
        });
        if request.purpose == Purpose::SWEEP || choice.victims.is_empty() {
            return Ok(choice);
        }
        let items: Vec<Item> = residents
            .iter()
            .enumerate()
            .filter(|(_, resident)| select::eligible(resident))
            .map(|(index, resident)| Item { index, bytes: resident.bytes, regret_s: regret(resident) })
            .collect();
        let mut victims = if items.len() <= EXACT_LIMIT {
            exact(request.need_bytes, &items)
        } else {
            improved(request.need_bytes, &items, &choice.victims)
        };
        victims.sort_by(|a, b| density(&residents[*a]).total_cmp(&density(&residents[*b])));
        choice.victims = victims;
        Ok(choice)
    }
}

/// The best of all sets.
fn exact(need_bytes: u64, items: &[Item]) -> Vec<usize> {
    let mut best: (f64, u32) = (f64::INFINITY, 0);
    for set in 1u32..(1 << items.len()) {
        let (mut bytes, mut regret_s) = (0u64, 0.0);
        for (place, item) in items.iter().enumerate() {
            if set & (1 << place) != 0 {
                bytes = bytes.saturating_add(item.bytes);
                regret_s += item.regret_s;
            }
        }
        if bytes >= need_bytes && regret_s < best.0 {
            best = (regret_s, set);
        }
    }
    items
        .iter()
        .enumerate()
        .filter(|(place, _)| best.1 & (1 << place) != 0)
        .map(|(_, item)| item.index)
        .collect()
}

/// A greedy set after exchanging single victims for one or two others while that lowers the regret.
fn improved(need_bytes: u64, items: &[Item], greedy: &[usize]) -> Vec<usize> {
    let mut chosen: Vec<bool> = items.iter().map(|item| greedy.contains(&item.index)).collect();
    let mut freed: u64 = items.iter().zip(&chosen).filter(|(_, c)| **c).map(|(item, _)| item.bytes).sum();
    while let Some((out, first, second)) = better_exchange(need_bytes, freed, items, &chosen) {
        chosen[out] = false;
        freed -= items[out].bytes;
        for place in [Some(first), second].into_iter().flatten() {
            chosen[place] = true;
            freed += items[place].bytes;
        }
    }
    items.iter().zip(&chosen).filter(|(_, chosen)| **chosen).map(|(item, _)| item.index).collect()
}

/// One victim to spare and the one or two to take instead. Regret falls each time, so this ends.
fn better_exchange(
    need_bytes: u64,
    freed: u64,
    items: &[Item],
    chosen: &[bool],
) -> Option<(usize, usize, Option<usize>)> {
    let places = |state: bool| (0..items.len()).filter(move |place| chosen[*place] == state);
    for out in places(true) {
        let rest = freed - items[out].bytes;
        for first in places(false) {
            let regret_one = items[first].regret_s;
            if regret_one >= items[out].regret_s {
                continue;
            }
            if rest + items[first].bytes >= need_bytes {
                return Some((out, first, None));
            }
            for second in places(false).filter(|second| *second > first) {
                let enough = rest + items[first].bytes + items[second].bytes >= need_bytes;
                if enough && regret_one + items[second].regret_s < items[out].regret_s {
                    return Some((out, first, Some(second)));
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{need, resident, victims};

    fn model(bytes: u64, reload_s: f32) -> Resident {
        Resident { bytes, reload_s, rate_per_s: 1.0, ..resident(bytes) }
    }

    #[test]
    fn table() {
        let evictor = Knapsack::from_options("").expect("defaults");
        let cases: &[(&str, u64, Vec<Resident>, &[usize])] = &[
            (
                "two cheap ones instead of a dear one",
                10,
                vec![model(5, 1.0), model(5, 1.0), model(10, 9.0)],
                &[0, 1],
            ),
            ("one cheap large one", 10, vec![model(5, 5.0), model(5, 5.0), model(10, 1.0)], &[2]),
            ("fewer evictions at equal regret", 10, vec![model(5, 2.0), model(5, 2.0), model(10, 4.0)], &[2]),
            ("not enough", 21, vec![model(5, 2.0), model(5, 2.0), model(10, 4.0)], &[]),
        ];
        for (name, bytes, residents, expected) in cases {
            assert_eq!(victims(&*evictor, &need(*bytes), residents), *expected, "{name}");
        }
    }

    #[test]
    fn many_models_are_still_chosen_well() {
        let evictor = Knapsack::from_options("").expect("defaults");
        // Greedy by seconds per byte takes the large one; the two small ones together are cheaper.
        let mut residents = vec![model(100, 50.0), model(30, 16.0), model(31, 16.0)];
        residents.extend((0..20u64).map(|n| model(1000 + n, 5000.0)));
        let mut chosen = victims(&*evictor, &need(60), &residents);
        chosen.sort_unstable();
        assert_eq!(chosen, [1, 2]);
    }

    #[test]
    fn the_fast_road_is_never_better_than_the_exact_one() {
        // Two roads to the answer: the exact set is a lower bound for the improved greedy one.
        let mut bits = 7u64;
        for round in 0..200 {
            let mut next = || {
                bits = bits.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                bits >> 40
            };
            let items: Vec<Item> = (0..10)
                .map(|index| Item { index, bytes: 1 + next() % 50, regret_s: (1 + next() % 100) as f64 })
                .collect();
            let total: u64 = items.iter().map(|item| item.bytes).sum();
            let need_bytes = 1 + next() % total;
            let cost = |set: &[usize]| set.iter().map(|index| items[*index].regret_s).sum::<f64>();
            let bytes = |set: &[usize]| set.iter().map(|index| items[*index].bytes).sum::<u64>();
            let best = exact(need_bytes, &items);
            let all: Vec<usize> = (0..items.len()).collect();
            let fast = improved(need_bytes, &items, &all);
            assert!(bytes(&best) >= need_bytes && bytes(&fast) >= need_bytes, "round {round}");
            assert!(cost(&best) <= cost(&fast), "round {round}");
        }
    }
}
