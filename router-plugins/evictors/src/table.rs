//! Rows of the tables the strategies are tested on.

use plugin_sdk::{EvictRequest, Evictor, Explain, Purpose, Resident};

/// Bytes are needed.
pub(crate) fn need(need_bytes: u64) -> EvictRequest {
    EvictRequest {
        purpose: Purpose::NEED,
        class: 1,
        need_bytes,
        now_ms: 10_000_000,
        priority: 0,
        seed: 1,
        memo: 0.0,
    }
}

/// Nothing is needed.
pub(crate) fn sweep() -> EvictRequest {
    EvictRequest { purpose: Purpose::SWEEP, ..need(0) }
}

/// An idle model of a hundred bytes, used a minute ago.
pub(crate) fn resident(model: u64) -> Resident {
    Resident {
        model,
        bytes: 100,
        loaded_ms: 5_000_000,
        last_used_ms: 9_940_000,
        uses: 10,
        inflight: 0,
        class: 1,
        priority: 0,
        eligible: 1,
        rate_per_s: 0.01,
        reload_s: 10.0,
        warm_s: 0.0,
        reserved32: 0,
        idle_limit_ms: 0,
        reserved: [0; 4],
    }
}

/// The victims an evictor names.
pub(crate) fn victims(evictor: &dyn Evictor, request: &EvictRequest, residents: &[Resident]) -> Vec<usize> {
    let silent = evictor.choose(request, residents, &mut Explain::silent()).expect("a choice");
    let mut scores = vec![0.0; residents.len()];
    let mut text = String::new();
    let explained = evictor
        .choose(request, residents, &mut Explain::new(&mut scores, Some(&mut text)))
        .expect("a choice");
    assert_eq!(silent, explained, "explaining must not change the choice");
    assert!(!text.is_empty(), "a choice says why");
    silent.victims
}
