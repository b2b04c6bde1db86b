//! A mixed box, any set of builds, any request: what computes, or the sentence that says why not.

use super::*;
use crate::catalogue::tests::entry;
use crate::discovery::gpu::tests::mixed_box;
use crate::discovery::gpu::{Driver, Gpus};

/// A 2080, a 3090, a 4090, a 5090 and an H200, in this order, and a processor of level 3.
fn machine() -> Machine {
    let mut machine = crate::discovery::look();
    machine.cpu.level = 3;
    machine.cpu.model = "X".into();
    let driver = Some(Driver { version: "580.65.06".into(), cuda: 13000 });
    machine.gpus = Gpus { driver, all: mixed_box(), ..Gpus::default() };
    machine
}

fn builds(names: &[&str]) -> Snapshot {
    let entries = names.iter().map(|build| entry(&format!("{build}/x.so"), build, "llama")).collect();
    Snapshot { revision: 1, entries, directories: vec!["/plugins".into()] }
}

/// `cuda-1 ampere, …` with the warnings behind, or the refusal.
fn outcome(machine: &Machine, names: &[&str], requested: &[&str]) -> String {
    let requested: Vec<DeviceId> = requested.iter().map(|name| (*name).into()).collect();
    let key = ArchitectureKey::ModelType("llama".into());
    match place(&requested, machine, &builds(names), &key, |_| 0) {
        Ok(Placement { seats, warnings }) => {
            let seats: Vec<String> =
                seats.iter().map(|seat| format!("{} {}", seat.id(), seat.chosen.build)).collect();
            let warnings = warnings.iter().map(|warning| format!(" | {warning}"));
            seats.join(", ") + &warnings.collect::<String>()
        }
        Err(failure) => format!("{}: {}", failure.code, failure.message),
    }
}

const ALL: &[&str] = &["cpu-v3", "ampere", "ada", "hopper", "blackwell"];

#[test]
fn each_device_computes_with_the_build_made_for_it() {
    let machine = machine();
    let cases: [(&[&str], &[&str], &str); 16] = [
        (ALL, &[], "cuda-4 hopper"),
        (ALL, &["cpu"], "cpu-0 cpu-v3"),
        (ALL, &["cuda-1"], "cuda-1 ampere"),
        (ALL, &["cuda-2"], "cuda-2 ada"),
        (ALL, &["cuda-dev-3"], "cuda-3 blackwell"),
        (ALL, &["4"], "cuda-4 hopper"),
        (ALL, &["GPU-409"], "cuda-2 ada"),
        (ALL, &["0000:11:00.0"], "cuda-1 ampere"),
        // One file serves both where its machine code runs on both.
        (ALL, &["cuda-1", "cuda-2"], "cuda-1 ampere, cuda-2 ampere"),
        (
            ALL,
            &["cuda-4", "cuda-3"],
            "cuda-4 ada, cuda-3 ada | no build holds machine code for all of these GPUs: the driver compiles ada for \
             cuda-4 and cuda-3; the first load takes minutes",
        ),
        (ALL, &["cpu", "cpu-0"], "cpu-0 cpu-v3, cpu-0 cpu-v3"),
        (&["cpu-v3", "ampere"], &["cuda-2"], "cuda-2 ampere"),
        // Machine code on a smaller card is preferred to PTX on a larger one.
        (&["cpu-v3", "ada"], &[], "cuda-2 ada"),
        (&["cpu-v3", "blackwell"], &[], "cuda-3 blackwell"),
        (
            &["ampere"],
            &["cuda-4"],
            "cuda-4 ampere | cuda-4: ampere holds PTX for 8.0 that the driver compiles for 9.0; the first load takes \
             minutes; install the build made for this card, or give the first load time and the driver a cache \
             (cuda.cache)",
        ),
        (
            &["cpu-v3"],
            &[],
            "cpu-0 cpu-v3 | the processor computes, because no GPU can: cuda-0 (NVIDIA GeForce RTX 2080): cpu-v3 \
             computes on the CPU only; cuda-1 (NVIDIA GeForce RTX 3090): cpu-v3 computes on the CPU only; cuda-2 \
             (NVIDIA GeForce RTX 4090): cpu-v3 computes on the CPU only; cuda-3 (NVIDIA GeForce RTX 5090): cpu-v3 \
             computes on the CPU only; cuda-4 (NVIDIA H200): cpu-v3 computes on the CPU only",
        ),
    ];
    for (names, requested, expected) in cases {
        assert_eq!(outcome(&machine, names, requested), expected, "{names:?} {requested:?}");
    }
}

