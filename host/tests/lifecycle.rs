//! Models come, serve, break, come back and go: over real worker processes with the echo plugin.

mod workshop;

use futures_util::StreamExt;
use neuron::lifecycle::LifecycleError;
use neuron::worker::message::{FailureCode, FinishReason, SequenceEvent};
use serde_json::json;
use wire_api::node::events::LoadPhase;
use wire_api::node::lease::{Claim, Guard, LeaseRequest};
use wire_api::node::load::{LoadRequest, UnloadRequest};
use wire_api::node::models::ModelState;

use workshop::{Node, Outcome, install_echo, options, signal, user, within};

fn unload(model: &str) -> UnloadRequest {
    UnloadRequest { model: model.into(), wait: true, ..UnloadRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_comes_serves_and_goes() {
    let node = Node::new(options());
    let before = node.models.residency_revision();
    let job = node.models.load(node.model("m", json!({"load_delay_ms": 100, "weight_bytes": 1000}))).unwrap();
    let events = node.models.events("m").unwrap();
    within(job.wait()).await.unwrap();
    let phases: Vec<_> = within(events.map(|event| event.progress.phase).collect::<Vec<_>>()).await;
    let mut distinct = phases.clone();
    distinct.dedup();
    use LoadPhase::{Queued, Read, Ready, Resolve, WarmUp};
    assert_eq!(distinct, [Resolve, Queued, Read, WarmUp, Ready]);
    assert!(phases.iter().filter(|phase| **phase == Read).count() > 1, "reading tells how far it is");

    let outcome = node.ask("m", "Hello, echo!").await;
    assert_eq!(outcome.text, "Hello, echo!");
    assert_eq!(outcome.finished(), FinishReason::Stop);
    let status = node.models.status("m").unwrap();
    assert_eq!(status.state, ModelState::Ready);
    let details = status.details.unwrap();
    assert_eq!((details.architecture.as_str(), details.context_tokens, details.slots), ("echo", 4096, 4));
    assert!(status.memory.planned_bytes > 0 && status.memory.measured_bytes > 0);
    assert!(node.models.readiness()[0].ready);

    let middle = node.models.residency_revision();
    assert!(middle > before);
    let response = within(node.models.unload(&unload("m"))).await.unwrap();
    assert_eq!(response.state, ModelState::Absent);
    assert!(response.residency_revision > middle);
    assert!(node.models.list().is_empty());
    assert!(matches!(node.models.acquire("m").await, Err(LifecycleError::NotFound(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_loads_at_once_are_one_load() {
    let node = Node::new(options());
    let request = node.model("m", json!({"load_delay_ms": 200}));
    let jobs: Vec<_> = (0..20).map(|_| node.models.load(request.clone()).unwrap()).collect();
    assert_eq!(jobs.iter().filter(|job| job.started).count(), 1);
    let first = jobs[0].id.clone();
    let mut loads = Vec::new();
    for job in jobs {
        assert_eq!(job.id, first);
        loads.push(within(job.wait()).await.unwrap().load);
    }
    assert!(loads.iter().all(|load| *load == 1), "{loads:?}");
    let again = node.models.load(request.clone()).unwrap();
    assert!(!again.started);
    let other = LoadRequest { slots: Some(9), ..request };
    assert!(matches!(node.models.load(other), Err(LifecycleError::Conflict { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_is_an_error_for_its_requests_and_the_model_comes_back() {
    let node = Node::new(options());
    node.ready("m", json!({"step_delay_ms": 5})).await;
    let mut stream = node.submit("m", user(&"abc".repeat(500))).await;
    let mut outcome = Outcome::default();
    while outcome.text.len() < 5 {
        outcome.take(within(stream.next_event()).await.unwrap());
    }
    signal(node.worker("m").await, "KILL");
    while let Some(event) = within(stream.next_event()).await {
        outcome.take(event);
    }
    assert_eq!(outcome.failed(), (FailureCode::DeviceLost, true));
    assert_eq!(node.ask("m", "again").await.text, "again");
    assert_eq!(node.state("m"), ModelState::Ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_replay_a_killed_worker_goes_unnoticed() {
    let node = Node::new(neuron::lifecycle::ModelsOptions { replay: true, ..options() });
    node.ready("m", json!({"step_delay_ms": 3})).await;
    let text = "The quick brown fox. ".repeat(20);
    let mut stream = node.submit("m", user(&text)).await;
    let mut outcome = Outcome::default();
    while outcome.text.len() < 50 {
        outcome.take(within(stream.next_event()).await.unwrap());
    }
    signal(node.worker("m").await, "KILL");
    while let Some(event) = within(stream.next_event()).await {
        outcome.take(event);
    }
    assert_eq!(outcome.text, text);
    assert_eq!(outcome.finished(), FinishReason::Stop);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_replay_a_request_that_kills_workers_is_told_from_those_beside_it() {
    let node = Node::new(neuron::lifecycle::ModelsOptions { replay: true, ..options() });
    node.ready("m", json!({"step_delay_ms": 3, "fault": {"kind": "abort", "text": "boom"}})).await;
    let texts: Vec<String> = (0..3).map(|index| format!("{index} did nothing wrong. ").repeat(8)).collect();
    let mut innocent = Vec::new();
    for text in &texts {
        innocent.push(node.submit("m", user(text)).await);
    }
    for stream in &mut innocent {
        assert!(matches!(within(stream.next_event()).await, Some(SequenceEvent::Started { .. })));
    }
    let killer = node.submit("m", user("boom")).await;
    assert_eq!(Outcome::of(killer).await.failed(), (FailureCode::Internal, false));
    for (stream, text) in innocent.into_iter().zip(&texts) {
        assert_eq!(&Outcome::of(stream).await.text, text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_fails_the_batch_and_nothing_else() {
    let node = Node::new(neuron::lifecycle::ModelsOptions { slots: 2, ..options() });
    node.ready("m", json!({"step_delay_ms": 5, "fault": {"kind": "panic", "text": "boom"}})).await;
    let long = node.submit("m", user(&"x".repeat(2000))).await;
    let bad = node.submit("m", user("boom")).await;
    let waiting = node.submit("m", user("I was only waiting")).await;
    assert_eq!(Outcome::of(bad).await.failed(), (FailureCode::Internal, false));
    assert_eq!(Outcome::of(long).await.failed(), (FailureCode::Internal, false));
    assert_eq!(Outcome::of(waiting).await.text, "I was only waiting");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_cannot_survive_is_cured_by_another() {
    for (kind, expected) in [
        // A process that ends at once may take with it the news that the request had begun. The request is then
        // tried again, unnoticed, and blamed for the second death.
        ("abort", &[FailureCode::DeviceLost, FailureCode::Internal][..]),
        ("exit", &[FailureCode::DeviceLost, FailureCode::Internal]),
        ("device_lost", &[FailureCode::DeviceLost]),
        ("hang", &[FailureCode::DeviceLost]),
        ("internal", &[FailureCode::Internal]),
        // As in a collective: every rank waits for the others.
        ("hang on 2", &[FailureCode::DeviceLost]),
        ("device_lost on 2", &[FailureCode::DeviceLost]),
    ] {
        let deadline = std::time::Duration::from_millis(1500);
        let node = Node::new(neuron::lifecycle::ModelsOptions { step_deadline: deadline, ..options() });
        let fault = kind.trim_end_matches(" on 2");
        let mut request = node.model("m", json!({"fault": {"kind": fault, "text": "boom"}}));
        request.devices = vec!["cpu".into(); if fault == kind { 1 } else { 2 }];
        within(node.models.load(request).unwrap().wait()).await.unwrap();
        let first = node.worker("m").await;
        let failed = node.ask("m", "boom").await.failed().0;
        assert!(expected.contains(&failed), "{kind}: {failed:?}");
        assert_eq!(node.ask("m", "fine").await.text, "fine", "{kind}");
        assert_ne!(node.worker("m").await, first, "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_concerns_one_row_leaves_the_worker_alone() {
    for (kind, expected) in [
        ("invalid_input", (FailureCode::InvalidInput, false)),
        ("out_of_memory", (FailureCode::OutOfMemory, true)),
        ("nan", (FailureCode::Internal, false)),
    ] {
        let node = Node::new(options());
        node.ready("m", json!({"fault": {"kind": kind, "text": "boom"}})).await;
        let first = node.worker("m").await;
        let (bad, good) = tokio::join!(node.ask("m", "boom"), node.ask("m", "good"));
        assert_eq!(bad.failed(), expected, "{kind}");
        assert_eq!(good.text, "good", "{kind}");
        assert_eq!(node.worker("m").await, first, "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_worker_is_replaced() {
    let patience = std::time::Duration::from_millis(2500);
    let node = Node::new(neuron::lifecycle::ModelsOptions { worker_patience: patience, ..options() });
    node.ready("m", json!({})).await;
    let first = node.worker("m").await;
    signal(first, "STOP");
    node.until("the worker is missed", |models| {
        models.status("m").is_some_and(|status| status.state != ModelState::Ready)
    })
    .await;
    assert_eq!(node.ask("m", "back").await.text, "back");
    assert_ne!(node.worker("m").await, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_makes_no_progress_is_given_up() {
    let patience = std::time::Duration::from_millis(1500);
    let node = Node::new(neuron::lifecycle::ModelsOptions { load_patience: patience, ..options() });
    // Slow is not stuck: this one takes longer in all, and says all the time how far it is.
    node.ready("slow", json!({"load_delay_ms": 4000, "weight_bytes": 1000})).await;
    let stuck = node.models.desire(node.model("stuck", json!({"load_hangs": true}))).unwrap();
    let error = within(stuck.wait()).await.unwrap_err().to_string();
    assert!(error.contains("no progress for 1.5 s (engine.load_patience_s)"), "{error}");
    node.model("stuck", json!({}));
    node.until("another worker serves", |models| models.status("stuck").unwrap().state == ModelState::Ready)
        .await;
    assert_eq!(node.ask("stuck", "free again").await.text, "free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_has_options_and_a_prefix_cache_of_its_own() {
    let everywhere = r#"{"script": "everywhere"}"#.to_owned();
    let node = Node::new(neuron::lifecycle::ModelsOptions { architecture_options: everywhere, ..options() });
    node.ready("usual", json!({})).await;
    assert_eq!(node.ask("usual", "hello").await.text, "everywhere");
    let own = json!({"script": "my own", "bytes_per_token": 4096}).as_object().cloned();
    let request = LoadRequest {
        options: own.clone(),
        prefix_cache_bytes: Some(1 << 20),
        context_tokens: Some(600),
        ..node.model("own", json!({}))
    };
    within(node.models.load(request.clone()).unwrap().wait()).await.unwrap();
    assert_eq!(node.ask("own", "hello").await.text, "my own");
    let join = |more: LoadRequest| node.models.load(LoadRequest { name: Some("own".into()), ..more });
    assert!(!join(LoadRequest { options: own, ..request.clone() }).unwrap().started);
    let other = LoadRequest { prefix_cache_bytes: Some(2 << 20), ..request.clone() };
    assert!(matches!(join(other), Err(LifecycleError::Conflict { setting: "prefix cache", .. })));
    let other = LoadRequest { options: json!({"script": "x"}).as_object().cloned(), ..request.clone() };
    assert!(matches!(join(other), Err(LifecycleError::Conflict { setting: "set of options", .. })));

    // Without a cache nothing is found again; with one of its own size, as much as fits.
    let off = LoadRequest { prefix_cache_bytes: Some(0), ..node.model("off", json!({})) };
    within(node.models.load(off).unwrap().wait()).await.unwrap();
    let question = "a question that is long enough to be worth keeping ".repeat(3);
    for (name, expected) in [("off", false), ("own", true)] {
        node.ask(name, &question).await;
        let again = node.ask(name, &question).await;
        assert_eq!(again.cached_tokens > 0, expected, "{name}: {}", again.cached_tokens);
    }
    for turn in 0..40 {
        node.ask("own", &format!("{turn} {question}")).await;
    }
    let held = |kind| node.models.metrics().state_bytes.with_label_values(&["own", kind]).get();
    node.until("a heartbeat has told", |_| held("prefix_cache") > 0).await;
    assert!(held("prefix_cache") <= 1 << 20, "{}", held("prefix_cache"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_fails_says_why_and_can_be_tried_again() {
    let node = Node::new(options());
    let cases = [
        (node.model("fails", json!({"load_fails": true})), "the settings say that loading fails"),
        (node.model("nan", json!({"fault": {"kind": "nan"}})), "did not generate"),
        (node.model("huge", json!({"weight_bytes": 1u64 << 50})), "are missing"),
        (node.model("typo", json!({"scirpt": ""})), "scirpt"),
    ];
    for (request, expected) in cases {
        let name = request.name.clone().unwrap();
        let error = within(node.models.load(request.clone()).unwrap().wait()).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        node.until("it stays failed", |models| {
            models.status(name.as_str()).unwrap().state == ModelState::Failed
        })
        .await;
        let failure = node.models.status(name.as_str()).unwrap().failure.unwrap();
        assert!(failure.message.contains(expected));
        let again = node.models.load(request).unwrap();
        assert!(again.started, "asking again tries again");
        within(again.wait()).await.unwrap_err();
        within(node.models.unload(&unload(name.as_str()))).await.unwrap();
    }
    let mut nowhere = node.model("m", json!({}));
    nowhere.devices = vec!["cuda-7".into()];
    let error = within(node.models.load(nowhere).unwrap().wait()).await.unwrap_err();
    assert!(error.to_string().contains("cuda-7 is not here"), "{error}");
    let gone = LoadRequest { model: "/no/such/model".into(), ..LoadRequest::default() };
    let error = within(node.models.load(gone).unwrap().wait()).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/model"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_arrives_later_is_used_without_a_restart() {
    let node = Node::bare(options());
    std::fs::write(node.plugins().join("broken.so"), b"not a library").unwrap();
    let request = node.model("m", json!({}));
    let error = within(node.models.load(request).unwrap().wait()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("no plugin serves model_type \"echo\"") && text.contains("refused"), "{text}");

    // Copied slowly, by someone who does not rename: half a file is refused, the whole one is used.
    let bytes = std::fs::read(workshop::echo_plugin()).unwrap();
    let target = node.plugins().join("echo.so");
    std::fs::write(&target, &bytes[..bytes.len() / 2]).unwrap();
    node.until("half a plugin is refused", |models| {
        models
            .catalogue()
            .snapshot()
            .entries
            .iter()
            .any(|entry| entry.path == target && entry.outcome.is_err())
    })
    .await;
    node.until("half a plugin is not enough", |models| {
        models.status("m").unwrap().state == ModelState::Failed
    })
    .await;
    std::fs::write(&target, &bytes).unwrap();
    node.until("the model is served", |models| models.status("m").unwrap().state == ModelState::Ready).await;
    assert_eq!(node.ask("m", "new here").await.text, "new here");
    install_echo(&node.plugins());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_stream_cancels_its_sequence() {
    let node = Node::new(options());
    node.ready("m", json!({"step_delay_ms": 2})).await;
    let mut streams = Vec::new();
    for index in 0..12 {
        streams.push(node.submit("m", user(&format!("{index}{}", "y".repeat(1000)))).await);
    }
    for stream in streams.iter_mut().take(4) {
        while !matches!(within(stream.next_event()).await, Some(SequenceEvent::Token { .. })) {}
    }
    drop(streams);
    node.until("nothing is in flight", |models| {
        let activity = models.status("m").unwrap().activity;
        activity.inflight == 0 && activity.running == 0 && activity.queued == 0
    })
    .await;
    assert_eq!(node.ask("m", "still here").await.text, "still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_come_and_go_leave_nothing_behind() {
    let node = Node::new(options());
    node.ready("m", json!({"token_delay_us": 100})).await;
    let mut clients = Vec::new();
    for client in 0..16u32 {
        let model = within(node.models.acquire("m")).await.unwrap();
        clients.push(tokio::spawn(async move {
            let mut random = client + 1;
            let mut served = 0;
            for round in 0..8 {
                let text = format!("client {client} says {round} {}", "so ".repeat(round * 7));
                let mut stream = model.submit(user(&text));
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let patience = if random >> 16 & 1 == 0 { usize::MAX } else { (random >> 18) as usize % 40 };
                let mut outcome = Outcome::default();
                while outcome.text.len() < patience {
                    match within(stream.next_event()).await {
                        Some(event) => outcome.take(event),
                        None => break,
                    }
                }
                if outcome.end.is_some() {
                    assert_eq!(outcome.text, text);
                    served += 1;
                }
            }
            served
        }));
    }
    let mut served = 0;
    for client in clients {
        served += within(client).await.unwrap();
    }
    assert!(served > 16, "{served} answers were heard to the end");
    node.until("nothing is in flight and no sequence is forgotten", |models| {
        let activity = models.status("m").unwrap().activity;
        let metrics = models.metrics();
        let held = metrics.plugin_sequences.with_label_values(&["m"]).get();
        let cached = metrics.prefix_entries.with_label_values(&["m"]).get();
        activity.inflight + activity.running + activity.queued == 0 && held == cached && cached > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configured_model_that_crashes_is_tried_again_until_it_serves() {
    let node = Node::new(options());
    let broken = node.model("m", json!({"fault": {"kind": "abort"}}));
    within(node.models.desire(broken).unwrap().wait()).await.unwrap_err();
    node.until("it has crashed several times", |models| {
        models.status("m").unwrap().failure.is_some_and(|failure| failure.attempts >= 4)
    })
    .await;
    assert!(!node.models.readiness()[0].ready);
    node.model("m", json!({}));
    node.until("it serves", |models| models.status("m").unwrap().state == ModelState::Ready).await;
    assert_eq!(node.ask("m", "at last").await.text, "at last");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_can_be_given_up() {
    let node = Node::new(options());
    let job = node.models.load(node.model("m", json!({"load_delay_ms": 3_600_000}))).unwrap();
    node.until("it reads", |models| {
        let status = models.status("m").unwrap();
        status.progress.is_some_and(|progress| progress.phase == LoadPhase::Read)
    })
    .await;
    within(node.models.unload(&unload("m"))).await.unwrap();
    assert!(matches!(within(job.wait()).await, Err(LifecycleError::NotFound(_))));
    assert!(node.models.list().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn unloading_lets_work_finish_or_cuts_it_off() {
    let node = Node::new(options());
    node.ready("m", json!({"step_delay_ms": 2})).await;
    let stream = node.submit("m", user(&"z".repeat(100))).await;
    let (drain, busy) = (unload("m"), UnloadRequest { only_if_idle: true, ..unload("m") });
    assert!(matches!(within(node.models.unload(&busy)).await, Err(LifecycleError::Busy { inflight: 1, .. })));
    let (gone, outcome) = tokio::join!(node.models.unload(&drain), Outcome::of(stream));
    assert_eq!(outcome.text, "z".repeat(100), "a drain lets work finish");
    assert!(gone.unwrap().freed_bytes > 0);

    node.ready("m", json!({"step_delay_ms": 5})).await;
    let stream = node.submit("m", user(&"z".repeat(3000))).await;
    let now = UnloadRequest { drain_timeout_ms: Some(0), ..unload("m") };
    let (_, outcome) = tokio::join!(node.models.unload(&now), Outcome::of(stream));
    assert_eq!(outcome.failed(), (FailureCode::DeviceLost, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_planned_on_an_old_residency_are_refused() {
    let node = Node::new(options());
    let planned = node.models.residency_revision();
    node.ready("m", json!({})).await;
    let guard = Guard { residency_revision: Some(planned), ..Guard::default() };
    let stale = UnloadRequest { guard: guard.clone(), ..unload("m") };
    assert!(matches!(node.models.unload(&stale).await, Err(LifecycleError::StaleRevision { .. })));
    let load = LoadRequest { guard, ..node.model("n", json!({})) };
    assert!(matches!(node.models.load(load), Err(LifecycleError::StaleRevision { .. })));
    assert_eq!(node.state("m"), ModelState::Ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_carries_an_eviction_and_a_load() {
    let node = Node::new(options());
    node.ready("old", json!({})).await;
    let ask = |victims: Vec<wire_api::node::ModelId>| LeaseRequest {
        owner: "gateway".into(),
        model: "new".into(),
        claims: vec![Claim { device: "cpu-0".into(), bytes: 1 << 20 }],
        ttl_ms: 60_000,
        lease: None,
        residency_revision: Some(node.models.residency_revision()),
        victims,
    };
    let lease = node.models.lease(&ask(vec!["old".into()])).unwrap();
    assert!(matches!(node.models.lease(&ask(vec![])), Err(LifecycleError::Leased { .. })));
    let mut guard = Guard {
        lease: Some(lease.id.clone()),
        fence: Some(lease.fence),
        residency_revision: Some(lease.residency_revision),
    };
    let evict = UnloadRequest { only_if_idle: true, guard: guard.clone(), ..unload("old") };
    guard.residency_revision = Some(within(node.models.unload(&evict)).await.unwrap().residency_revision);
    let load = LoadRequest { guard: guard.clone(), ..node.model("new", json!({})) };
    within(node.models.load(load).unwrap().wait()).await.unwrap();
    assert!(node.models.release(&lease.id));
    let late = UnloadRequest { guard: Guard { residency_revision: None, ..guard }, ..unload("new") };
    assert!(matches!(node.models.unload(&late).await, Err(LifecycleError::StaleFence { .. })));
    assert_eq!(node.ask("new", "mine").await.text, "mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn ranks_are_device_threads_of_one_worker() {
    let node = Node::new(options());
    let mut request = node.model("m", json!({}));
    request.devices = vec!["cpu-0".into(); 3];
    let info = within(node.models.load(request).unwrap().wait()).await.unwrap();
    assert_eq!(info.facts.world, 3);
    assert_eq!(node.ask("m", "three of us").await.text, "three of us");
    let tasks = std::fs::read_dir(format!("/proc/{}/task", info.worker)).unwrap();
    let names: Vec<String> = tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect();
    for rank in 0..3 {
        assert!(names.contains(&format!("cpu-dev-{rank}")), "{names:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_finds_its_beginning_in_the_cache() {
    for any_length in [true, false] {
        let node = Node::new(options());
        node.ready("m", json!({"fork_any_length": any_length, "script": "yes"})).await;
        let first = user(&"a question that is long enough ".repeat(4));
        let cold = Outcome::of(node.submit("m", first.clone()).await).await;
        let mut second = first.clone();
        second.prompt.extend("yes".bytes().map(u32::from));
        second.prompt.extend([257, 259, u32::from(b'?'), 257, 260]);
        second.boundaries.push(second.prompt.len() as u32 - 1);
        let warm = Outcome::of(node.submit("m", second).await).await;
        assert_eq!((cold.cached_tokens, cold.text.as_str(), warm.text.as_str()), (0, "yes", "yes"));
        assert!(
            warm.cached_tokens as usize >= first.prompt.len() - 1,
            "{} of {}",
            warm.cached_tokens,
            first.prompt.len()
        );
    }
}
