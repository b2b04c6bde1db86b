//! Routers and evictors behind the boundary.

mod built;

use plugin_loader::{
    Candidate, ErrorKind, EvictRequest, HostServices, Level, Plugin, Policy, Purpose, Residency, Resident,
    RouteRequest,
};

fn open(fault: &str) -> Plugin {
    let folder = built::folder();
    let services = HostServices::new(|_| {}, Level::OFF, 1);
    Plugin::open_under(&built::faulty(folder.path(), fault), &services, &Policy::anything()).expect("opens")
}

fn candidate(node: u64, free_bytes: u64) -> Candidate {
    Candidate {
        node,
        residency: Residency::RESIDENT,
        slots: 1,
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
        metrics_age_ms: 0,
        load_s: 0.0,
        eviction_regret_s: 0.0,
        evictions: 0,
        priority_violation: 0,
        devices: 1,
        free_bytes,
        total_bytes: 1 << 40,
        need_bytes: 0,
        reserved: [0; 4],
    }
}

fn resident(model: u64, bytes: u64, eligible: bool) -> Resident {
    Resident {
        model,
        bytes,
        loaded_ms: 0,
        last_used_ms: 0,
        uses: 0,
        inflight: 0,
        class: 0,
        priority: 0,
        eligible: u32::from(eligible),
        rate_per_s: 0.0,
        reload_s: 0.0,
        warm_s: 0.0,
        reserved32: 0,
        idle_limit_ms: 0,
        reserved: [0; 4],
    }
}

fn need(need_bytes: u64) -> EvictRequest {
    EvictRequest { purpose: Purpose::NEED, class: 0, need_bytes, now_ms: 0, priority: 0, seed: 0, memo: 0.5 }
}

#[test]
fn a_router_chooses_and_explains_when_asked() {
    let plugin = open("none");
    let names: Vec<_> = plugin.routers().iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names, ["faulty"]);
    let router = plugin.create_router("faulty", "{}").expect("made");
    let candidates = [candidate(1, 10), candidate(2, 30), candidate(3, 20)];
    let decision = router.choose(&RouteRequest::default(), &candidates, false).expect("chosen");
    assert_eq!((decision.index, decision.explanation.as_str()), (1, ""));
    assert!(decision.scores[1] < decision.scores[0]);
    let explained = router.choose(&RouteRequest::default(), &candidates, true).expect("chosen");
    assert_eq!(explained.explanation, "0\tfree_bytes=10\n1\tfree_bytes=30\n2\tfree_bytes=20\n");
    let nobody = router.choose(&RouteRequest::default(), &[], true).expect_err("nobody there");
    assert_eq!(nobody.kind, ErrorKind::InvalidInput);
}

#[test]
fn unknown_names_and_options_are_refused_by_name() {
    let plugin = open("none");
    let error = plugin.create_router("fastest", "").expect_err("unknown");
    assert_eq!(error.message, "there is no router called \"fastest\"; this plugin has faulty");
    assert_eq!(
        plugin.create_evictor("faulty", "{\"x\": 1}").expect_err("options").kind,
        ErrorKind::InvalidInput
    );
}

#[test]
fn a_router_that_errs_or_panics_is_caught() {
    let error = |fault: &str| {
        let router = open(fault).create_router("faulty", "").expect("made");
        router.choose(&RouteRequest::default(), &[candidate(1, 1)], false).expect_err(fault).kind
    };
    assert_eq!(error("router-leaves-the-table"), ErrorKind::Internal);
    assert_eq!(error("router-panics-alone"), ErrorKind::Internal);
}

#[test]
fn an_evictor_chooses_only_what_may_go_and_what_helps() {
    let residents = [resident(1, 10, true), resident(2, 50, false), resident(3, 30, true)];
    let evictor = open("none").create_evictor("faulty", "").expect("made");
    let decision = evictor.choose(&need(35), &residents, true).expect("chosen");
    assert_eq!(decision.victims, [2, 0]);
    assert_eq!(decision.memo, 0.5);
    assert_eq!(decision.explanation.lines().count(), 3);
    assert!(
        evictor.choose(&need(100), &residents, false).expect("chosen").victims.is_empty(),
        "cannot be met"
    );
    assert!(evictor.choose(&need(1), &[], false).expect("chosen").victims.is_empty());
    for fault in ["evictor-takes-all", "evictor-acts-in-vain"] {
        let evictor = open(fault).create_evictor("faulty", "").expect("made");
        let error = evictor.choose(&need(85), &residents, false).expect_err(fault);
        assert_eq!(error.kind, ErrorKind::Internal, "{fault}");
    }
}

#[test]
fn many_threads_share_one_router() {
    let router = open("none").create_router("faulty", "").expect("made");
    let candidates: Vec<_> = (0..64).map(|node| candidate(node, node)).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let chosen = router.choose(&RouteRequest::default(), &candidates, true).expect("chosen");
                    assert_eq!(chosen.index, 63);
                }
            });
        }
    });
}