#[test]
fn every_wrong_combination_gets_its_sentence() {
    let mut machine = machine();
    machine.gpus.all[2].fault = Some("it has fallen off the bus; see what dmesg says of NVRM".into());
    let no_build = "no build of a plugin for model_type \"llama\" fits the device:";
    let cases: [(&[&str], &[&str], String); 11] = [
        (
            ALL,
            &["cuda-0"],
            format!(
                "no_plugin: cuda-0 (NVIDIA GeForce RTX 2080): {no_build} cpu-v3 computes on the CPU only; ampere holds \
                 no machine code for compute capability 7.5, only for 8.0; ada holds no machine code for compute \
                 capability 7.5, only for 8.9; hopper holds no machine code for compute capability 7.5, only for 9.0; \
                 blackwell holds no machine code for compute capability 7.5, only for 10.0 and 12.0"
            ),
        ),
        (
            &["cpu-v3"],
            &["cuda-1"],
            format!("no_plugin: cuda-1 (NVIDIA GeForce RTX 3090): {no_build} cpu-v3 computes on the CPU only"),
        ),
        (&["hopper"], &["cpu"], format!("no_plugin: cpu-0 (X): {no_build} hopper does not compute on the CPU")),
        (
            &["cpu-v4"],
            &["cpu"],
            format!(
                "no_plugin: cpu-0 (X): {no_build} cpu-v4 needs an x86-64-v4 processor; this one is x86-64-v3"
            ),
        ),
        (
            ALL,
            &["cuda-2"],
            "no_device: the device cuda-2 (NVIDIA GeForce RTX 4090) cannot be used: it has fallen off the bus; see \
             what dmesg says of NVRM"
                .into(),
        ),
        (
            ALL,
            &["cuda-7"],
            "no_device: the device cuda-7 is not here; there are cpu-0, cuda-0 (NVIDIA GeForce RTX 2080), cuda-1 \
             (NVIDIA GeForce RTX 3090), cuda-2 (NVIDIA GeForce RTX 4090), cuda-3 (NVIDIA GeForce RTX 5090), cuda-4 \
             (NVIDIA H200)"
                .into(),
        ),
        (
            ALL,
            &["cuda-1", "1"],
            "invalid_model: the device 1 is named twice; each part of a model needs a GPU of its own".into(),
        ),
        (
            ALL,
            &["cpu", "cuda-1"],
            "invalid_model: a model is split over GPUs or over parts of the processor, not over both".into(),
        ),
        (
            &["hopper"],
            &["cuda-4", "cuda-1"],
            "no_plugin: cuda-4 (NVIDIA H200) and cuda-1 (NVIDIA GeForce RTX 3090): no single build of a plugin for \
                 model_type \"llama\", which the parts of a model must share, fits all of them: hopper holds no machine \
                 code for compute capability 8.6, only for 9.0"
                .into(),
        ),
        (&[], &["cuda-1"], "no_plugin: no plugin serves model_type \"llama\"; the plugins in /plugins serve nothing".into()),
        (&[], &[], "no_plugin: no plugin serves model_type \"llama\"; the plugins in /plugins serve nothing".into()),
    ];
    for (names, requested, expected) in cases {
        assert_eq!(outcome(&machine, names, requested), expected, "{names:?} {requested:?}");
    }
    machine.gpus.driver = Some(Driver { version: "570.10".into(), cuda: 12080 });
    assert_eq!(
        outcome(&machine, &["hopper"], &["cuda-4"]),
        format!(
            "no_plugin: cuda-4 (NVIDIA H200): {no_build} hopper was compiled with CUDA 13.0; the driver only knows \
             12.8, and needs to be upgraded"
        )
    );
}

#[test]
fn what_is_hidden_is_not_missed_and_what_is_broken_is() {
    let mut machine = machine();
    for gpu in &mut machine.gpus.all {
        (gpu.hidden, gpu.fault) = (true, Some("CUDA_VISIBLE_DEVICES=\"\" hides it".into()));
    }
    assert_eq!(outcome(&machine, ALL, &[]), "cpu-0 cpu-v3");
    assert!(
        outcome(&machine, ALL, &["cuda-4"]).starts_with("no_device: the device cuda-4 (NVIDIA H200) cannot")
    );
    (machine.gpus.all[4].hidden, machine.gpus.all[4].fault) = (false, Some("it burns".into()));
    let said = outcome(&machine, ALL, &[]);
    assert!(said.ends_with("because no GPU can: cuda-4 (NVIDIA H200) cannot be used: it burns"), "{said}");
}

#[test]
fn memory_that_was_promised_to_others_is_not_free() {
    let (machine, key) = (machine(), ArchitectureKey::ModelType("llama".into()));
    let on = |promised: &dyn Fn(&str) -> u64| {
        place(&[], &machine, &builds(ALL), &key, promised).unwrap().seats[0].id().0
    };
    assert_eq!(on(&|_| 0), "cuda-4");
    assert_eq!(on(&|device| if device == "cuda-4" { 130 << 30 } else { 0 }), "cuda-3");
}
