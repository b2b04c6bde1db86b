//! Rows of the tables the strategies are tested on.

use plugin_sdk::{Candidate, Explain, Residency, RouteRequest, Router};

/// A request for a thousand tokens of prompt and two hundred of answer.
pub(crate) fn request() -> RouteRequest<'static> {
    RouteRequest {
        model: 7,
        session: 0,
        ordinal: 0,
        seed: 1,
        now_ms: 1_000_000,
        prompt_tokens: 1000,
        max_tokens: 512,
        expected_tokens: 200.0,
        priority: 0,
        prefix_blocks: &[],
        block_tokens: 64,
    }
}

/// An idle node that has the model.
pub(crate) fn candidate(node: u64) -> Candidate {
    Candidate {
        node,
        residency: Residency::RESIDENT,
        slots: 8,
        inflight: 0,
        running: 0,
        queued: 0,
        cached_tokens: 0,
        pending_prefill_tokens: 0,
        active_tokens: 0,
        prefill_tokens_per_s: 1000.0,
        decode_tokens_per_s: 50.0,
        kv_used: 0.0,
        first_token_s: 0.0,
        inter_token_s: 0.0,
        weight: 1.0,
        metrics_age_ms: 100,
        load_s: 0.0,
        eviction_regret_s: 0.0,
        evictions: 0,
        priority_violation: 0,
        devices: 1,
        free_bytes: 0,
        total_bytes: 0,
        need_bytes: 0,
        reserved: [0; 4],
    }
}

/// A node that could load the model.
pub(crate) fn cold(node: u64) -> Candidate {
    Candidate { residency: Residency::LOADABLE, load_s: 10.0, ..candidate(node) }
}

/// The index a router made from `options` chooses.
pub(crate) fn choose(router: &dyn Router, request: &RouteRequest<'_>, candidates: &[Candidate]) -> usize {
    let silent = router.choose(request, candidates, &mut Explain::silent()).expect("a choice").index;
    let mut scores = vec![0.0; candidates.len()];
    let mut text = String::new();
    let explained = router
        .choose(request, candidates, &mut Explain::new(&mut scores, Some(&mut text)))
        .expect("a choice")
        .index;
    assert_eq!(silent, explained, "explaining must not change the choice");
    assert!(!text.is_empty(), "a choice says why");
    silent
}
