//! A model behind the boundary: steps, forks, failures, panics, logs.

mod built;

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

use plugin_loader::{
    ErrorKind, HostServices, ImageSpan, Level, LoadOptions, Model, Plugin, PluginError, Policy, Row, Source,
    StepOutput, Want,
};

type Log = Arc<Mutex<Vec<(Level, String, String)>>>;

fn recording() -> (HostServices, Log) {
    let log = Log::default();
    let sink = log.clone();
    let services = HostServices::new(
        move |event| {
            let record = (event.level, event.target.to_owned(), event.message.to_owned());
            sink.lock().expect("nobody panics while logging").push(record);
        },
        Level::INFO,
        1,
    );
    (services, log)
}

fn echo(options: &str) -> Model {
    let (services, _) = recording();
    let plugin = open(&built::library("echo-plugin", &[]), &services);
    load(plugin, "echo", options).expect("echo loads")
}

fn open(path: &std::path::Path, services: &HostServices) -> Plugin {
    Plugin::open_under(path, services, &Policy::anything()).expect("a sound plugin opens")
}

fn load(plugin: Plugin, model_type: &str, options: &str) -> Result<Model, PluginError> {
    let source = Source { config: format!(r#"{{"model_type":"{model_type}"}}"#), ..Source::default() };
    let options = LoadOptions { options: options.into(), ..LoadOptions::default() };
    let architecture = plugin.architecture_for_model_type(model_type).expect("the plugin serves it");
    plugin.load(architecture, &source, &options, &mut |_, _, _| true)
}

fn step(model: &mut Model, rows: &[Row], tokens: &[u32], output: &mut StepOutput) -> Result<(), PluginError> {
    model.step(rows, tokens, &[], &AtomicU32::new(0), output)
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.expect("there are logits").0 as u32
}

/// Greedy continuation of a prompt in a sequence of its own.
fn continuation(model: &mut Model, prompt: &str, count: usize) -> String {
    let sequence = model.sequence_new().expect("room for a sequence");
    let mut output = StepOutput::default();
    let mut feed: Vec<u32> = prompt.bytes().map(u32::from).collect();
    let (mut position, mut text) = (0, Vec::new());
    while text.len() < count {
        let row = Row { sequence, position, tokens: 0..feed.len() as u32, want: Want::LAST, images: 0..0 };
        step(model, &[row], &feed, &mut output).expect("the step succeeds");
        position += feed.len() as u32;
        let token = argmax(output.logits(0));
        text.push(token as u8);
        feed = vec![token];
    }
    model.sequence_free(sequence);
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn echo_answers_through_the_boundary() {
    let mut model = echo("");
    assert_eq!(continuation(&mut model, "abc ", 10), "abc abc ab");
    assert_eq!(model.stats().sequences, 0);
    assert_eq!(model.stats().state_bytes, 0);
}

#[test]
fn rows_of_one_step_get_their_own_results() {
    let mut model = echo("");
    let ids: Vec<_> = (0..4).map(|_| model.sequence_new().expect("room")).collect();
    let row = |index: usize, tokens: std::ops::Range<u32>, want| Row {
        sequence: ids[index],
        position: 0,
        tokens,
        want,
        images: 0..0,
    };
    let tokens: Vec<u32> = b"xyabq".iter().map(|&byte| u32::from(byte)).collect();
    let rows = [
        row(0, 0..2, Want::ALL),
        row(1, 2..4, Want::TOKEN),
        row(2, 2..4, Want::NOTHING),
        row(3, 4..5, Want::LAST),
    ];
    let mut output = StepOutput::default();
    step(&mut model, &rows, &tokens, &mut output).expect("the step succeeds");
    let vocab = model.info().vocab_size as usize;
    assert_eq!(output.logits(0).len(), 2 * vocab);
    assert_eq!(argmax(&output.logits(0)[..vocab]), u32::from(b'x'));
    assert_eq!(argmax(&output.logits(0)[vocab..]), u32::from(b'x'));
    assert_eq!(output.token(1), Some(u32::from(b'a')));
    assert!(output.logits(2).is_empty() && output.token(2).is_none());
    assert_eq!(argmax(output.logits(3)), u32::from(b'q'));
}

#[test]
fn a_bad_row_fails_alone_and_says_why() {
    let mut model = echo("");
    let (good, bad, worse) = (
        model.sequence_new().expect("room"),
        model.sequence_new().expect("room"),
        model.sequence_new().expect("room"),
    );
    let row = |sequence, position, tokens| Row { sequence, position, tokens, want: Want::LAST, images: 0..0 };
    let rows = [row(bad, 7, 0..1), row(good, 0, 0..1), row(worse, 0, 1..2), row(good, 0, 0..1)];
    let mut output = StepOutput::default();
    step(&mut model, &rows, &[65, 9999], &mut output).expect("the batch succeeds");
    let error = |row| output.error(row).map(|error| (error.kind, error.message));
    assert_eq!(
        error(0),
        Some((ErrorKind::InvalidInput, "the sequence holds 0 tokens, the host believes 7".into()))
    );
    assert_eq!(error(1), None);
    assert_eq!(argmax(output.logits(1)), 65);
    assert_eq!(
        error(2),
        Some((ErrorKind::InvalidInput, "token id 9999 is outside the vocabulary of 264".into()))
    );
    assert!(
        error(3).is_some_and(|(_, message)| message.contains("twice")),
        "a sequence occurs once in a step"
    );
    assert!(output.logits(0).is_empty(), "a failed row has no logits");
}

#[test]
fn forks_and_trims_keep_what_they_should() {
    let mut model = echo("");
    let sequence = model.sequence_new().expect("room");
    let mut output = StepOutput::default();
    let tokens: Vec<u32> = b"hello".iter().map(|&byte| u32::from(byte)).collect();
    let row =
        |sequence, position, tokens| Row { sequence, position, tokens, want: Want::TOKEN, images: 0..0 };
    step(&mut model, &[row(sequence, 0, 0..5)], &tokens, &mut output).expect("fed");
    let forked = model.fork(sequence, 2).expect("any length");
    model.trim(sequence, 3).expect("any length");
    step(&mut model, &[row(forked, 2, 0..1), row(sequence, 3, 0..1)], &tokens[4..], &mut output)
        .expect("fed");
    assert_eq!(model.sequence_bytes(forked), 3 * 8);
    assert_eq!(model.sequence_bytes(sequence), 4 * 8);
    assert_eq!(model.fork(sequence, 9).expect_err("too long").kind, ErrorKind::InvalidInput);

    let mut recurrent = echo(r#"{"fork_any_length": false}"#);
    let sequence = recurrent.sequence_new().expect("room");
    step(&mut recurrent, &[row(sequence, 0, 0..5)], &tokens, &mut output).expect("fed");
    assert_eq!(recurrent.fork(sequence, 2).expect_err("not there").kind, ErrorKind::Unsupported);
    assert!(recurrent.fork(sequence, 5).is_ok());
}

#[test]
fn every_kind_of_failure_arrives_as_what_it_is() {
    let cases = [
        ("unsupported", ErrorKind::Unsupported),
        ("device_lost", ErrorKind::DeviceLost),
        ("internal", ErrorKind::Internal),
        ("panic", ErrorKind::Internal),
    ];
    for (fault, kind) in cases {
        let mut model = echo(&format!(r#"{{"fault": {{"kind": "{fault}", "at": 2}}}}"#));
        let sequence = model.sequence_new().expect("room");
        let mut output = StepOutput::default();
        let row = Row { sequence, position: 0, tokens: 0..3, want: Want::LAST, images: 0..0 };
        let error = step(&mut model, &[row], &[1, 2, 3], &mut output).expect_err(fault);
        assert_eq!(error.kind, kind, "{fault}");
        assert!(output.is_empty(), "nothing of a failed step can be read");
    }
    for (fault, kind) in
        [("invalid_input", ErrorKind::InvalidInput), ("out_of_memory", ErrorKind::OutOfMemory)]
    {
        let mut model = echo(&format!(r#"{{"fault": {{"kind": "{fault}", "at": 2}}}}"#));
        let sequence = model.sequence_new().expect("room");
        let mut output = StepOutput::default();
        let row = Row { sequence, position: 0, tokens: 0..3, want: Want::LAST, images: 0..0 };
        step(&mut model, &[row], &[1, 2, 3], &mut output).expect("only the row fails");
        assert_eq!(output.error(0).map(|error| error.kind), Some(kind), "{fault}");
    }
    assert_eq!(load_error(r#"{"no_such_setting": 1}"#).kind, ErrorKind::InvalidInput);
    assert_eq!(load_error(r#"{"load_fails": true}"#).kind, ErrorKind::Internal);
}

fn load_error(options: &str) -> PluginError {
    let (services, _) = recording();
    let plugin = open(&built::library("echo-plugin", &[]), &services);
    load(plugin, "echo", options).expect_err("refused")
}

#[test]
fn a_panic_ends_its_batch_poisons_its_model_and_nothing_else() {
    let folder = built::folder();
    let (services, log) = recording();
    let plugin = open(&built::faulty(folder.path(), "step-panics"), &services);
    let (mut model, other) = (load(plugin, "faulty", "").expect("loads"), load(plugin, "faulty", ""));
    let sequence = model.sequence_new().expect("room");
    let row = Row { sequence, position: 0, tokens: 0..1, want: Want::LAST, images: 0..0 };
    let mut output = StepOutput::default();
    let error = step(&mut model, std::slice::from_ref(&row), &[1], &mut output).expect_err("it panics");
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ErrorKind::Internal, "the plugin panicked: on purpose")
    );
    let again = step(&mut model, &[row], &[1], &mut output).expect_err("it is poisoned");
    assert!(again.message.contains("must be reloaded"), "{again}");
    assert!(other.expect("loads").sequence_new().is_ok(), "another model of the same plugin works");
    let log = log.lock().expect("nobody panics while logging");
    let logged = |level, target: &str, text: &str| {
        log.iter().any(|record| record.0 == level && record.1 == target && record.2.contains(text))
    };
    assert!(logged(Level::ERROR, "panic", "on purpose"), "{log:?}");
    assert!(logged(Level::INFO, "neuron_faulty::architecture", "loading rank=0"), "{log:?}");
}

#[test]
fn a_panic_whose_payload_panics_is_stopped_too() {
    let folder = built::folder();
    let plugin = open(&built::faulty(folder.path(), "panic-payload-panics"), &recording().0);
    let mut model = load(plugin, "faulty", "").expect("loads");
    let sequence = model.sequence_new().expect("room");
    let row = Row { sequence, position: 0, tokens: 0..1, want: Want::LAST, images: 0..0 };
    let error = step(&mut model, &[row], &[1], &mut StepOutput::default()).expect_err("it panics");
    assert_eq!(error.kind, ErrorKind::Internal);
}

#[test]
fn the_host_decides_how_much_is_logged() {
    let folder = built::folder();
    let (services, log) = recording();
    let plugin = open(&built::faulty(folder.path(), "none"), &services);
    services.set_level(Level::WARN);
    load(plugin, "faulty", "").map(drop).expect("loads");
    assert!(log.lock().expect("nobody panics while logging").is_empty(), "info is below warn");
    services.set_level(Level::INFO);
    load(plugin, "faulty", "").map(drop).expect("loads");
    assert_eq!(log.lock().expect("nobody panics while logging").len(), 1);
}

#[test]
fn a_cancelled_load_and_a_cancelled_step_say_so() {
    let (services, _) = recording();
    let plugin = open(&built::library("echo-plugin", &[]), &services);
    let source = Source { config: r#"{"model_type": "echo"}"#.into(), ..Source::default() };
    let options = LoadOptions { options: r#"{"load_delay_ms": 60000}"#.into(), ..LoadOptions::default() };
    let mut reports = 0;
    let error = plugin.load(0, &source, &options, &mut |_, done, total| {
        reports += 1;
        assert!(done <= total);
        reports < 3
    });
    assert_eq!(error.map(drop).expect_err("cancelled").kind, ErrorKind::Cancelled);

    let mut model = echo(r#"{"step_delay_ms": 600000}"#);
    let sequence = model.sequence_new().expect("room");
    let cancel = Arc::new(AtomicU32::new(0));
    let word = cancel.clone();
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        word.store(1, std::sync::atomic::Ordering::Relaxed);
    });
    let row = Row { sequence, position: 0, tokens: 0..1, want: Want::LAST, images: 0..0 };
    let error = model.step(&[row], &[1], &[], &cancel, &mut StepOutput::default()).expect_err("cancelled");
    assert_eq!(error.kind, ErrorKind::Cancelled);
    canceller.join().expect("the canceller ends");
    model.sequence_free(sequence);
    assert_eq!(model.stats().sequences, 0);
}

#[test]
fn an_image_goes_in_and_its_caption_comes_out() {
    let mut model = echo("");
    let image = model.info().image_token;
    let count = model.image_measure(32, 17).expect("small enough");
    assert_eq!(count, 4);
    assert_eq!(model.image_measure(5000, 1).expect_err("too wide").kind, ErrorKind::InvalidInput);
    assert_eq!(
        model.image_encode(2, 2, &[0; 5]).expect_err("bytes are missing").kind,
        ErrorKind::InvalidInput
    );
    let encoded = model.image_encode(32, 17, &[0x40; 32 * 17 * 3]).expect("encodes");
    assert_eq!(encoded.token_count, count);
    assert_eq!(model.stats().images, 1);

    let (user, end, assistant) = (259, 257, 260);
    let prompt = [user, image, image, image, image, end, assistant];
    let span = ImageSpan { image: encoded.image, position: 1, token_count: count };
    let sequence = model.sequence_new().expect("room");
    let mut output = StepOutput::default();
    let (mut feed, mut position, mut text) = (prompt.to_vec(), 0, String::new());
    loop {
        let images = if position == 0 { 0..1 } else { 0..0 };
        let row = Row { sequence, position, tokens: 0..feed.len() as u32, want: Want::TOKEN, images };
        model.step(&[row], &feed, &[span], &AtomicU32::new(0), &mut output).expect("fed");
        assert_eq!(output.error(0), None);
        position += feed.len() as u32;
        match output.token(0) {
            Some(token) if token != end => text.push(char::from(token as u8)),
            _ => break,
        }
        feed = vec![u32::from(text.as_bytes()[text.len() - 1])];
    }
    assert_eq!(text, "[32x17 #404040]");
    let without = model.sequence_new().expect("room");
    let row = Row { sequence: without, position: 0, tokens: 0..7, want: Want::TOKEN, images: 0..0 };
    model.step(&[row], &prompt, &[], &AtomicU32::new(0), &mut output).expect("the batch succeeds");
    assert_eq!(
        output.error(0).map(|error| error.kind),
        Some(ErrorKind::InvalidInput),
        "the image is missing"
    );
    model.image_free(encoded.image);
    assert_eq!(model.stats().images, 0);
}

#[test]
fn ranks_after_the_first_write_nothing() {
    let (services, _) = recording();
    let plugin = open(&built::library("echo-plugin", &[]), &services);
    let source = Source { config: r#"{"model_type": "echo"}"#.into(), ..Source::default() };
    let communicator = plugin.communicator_id().expect("an id");
    assert_ne!(communicator, plugin.communicator_id().expect("an id"), "every id is fresh");
    let mut ranks: Vec<Model> = (0..2)
        .map(|rank| {
            let options = LoadOptions { rank, world: 2, communicator, ..LoadOptions::default() };
            plugin.load(0, &source, &options, &mut |_, _, _| true).expect("loads")
        })
        .collect();
    let mut output = StepOutput::default();
    for (rank, model) in ranks.iter_mut().enumerate() {
        let sequence = model.sequence_new().expect("room");
        let row = Row { sequence, position: 0, tokens: 0..1, want: Want::LAST, images: 0..0 };
        step(model, &[row], &[65], &mut output).expect("fed");
        assert_eq!(output.logits(0).is_empty(), rank != 0);
        assert_eq!(output.error(0), None);
    }
    let outside = LoadOptions { rank: 2, world: 2, communicator, ..LoadOptions::default() };
    let error = plugin.load(0, &source, &outside, &mut |_, _, _| true).map(drop);
    assert_eq!(error.expect_err("no such rank").kind, ErrorKind::InvalidInput);
}
