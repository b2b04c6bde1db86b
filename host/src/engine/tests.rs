//! The engine as a whole, over ranks that compute nothing.
//!
//! The double's next token is a function of everything before it, so [`expected`] is an oracle for every road
//! an answer can take: whole or chunked, alone or batched, cold or warm, preempted, replayed.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use proptest::prelude::*;

use super::run::{Engine, Fatal, Gauge, Mail};
use crate::device::double::{Double, Faults, IMAGE, next_token};
use crate::device::group::Group;
use crate::device::thread::ReplySink;
use crate::worker::message::{
    FailureCode, FinishReason, ImagePixels, MissReason, Sampling, SequenceEvent, Submission,
};
use crate::worker::protocol::EngineLimits;

const ROOM: u64 = 1 << 20;

fn limits() -> EngineLimits {
    EngineLimits {
        max_running: 8,
        queue_limit: 1000,
        prefill_chunk: 128,
        state_bytes: ROOM,
        kv_bytes_per_token: 1,
        state_bytes_per_sequence: 1,
        prefix_cache_bytes: ROOM / 2,
        snapshot_every: 256,
        step_deadline_ms: 10_000,
    }
}

struct Bench {
    mail: Sender<Mail>,
    events: Receiver<(u64, SequenceEvent)>,
    gauge: Arc<Gauge>,
    faults: Faults,
    thread: std::thread::JoinHandle<Result<(), Fatal>>,
}

impl Bench {
    fn start(limits: EngineLimits, faults: Faults, world: usize) -> Self {
        let (mail, inbox) = channel();
        let (out, events) = channel();
        let gauge = Arc::new(Gauge::default());
        let (replies, for_engine, seen) = (mail.clone(), gauge.clone(), faults.clone());
        let thread = std::thread::spawn(move || {
            let sink: ReplySink = Arc::new(move |reply| drop(replies.send(Mail::Device(reply))));
            let ranks =
                (0..world).map(|rank| (format!("dev-{rank}"), Double::open(seen.clone(), rank))).collect();
            let group = Group::open(ranks, &sink).unwrap();
            let send = Box::new(move |id, event| drop(out.send((id, event))));
            Engine::new(group, limits, 256, false, inbox, send, for_engine).run()
        });
        Self { mail, events, gauge, faults, thread }
    }

    fn submit(&self, id: u64, submission: Submission) {
        self.mail.send(Mail::Submit(id, Box::new(submission))).unwrap();
    }

    fn next(&self) -> (u64, SequenceEvent) {
        self.events.recv_timeout(Duration::from_secs(60)).expect("the engine says something")
    }

    /// Collects one sequence, dropping what concerns others.
    fn collect(&self, id: u64) -> Outcome {
        let mut outcome = Outcome::default();
        while outcome.end.is_none() {
            let (from, event) = self.next();
            if from == id {
                outcome.take(event);
            }
        }
        outcome
    }

    fn answer(&self, id: u64, submission: Submission) -> Outcome {
        self.submit(id, submission);
        self.collect(id)
    }

    /// Waits until the engine rests.
    fn rest(&self) {
        while self.gauge.read().busy_ms != 0 || self.gauge.read().running + self.gauge.read().queued > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends the engine and checks that nothing is left on the devices.
    fn close(self) -> Result<(), Fatal> {
        self.mail.send(Mail::Close).unwrap();
        let result = self.thread.join().unwrap();
        if result.is_ok() {
            assert_eq!(
                (self.faults.live_sequences(), self.faults.live_images(), self.faults.live_models()),
                (0, 0, 0)
            );
        }
        result
    }
}

#[derive(Debug, Default)]
struct Outcome {
    tokens: Vec<u32>,
    started: Option<(u32, u32, Option<MissReason>)>,
    end: Option<SequenceEvent>,
}

impl Outcome {
    fn take(&mut self, event: SequenceEvent) {
        assert!(self.end.is_none(), "something came after the end: {event:?}");
        match event {
            SequenceEvent::Started { prompt_tokens, cached_tokens, miss_reason } => {
                assert!(self.started.replace((prompt_tokens, cached_tokens, miss_reason)).is_none());
            }
            SequenceEvent::Token { id, .. } => self.tokens.push(id),
            end => self.end = Some(end),
        }
    }

    fn reason(&self) -> FinishReason {
        match &self.end {
            Some(SequenceEvent::Finished { reason, .. }) => *reason,
            other => panic!("not finished but {other:?}"),
        }
    }

