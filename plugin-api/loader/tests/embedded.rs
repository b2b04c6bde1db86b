//! A plugin linked into the host goes through the same door as one from a file.

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

use arch_echo as _; // its entries would be dropped by the linker otherwise
use plugin_loader::{HostServices, Level, LoadOptions, Plugin, Row, Source, StepOutput, Want};

#[test]
fn an_embedded_plugin_works_like_a_loaded_one() {
    let services = HostServices::new(|_| {}, Level::INFO, 1);
    let plugin = Plugin::embedded(plugin_sdk::embedded_plugin!("house"), &services).expect("sound");
    assert_eq!(plugin.path().to_str(), Some("embedded"));
    assert_eq!(plugin.build_info().name, "house");
    assert_eq!(plugin.architecture_for_model_type("echo"), Some(0));
    plugin.probe(&plugin_loader::cpu_device()).expect("it runs where its host runs");

    let source = Source { config: r#"{"model_type": "echo"}"#.into(), ..Source::default() };
    let mut model = plugin.load(0, &source, &LoadOptions::default(), &mut |_, _, _| true).expect("loads");
    let sequence = model.sequence_new().expect("room");
    let row = Row { sequence, position: 0, tokens: 0..1, want: Want::TOKEN, images: 0..0 };
    let mut output = StepOutput::default();
    model.step(&[row], &[9], &[], &AtomicU32::new(0), &mut output).expect("steps");
    assert_eq!(output.token(0), Some(9));
}

#[test]
fn the_hosts_own_panic_hook_stays_the_hosts() {
    let seen = Arc::new(Mutex::new(0));
    let counter = seen.clone();
    std::panic::set_hook(Box::new(move |_| *counter.lock().expect("nobody panics here") += 1));
    let services = HostServices::new(|_| {}, Level::INFO, 1);
    Plugin::embedded(plugin_sdk::embedded_plugin!("house"), &services).expect("sound");
    let caught = std::panic::catch_unwind(|| panic!("the host's own"));
    let _ = std::panic::take_hook();
    assert!(caught.is_err());
    assert_eq!(*seen.lock().expect("nobody panics here"), 1);
}
