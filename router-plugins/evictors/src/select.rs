//! From scores to victims: what every evictor but `knapsack` does with its numbers.

use plugin_sdk::{EvictChoice, EvictRequest, Explain, Purpose, Resident};

/// Whether the host lets this model go.
pub fn eligible(resident: &Resident) -> bool {
    resident.eligible != 0 && resident.inflight == 0
}

/// Milliseconds since the model last served; 0 when the clock stands before that.
pub fn idle_ms(request: &EvictRequest, resident: &Resident) -> u64 {
    request.now_ms.saturating_sub(resident.last_used_ms.max(resident.loaded_ms))
}

/// Victims in ascending order of `score` until the need is met; none when it cannot be met. A sweep
/// names what is idle beyond its limit.
pub fn ascending(
    request: &EvictRequest,
    residents: &[Resident],
    explain: &mut Explain<'_>,
    score: impl Fn(&Resident) -> f64,
    terms: impl Fn(&Resident) -> String,
) -> EvictChoice {
    for (index, resident) in residents.iter().enumerate() {
        explain.score(index, if eligible(resident) { score(resident) } else { f64::INFINITY });
        explain.because(index, || {
            if eligible(resident) {
                format!("{} bytes={}", terms(resident), resident.bytes)
            } else {
                format!("kept=not-eligible inflight={}", resident.inflight)
            }
        });
    }
    let mut order: Vec<(f64, usize)> = residents
        .iter()
        .enumerate()
        .filter(|(_, resident)| eligible(resident))
        .map(|(index, resident)| (score(resident), index))
        .collect();
    // Equal scores: the one idle for longer, then the smaller id; the answer never depends on the order given.
    order.sort_by(|a, b| {
        let (left, right) = (&residents[a.1], &residents[b.1]);
        a.0.total_cmp(&b.0)
            .then(left.last_used_ms.cmp(&right.last_used_ms))
            .then(left.model.cmp(&right.model))
    });
    let order: Vec<usize> = order.into_iter().map(|(_, index)| index).collect();
    let victims = if request.purpose == Purpose::SWEEP {
        order.into_iter().filter(|index| overstayed(request, &residents[*index], 0)).collect()
    } else {
        enough(request.need_bytes, residents, order)
    };
    EvictChoice { victims, memo: request.memo }
}

/// Whether a model has been idle beyond its own limit, or beyond `fallback_ms` where it has none (0: never).
pub fn overstayed(request: &EvictRequest, resident: &Resident, fallback_ms: u64) -> bool {
    let limit = if resident.idle_limit_ms > 0 { resident.idle_limit_ms } else { fallback_ms };
    limit > 0 && idle_ms(request, resident) > limit
}

/// The first of `order` that together free `need_bytes`, without the superfluous; empty when all do not.
pub fn enough(need_bytes: u64, residents: &[Resident], order: Vec<usize>) -> Vec<usize> {
    let mut freed: u64 = 0;
    let mut victims = Vec::new();
    for index in order {
        if freed >= need_bytes {
            break;
        }
        freed = freed.saturating_add(residents[index].bytes);
        victims.push(index);
    }
    if freed < need_bytes {
        return Vec::new();
    }
    // The last ones are worth most: let them off first where the others suffice.
    for place in (0..victims.len()).rev() {
        let bytes = residents[victims[place]].bytes;
        if freed - bytes >= need_bytes {
            freed -= bytes;
            victims.remove(place);
        }
    }
    victims
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{need, resident, sweep};

    #[test]
    fn never_more_than_necessary() {
        let sizes =
            |sizes: &[u64]| sizes.iter().map(|b| Resident { bytes: *b, ..resident(1) }).collect::<Vec<_>>();
        let cases: &[(&[u64], u64, &[usize])] = &[
            (&[5, 5, 5], 10, &[0, 1]),
            (&[1, 10], 10, &[1]),
            (&[1, 2, 10], 11, &[0, 2]),
            (&[5, 5], 11, &[]),
            (&[5, 5], 0, &[]),
            (&[3, 3, 3, 9], 9, &[0, 1, 2]),
        ];
        for (bytes, need, expected) in cases {
            let order = (0..bytes.len()).collect();
            assert_eq!(enough(*need, &sizes(bytes), order), *expected, "{bytes:?} need {need}");
        }
    }

    #[test]
    fn what_is_busy_or_not_eligible_stays_even_when_marked_wrongly() {
        let residents =
            [Resident { eligible: 0, ..resident(1) }, Resident { inflight: 1, ..resident(2) }, resident(3)];
        let choice = ascending(&need(1), &residents, &mut Explain::silent(), |_| 0.0, |_| String::new());
        assert_eq!(choice.victims, [2]);
        let choice = ascending(&need(1000), &residents, &mut Explain::silent(), |_| 0.0, |_| String::new());
        assert_eq!(choice.victims, [] as [usize; 0]);
    }

    #[test]
    fn a_sweep_names_what_overstayed_and_a_clock_that_jumps_back_names_nothing() {
        let now = sweep().now_ms;
        let residents = [
            Resident { last_used_ms: now - 10_000, idle_limit_ms: 5_000, ..resident(1) },
            Resident { last_used_ms: now - 10_000, idle_limit_ms: 50_000, ..resident(2) },
            Resident { last_used_ms: now - 10_000, idle_limit_ms: 0, ..resident(3) },
            Resident { last_used_ms: now + 90_000, idle_limit_ms: 1, ..resident(4) },
        ];
        let choice = ascending(&sweep(), &residents, &mut Explain::silent(), |_| 0.0, |_| String::new());
        assert_eq!(choice.victims, [0]);
    }
}
