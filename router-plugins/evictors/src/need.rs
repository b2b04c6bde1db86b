//! How likely a model is to be asked for again soon, and what that would cost: the regret of evicting it.

use plugin_sdk::{EvictRequest, Resident};

use crate::select::idle_ms;

/// Probability that the model is asked for within `horizon_s`: `1 − exp(−rate · H)`.
///
/// Where no rate is known, one is made of the uses since the load, which a long idle time wears down.
pub fn probability(request: &EvictRequest, resident: &Resident, horizon_s: f64) -> f64 {
    let reported = f64::from(resident.rate_per_s);
    let rate = if reported.is_finite() && reported > 0.0 {
        reported
    } else {
        let lived_s = request.now_ms.saturating_sub(resident.loaded_ms) as f64 / 1000.0;
        let idle_s = idle_ms(request, resident) as f64 / 1000.0;
        resident.uses as f64 / (lived_s + idle_s).max(1.0)
    };
    1.0 - (-rate * horizon_s).exp()
}

/// Expected seconds somebody will wait because the model went.
pub fn regret_s(request: &EvictRequest, resident: &Resident, horizon_s: f64) -> f64 {
    let again = f64::from(resident.reload_s.max(0.0)) + f64::from(resident.warm_s.max(0.0));
    // A load is never free; a model nobody measured costs a little rather than nothing.
    probability(request, resident, horizon_s) * again.max(0.001)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{need, resident};

    #[test]
    fn busier_is_likelier_and_the_unknown_is_estimated() {
        let now = need(1);
        let rate = |rate_per_s| probability(&now, &Resident { rate_per_s, ..resident(1) }, 600.0);
        assert!(rate(0.001) < rate(0.01));
        assert!((rate(0.01) - (1.0 - (-6.0f64).exp())).abs() < 1e-6);
        let unknown = |uses, last_used_ms| {
            probability(&now, &Resident { rate_per_s: 0.0, uses, last_used_ms, ..resident(1) }, 600.0)
        };
        assert!(unknown(10, 9_990_000) > unknown(2, 9_990_000));
        assert!(unknown(10, 9_990_000) > unknown(10, 5_000_000));
        assert_eq!(unknown(0, 9_990_000), 0.0);
    }
}
