//! `gdsf`: greedy dual size frequency, `H = L + uses · cost / size`; the smallest goes first.
//!
//! The inflation `L` is what the last victim was worth; it lets models used since then outlive old
//! favourites. The textbook stores with each object the `L` of its last use. A strategy keeps one
//! number per node, so that `L` is reconstructed: it is taken to have grown evenly from 0 at the
//! oldest load to its present value now.

use plugin_sdk::{EvictChoice, EvictRequest, Evictor, Explain, Purpose, Resident, Result};

use crate::select;

/// Value per byte, inflated by recency.
pub struct Gdsf;

plugin_sdk::evictor!(
    "gdsf",
    "greedy dual size frequency: least uses × reload cost per byte",
    Gdsf::from_options
);

impl Gdsf {
    /// Takes no options.
    ///
    /// # Errors
    /// `InvalidInput` when there are any.
    pub fn from_options(options: &str) -> Result<Box<dyn Evictor>> {
        strategy_options::none("gdsf", options)?;
        Ok(Box::new(Self))
    }
}

/// Expected value of keeping a model: seconds of reload per GiB, times uses.
fn worth(resident: &Resident) -> f64 {
    let gib = (resident.bytes as f64 / (1u64 << 30) as f64).max(1e-9);
    let cost = f64::from(resident.reload_s.max(0.0)) + f64::from(resident.warm_s.max(0.0));
    (resident.uses as f64 + 1.0) * cost.max(0.001) / gib
}

/// The share of `L` that had accrued when the model last served, 0 to 1.
fn recency(request: &EvictRequest, oldest_ms: u64, resident: &Resident) -> f64 {
    let span = request.now_ms.saturating_sub(oldest_ms).max(1) as f64;
    1.0 - (select::idle_ms(request, resident) as f64 / span).min(1.0)
}

impl Evictor for Gdsf {
    fn choose(
        &self,
        request: &EvictRequest,
        residents: &[Resident],
        explain: &mut Explain<'_>,
    ) -> Result<EvictChoice> {
        let oldest_ms = residents.iter().map(|r| r.loaded_ms).min().unwrap_or(0);
        let inflation = if request.memo.is_finite() { request.memo.max(0.0) } else { 0.0 };
        let score = |resident: &Resident| inflation * recency(request, oldest_ms, resident) + worth(resident);
        let mut choice = select::ascending(request, residents, explain, score, |resident| {
            format!("h={:.4} l={inflation:.4} worth={:.4}", score(resident), worth(resident))
        });
        if request.purpose == Purpose::NEED {
            let dearest =
                choice.victims.iter().map(|index| score(&residents[*index])).fold(inflation, f64::max);
            choice.memo = dearest;
        }
        Ok(choice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{need, resident, victims};

    const GIB: u64 = 1 << 30;

    #[test]
    fn table() {
        let model = Resident { bytes: GIB, ..resident(1) };
        let cases: &[(&str, f64, [Resident; 2], usize)] = &[
            ("fewer uses", 0.0, [model, Resident { uses: 2, ..model }], 1),
            ("cheaper to reload", 0.0, [model, Resident { reload_s: 1.0, ..model }], 1),
            ("larger", 0.0, [model, Resident { bytes: 9 * GIB, ..model }], 1),
            (
                "an old favourite without inflation",
                0.0,
                [
                    Resident { uses: 50, last_used_ms: 5_100_000, ..model },
                    Resident { uses: 1, last_used_ms: 9_999_000, ..model },
                ],
                1,
            ),
            (
                "an old favourite fades with inflation",
                1000.0,
                [
                    Resident { uses: 50, last_used_ms: 5_100_000, ..model },
                    Resident { uses: 1, last_used_ms: 9_999_000, ..model },
                ],
                0,
            ),
        ];
        for (name, memo, residents, expected) in cases {
            let request = EvictRequest { memo: *memo, ..need(1) };
            assert_eq!(victims(&Gdsf, &request, residents), [*expected], "{name}");
        }
    }

    #[test]
    fn inflation_grows_to_the_dearest_victim_and_never_shrinks() {
        let model = Resident { bytes: GIB, ..resident(1) };
        let first = Gdsf.choose(&need(1), &[model], &mut Explain::silent()).expect("a choice");
        assert!(first.memo > 0.0);
        let cheap = Resident { uses: 0, reload_s: 0.1, ..model };
        let request = EvictRequest { memo: first.memo, ..need(1) };
        let second = Gdsf.choose(&request, &[cheap], &mut Explain::silent()).expect("a choice");
        assert!(second.memo >= first.memo);
    }
}
