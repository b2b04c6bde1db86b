//! Fleets and nodes to decide about: ordinary, empty, busy, huge, extreme.

use plugin_loader::{Candidate, Residency, Resident};

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 20) % limit.max(1)
    }

    fn share(&mut self) -> f32 {
        self.below(1 << 16) as f32 / (1 << 16) as f32
    }
}

/// Fleets by name, none of them empty.
pub(crate) fn fleets() -> Vec<(&'static str, Vec<Candidate>)> {
    let ordinary = fleet(5, 1);
    let busy = fleet(5, 2)
        .into_iter()
        .map(|candidate| Candidate { queued: 50, running: 8, inflight: 58, kv_used: 1.0, ..candidate })
        .collect();
    let extreme = [0.0, f32::MAX, f32::INFINITY, f32::NAN, -1.0].into_iter().zip(ordinary.clone());
    let extreme = extreme.map(|(value, candidate)| Candidate {
        first_token_s: value,
        prefill_tokens_per_s: value,
        decode_tokens_per_s: value,
        load_s: value,
        kv_used: value,
        pending_prefill_tokens: u64::MAX,
        free_bytes: u64::MAX,
        weight: value,
        ..candidate
    });
    let unknown = vec![Candidate { residency: Residency(77), ..blank(1) }, blank(2)];
    vec![
        ("one node", fleet(1, 3)),
        ("an ordinary fleet", ordinary.clone()),
        ("a fleet of equals", (1..5).map(blank).collect()),
        ("a fleet all of whose nodes are busy", busy),
        ("a fleet nobody has measured", (1..4).map(blank).collect()),
        ("a fleet of impossible figures", extreme.collect()),
        ("a node in a state this plugin does not know", unknown),
        ("a thousand nodes", fleet(1000, 4)),
    ]
}

/// So many nodes with figures a fleet might have.
pub(crate) fn fleet(count: u64, seed: u64) -> Vec<Candidate> {
    let mut dice = Dice(seed);
    (1..=count)
        .map(|node| Candidate {
            residency: Residency(dice.below(3) as u32),
            slots: 8,
            inflight: dice.below(6) as u32,
            running: dice.below(6) as u32,
            queued: dice.below(4) as u32,
            cached_tokens: dice.below(500) as u32,
            pending_prefill_tokens: dice.below(20_000),
            active_tokens: dice.below(50_000),
            prefill_tokens_per_s: 1000.0 + 5000.0 * dice.share(),
            decode_tokens_per_s: 20.0 + 80.0 * dice.share(),
            kv_used: dice.share(),
            first_token_s: dice.share(),
            inter_token_s: 0.02 * dice.share(),
            load_s: 30.0 * dice.share(),
            free_bytes: dice.below(80 << 30),
            ..blank(node)
        })
        .collect()
}

fn blank(node: u64) -> Candidate {
    Candidate {
        node: node.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        residency: Residency::RESIDENT,
        slots: 0,
        inflight: 0,
        running: 0,
        queued: 0,
        cached_tokens: 0,
        pending_prefill_tokens: 0,
        active_tokens: 0,
        prefill_tokens_per_s: 0.0,
        decode_tokens_per_s: 0.0,
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
        total_bytes: 80 << 30,
        need_bytes: 16 << 30,
        reserved: [0; 4],
    }
}

/// Nodes by what is loaded on them.
pub(crate) fn nodes() -> Vec<(&'static str, Vec<Resident>)> {
    let pinned = node(4, 5).into_iter().map(|resident| Resident { eligible: 0, ..resident }).collect();
    let busy =
        node(4, 6).into_iter().map(|resident| Resident { eligible: 0, inflight: 9, ..resident }).collect();
    let extreme = [0.0, f32::MAX, f32::INFINITY, f32::NAN, -1.0].into_iter().zip(node(5, 7));
    let extreme = extreme.map(|(value, resident)| Resident {
        rate_per_s: value,
        reload_s: value,
        warm_s: value,
        bytes: 1 << 40,
        last_used_ms: u64::MAX,
        loaded_ms: u64::MAX,
        ..resident
    });
    vec![
        ("an empty node", Vec::new()),
        ("a node with one model", node(1, 8)),
        ("an ordinary node", node(6, 9)),
        ("a node whose models are all pinned", pinned),
        ("a node whose models are all busy", busy),
        ("a node of impossible figures", extreme.collect()),
        ("a node with a thousand models", node(1000, 10)),
    ]
}

/// So many models with figures a node might have.
pub(crate) fn node(count: u64, seed: u64) -> Vec<Resident> {
    let mut dice = Dice(seed);
    (1..=count)
        .map(|model| Resident {
            model: model.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            bytes: (1 + dice.below(30)) << 30,
            loaded_ms: dice.below(1_000_000),
            last_used_ms: 1_000_000 + dice.below(1_000_000),
            uses: dice.below(1000),
            inflight: 0,
            class: dice.below(3) as u32,
            priority: dice.below(5) as i32,
            eligible: u32::from(dice.below(4) != 0 || count == 1),
            rate_per_s: dice.share(),
            reload_s: 60.0 * dice.share(),
            warm_s: dice.share(),
            reserved32: 0,
            idle_limit_ms: if dice.below(2) == 0 { 0 } else { 1000 },
            reserved: [0; 4],
        })
        .collect()
}