    fn failure(&self) -> (FailureCode, &str, bool) {
        match &self.end {
            Some(SequenceEvent::Failed { code, message, retryable, .. }) => (*code, message, *retryable),
            other => panic!("not failed but {other:?}"),
        }
    }

    fn cached(&self) -> u32 {
        self.started.expect("it started").1
    }
}

fn submission(prompt: Vec<u32>, max_tokens: u32) -> Submission {
    Submission {
        prompt,
        images: Vec::new(),
        sampling: Sampling::greedy(),
        max_tokens,
        stop_tokens: Vec::new(),
        top_logprobs: None,
        emitted: Vec::new(),
        boundaries: Vec::new(),
    }
}

fn text(length: u32, flavour: u32) -> Vec<u32> {
    (0..length).map(|i| (i * 7 + flavour * 13) % 90 + 1).collect()
}

fn expected(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut history: Vec<u64> = prompt.iter().map(|&token| u64::from(token)).collect();
    (0..count)
        .map(|_| {
            let token = next_token(&history);
            history.push(u64::from(token));
            token
        })
        .collect()
}

#[test]
fn many_at_once_say_what_each_says_alone() {
    for (recurrent, world) in [(false, 1), (true, 1), (false, 3)] {
        let faults = Faults::default();
        if recurrent {
            faults.recurrent();
        }
        let bench = Bench::start(limits(), faults, world);
        for id in 0..20 {
            bench.submit(id, submission(text(10 + 37 * id as u32, id as u32), 12));
        }
        let mut outcomes: Vec<Outcome> = (0..20).map(|_| Outcome::default()).collect();
        while outcomes.iter().any(|outcome| outcome.end.is_none()) {
            let (id, event) = bench.next();
            outcomes[id as usize].take(event);
        }
        for (id, outcome) in outcomes.iter().enumerate() {
            let prompt = text(10 + 37 * id as u32, id as u32);
            assert_eq!(outcome.tokens, expected(&prompt, 12), "sequence {id}, recurrent {recurrent}");
            assert_eq!(outcome.reason(), FinishReason::Length);
        }
        bench.close().unwrap();
    }
}

#[test]
fn decoding_goes_on_while_a_long_prompt_is_prefilled() {
    let faults = Faults::default();
    let bench = Bench::start(limits(), faults.clone(), 1);
    bench.submit(1, submission(text(10, 1), 500));
    while !matches!(bench.next().1, SequenceEvent::Token { .. }) {}
    bench.submit(2, submission(text(3000, 2), 1));
    bench.collect(2);
    let mixed: Vec<_> =
        faults.batches().into_iter().filter(|rows| rows.iter().any(|&n| n > 1) && rows.len() > 1).collect();
    assert!(mixed.len() >= 3000 / 128, "the prompt took several steps");
    assert!(mixed.iter().all(|rows| rows[0] == 1), "a step left the decoding row out: {mixed:?}");
    assert!(mixed.iter().all(|rows| rows[1] <= 128));
    bench.close().unwrap();
}

#[test]
fn a_stop_token_ends_without_being_said() {
    let bench = Bench::start(limits(), Faults::default(), 1);
    let words = expected(&text(10, 1), 5);
    let stop = words[3];
    let until = words.iter().position(|&word| word == stop).unwrap();
    let outcome = bench.answer(1, Submission { stop_tokens: vec![stop], ..submission(text(10, 1), 50) });
    assert_eq!(outcome.tokens, words[..until]);
    assert_eq!(outcome.reason(), FinishReason::Stop);
    bench.close().unwrap();
}

#[test]
fn warm_says_what_cold_said_and_reports_what_was_cached() {
    for recurrent in [false, true] {
        let faults = Faults::default();
        if recurrent {
            faults.recurrent();
        }
        let bench = Bench::start(limits(), faults.clone(), 1);
        let first = text(200, 1);
        let with = |prompt: Vec<u32>| Submission { boundaries: vec![100, 200], ..submission(prompt, 5) };
        let cold = bench.answer(1, with(first.clone()));
        assert_eq!(cold.started, Some((200, 0, Some(MissReason::Empty))));
        let fed = faults.tokens_fed();
        let mut second = first.clone();
        second.extend(&cold.tokens);
        second.extend(text(50, 9));
        let warm = bench.answer(2, with(second.clone()));
        assert_eq!(warm.tokens, expected(&second, 5));
        let cached = warm.cached();
        assert_eq!(cached, if recurrent { 100 } else { 204 }, "recurrent {recurrent}");
        assert_eq!(faults.tokens_fed() - fed, u64::from(255 - cached) + 4);
        let again = bench.answer(3, with(first.clone()));
        assert_eq!(again.tokens, cold.tokens);
        bench.close().unwrap();
    }
}

#[test]
fn requests_that_begin_alike_compute_the_beginning_once() {
    let faults = Faults::default();
    let bench = Bench::start(limits(), faults.clone(), 1);
    for id in 0..4 {
        bench.submit(id, submission(text(1000, 1), 3));
    }
    let mut ended = 0;
    while ended < 4 {
        if matches!(bench.next().1, SequenceEvent::Finished { .. }) {
            ended += 1;
        }
    }
    assert!(faults.tokens_fed() < 1100, "{} tokens were fed", faults.tokens_fed());
    bench.close().unwrap();
}

#[test]
fn images_are_expanded_encoded_once_and_take_part_in_the_prefix() {
    let faults = Faults::default();
    let bench = Bench::start(limits(), faults.clone(), 2);
    let image = |content: u8| ImagePixels { width: 20, height: 10, rgb: vec![0; 600], sha256: [content; 32] };
    let ask = |id, content| {
        let mut prompt = text(30, 1);
        prompt.push(IMAGE);
        prompt.extend(text(40, 2));
        bench.answer(id, Submission { images: vec![image(content)], ..submission(prompt, 4) })
    };
    let cat = ask(1, 1);
    assert_eq!(cat.started.unwrap().0, 30 + 200 + 40);
    let dog = ask(2, 2);
    assert_ne!(cat.tokens, dog.tokens);
    assert_eq!(dog.cached(), 16, "only what comes before the picture is common");
    let again = ask(3, 1);
    assert_eq!(again.tokens, cat.tokens);
    assert!(again.cached() > 230);
    assert_eq!(faults.images_encoded(), 2);

    let mut prompt = text(30, 1);
    prompt.push(IMAGE);
    let lost = bench.answer(4, submission(prompt.clone(), 4));
    assert_eq!(lost.failure().0, FailureCode::InvalidInput);
    let wide = ImagePixels { width: 101, height: 1, rgb: vec![0; 303], sha256: [9; 32] };
    let refused = bench.answer(5, Submission { images: vec![wide], ..submission(prompt, 4) });
    assert_eq!(refused.failure(), (FailureCode::InvalidInput, "an image may be 100 pixels wide", false));
    bench.close().unwrap();
}

#[test]
fn a_cancel_finds_a_sequence_whose_image_is_being_encoded() {
    let faults = Faults::default();
    faults.slow_images();
    let bench = Bench::start(limits(), faults.clone(), 1);
    for id in 0..4 {
        let image = ImagePixels { width: 5, height: 5, rgb: vec![0; 75], sha256: [id as u8; 32] };
        bench.submit(id, Submission { images: vec![image], ..submission(vec![1, IMAGE, 2], 3000) });
    }
    while faults.images_encoded() == 0 {
        std::thread::yield_now();
    }
    (0..4).for_each(|id| bench.mail.send(Mail::Cancel(id)).unwrap());
    for _ in 0..4 {
        loop {
            match bench.next().1 {
                SequenceEvent::Finished { reason, .. } => {
                    assert_eq!(reason, FinishReason::Cancelled);
                    break;
                }
                SequenceEvent::Failed { .. } => panic!("a cancel is no failure"),
                _ => {}
            }
        }
    }
    bench.rest();
    bench.close().unwrap();
}

#[test]
fn memory_pressure_sets_back_the_youngest_and_changes_no_answer() {
    let faults = Faults::default();
    let tight = EngineLimits { state_bytes: 800, prefix_cache_bytes: 400, ..limits() };
    let bench = Bench::start(tight, faults, 1);
    for id in 0..6 {
        bench.submit(id, submission(text(60, id as u32), 200));
    }
    let mut outcomes: Vec<Outcome> = (0..6).map(|_| Outcome::default()).collect();
    while outcomes.iter().any(|outcome| outcome.end.is_none()) {
        let (id, event) = bench.next();
        outcomes[id as usize].take(event);
    }
    for (id, outcome) in outcomes.iter().enumerate() {
        assert_eq!(outcome.tokens, expected(&text(60, id as u32), 200), "sequence {id}");
    }
    bench.rest();
    assert!(bench.gauge.read().preemptions > 0, "there was no pressure");
    bench.close().unwrap();
}

#[test]
fn a_device_smaller_than_planned_shrinks_admission_and_changes_no_answer() {
    let faults = Faults::default();
    faults.token_capacity(500);
    let bench = Bench::start(limits(), faults, 1);
    for id in 0..6 {
        bench.submit(id, submission(text(100, id as u32), 60));
    }
    let mut outcomes: Vec<Outcome> = (0..6).map(|_| Outcome::default()).collect();
    while outcomes.iter().any(|outcome| outcome.end.is_none()) {
        let (id, event) = bench.next();
        outcomes[id as usize].take(event);
    }
    for (id, outcome) in outcomes.iter().enumerate() {
        assert_eq!(outcome.tokens, expected(&text(100, id as u32), 60), "sequence {id}");
    }
    bench.rest();
    assert!(bench.gauge.read().state_limit_bytes < ROOM);
    bench.close().unwrap();
}

#[test]
fn refusals_name_the_limit() {
    let bench = Bench::start(EngineLimits { queue_limit: 0, ..limits() }, Faults::default(), 1);
    let long = bench.answer(1, submission(text(5000, 1), 5));
    assert!(matches!(long.failure(), (FailureCode::OutOfMemory, _, true)), "the queue comes first");
    bench.close().unwrap();

    let bench = Bench::start(limits(), Faults::default(), 1);
    let cases = [
        (submission(text(5000, 1), 5), "prompt is too long: 5000 tokens > 4095 maximum"),
        (submission(vec![], 5), "the prompt is empty"),
        (submission(vec![97], 5), "token id 97 is outside the vocabulary of 97"),
        (submission(vec![1], 0), "max_tokens must be at least 1"),
    ];
    for (id, (submission, message)) in cases.into_iter().enumerate() {
        let outcome = bench.answer(id as u64, submission);
        assert_eq!(outcome.failure(), (FailureCode::InvalidInput, message, false));
    }
    bench.close().unwrap();
}

#[test]
fn the_context_ends_a_sequence_that_fills_it() {
    let bench = Bench::start(limits(), Faults::default(), 1);
    let outcome = bench.answer(1, submission(text(4090, 1), 50));
    assert_eq!(outcome.tokens.len(), 6);
    assert_eq!(outcome.reason(), FinishReason::Length);
    bench.close().unwrap();
}

#[test]
fn a_row_that_is_wrong_fails_alone() {
    let faults = Faults::default();
    faults.reject_token(95);
    faults.nan_on_token(94);
    let bench = Bench::start(limits(), faults, 1);
    bench.submit(1, submission(text(10, 1), 300));
    let wrong = bench.answer(2, submission(vec![1, 2, 95], 5));
    assert_eq!(wrong.failure().0, FailureCode::InvalidInput);
    let nan = bench.answer(3, submission(vec![1, 2, 94], 5));
    assert_eq!(nan.failure().0, FailureCode::Internal);
    assert!(nan.tokens.is_empty(), "a token was made of no number");
    bench.mail.send(Mail::Cancel(1)).unwrap();
    bench.rest();
    bench.close().unwrap();
}

#[test]
fn a_panic_ends_the_engine_and_names_only_who_was_in_the_batch() {
    let faults = Faults::default();
    faults.panic_on_token(95);
    let bench = Bench::start(EngineLimits { max_running: 2, ..limits() }, faults, 1);
    bench.submit(1, submission(text(10, 1), 100_000));
    while !matches!(bench.next(), (1, SequenceEvent::Token { .. })) {}
    bench.submit(2, submission(vec![1, 2, 95], 5));
    bench.submit(3, submission(text(10, 3), 5));
    let fatal = bench.thread.join().unwrap().unwrap_err();
    assert_eq!(fatal.code, FailureCode::Internal);
    assert!(fatal.message.contains("told to panic"));
    assert_eq!(fatal.suspects, [1, 2], "sequence 3 waited in the queue");
}

#[test]
fn a_device_that_is_gone_ends_the_engine_whichever_call_finds_out() {
    let text = text(10, 1);
    let picture = ImagePixels { width: 2, height: 2, rgb: vec![0; 12], sha256: [3; 32] };
    type Lose = fn(&Faults);
    let cases: [(Lose, Submission); 3] = [
        (Faults::lose_on_new, submission(text.clone(), 5)),
        (|faults| faults.lose_on_token(95), submission(vec![1, 2, 95], 5)),
        (Faults::lose_on_measure, Submission { images: vec![picture], ..submission(vec![1, IMAGE, 2], 5) }),
    ];
    for (lose, submission) in cases {
        let faults = Faults::default();
        lose(&faults);
        let bench = Bench::start(limits(), faults, 2);
        bench.submit(1, submission);
        let fatal = bench.thread.join().unwrap().unwrap_err();
        assert_eq!((fatal.code, fatal.message.as_str()), (FailureCode::DeviceLost, "the card is gone"));
    }
}

#[test]
fn a_hung_device_is_noticed() {
    let faults = Faults::default();
    faults.hang();
    let bench = Bench::start(EngineLimits { step_deadline_ms: 50, ..limits() }, faults, 2);
    bench.submit(1, submission(text(10, 1), 5));
    let fatal = bench.thread.join().unwrap().unwrap_err();
    assert_eq!((fatal.code, fatal.suspects), (FailureCode::DeviceLost, vec![1]));
}

#[test]
fn a_replayed_sequence_goes_on_where_it_was() {
    let bench = Bench::start(limits(), Faults::default(), 1);
    let sampling = Sampling { temperature: 1.5, seed: 7, frequency_penalty: 0.5, ..Sampling::greedy() };
    let whole = Submission { sampling, ..submission(text(40, 1), 30) };
    let first = bench.answer(1, whole.clone());
    assert_eq!(first.tokens.len(), 30);
    for cut in [1, 7, 29] {
        let emitted = first.tokens[..cut].to_vec();
        let rest = bench.answer(10 + cut as u64, Submission { emitted, ..whole.clone() });
        assert_eq!(rest.tokens, first.tokens[cut..]);
        let Some(SequenceEvent::Finished { completion_tokens, .. }) = rest.end else { panic!("{rest:?}") };
        assert_eq!(completion_tokens, 30);
    }
    let nothing_left = bench.answer(99, Submission { emitted: first.tokens.clone(), ..whole });
    assert_eq!((nothing_left.tokens.len(), nothing_left.reason()), (0, FinishReason::Length));
    bench.close().unwrap();
}

#[test]
fn log_probabilities_come_with_every_token_when_asked_for() {
    let bench = Bench::start(limits(), Faults::default(), 1);
    bench.submit(1, Submission { top_logprobs: Some(2), ..submission(text(10, 1), 3) });
    let mut seen = 0;
    loop {
        match bench.next().1 {
            SequenceEvent::Token { id, logprob: Some(logprob) } => {
                assert_eq!((logprob.top.len(), logprob.top[0].0), (2, id));
                assert!(logprob.logprob <= 0.0 && logprob.logprob == logprob.top[0].1);
                seen += 1;
            }
            SequenceEvent::Token { .. } => panic!("a token without its log probability"),
            SequenceEvent::Finished { .. } => break,
            _ => {}
        }
    }
    assert_eq!(seen, 3);
    bench.close().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn random_cancels_leave_nothing_behind(
        requests in proptest::collection::vec((1u32..400, 1u32..40, 0u32..12, proptest::option::of(0u64..60)), 1..25),
        recurrent in any::<bool>(), tight in any::<bool>(),
    ) {
        let faults = Faults::default();
        if recurrent {
            faults.recurrent();
        }
        let state_bytes = if tight { 900 } else { ROOM };
        let limits = EngineLimits { max_running: 4, state_bytes, prefix_cache_bytes: state_bytes / 2, ..limits() };
        let bench = Bench::start(limits, faults.clone(), 2);
        for (id, (length, max_tokens, flavour, cancel_after)) in requests.iter().enumerate() {
            let boundaries = vec![length / 3, length / 2];
            bench.submit(id as u64, Submission { boundaries, ..submission(text(*length, *flavour), *max_tokens) });
            if let Some(delay) = cancel_after {
                std::thread::sleep(Duration::from_micros(delay * 20));
                bench.mail.send(Mail::Cancel(id as u64)).unwrap();
            }
        }
        let mut outcomes: Vec<Outcome> = requests.iter().map(|_| Outcome::default()).collect();
        while outcomes.iter().any(|outcome| outcome.end.is_none()) {
            let (id, event) = bench.next();
            outcomes[id as usize].take(event);
        }
        for ((length, max_tokens, flavour, cancel), outcome) in requests.iter().zip(&outcomes) {
            let whole = expected(&text(*length, *flavour), *max_tokens as usize);
            prop_assert!(whole.starts_with(&outcome.tokens));
            if cancel.is_none() {
                prop_assert_eq!(&outcome.tokens, &whole);
            }
        }
        bench.rest();
        let idle = bench.gauge.read();
        prop_assert_eq!((idle.queued, idle.running), (0, 0));
        prop_assert_eq!(idle.plugin_sequences, u64::from(idle.prefix_cache_entries), "an orphan is left");
        if idle.prefix_cache_entries == 0 {
            prop_assert_eq!(idle.state_bytes, 0);
        }
        bench.close().unwrap();
    }
}
