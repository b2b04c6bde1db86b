//! The acceptance run on a machine with a GPU.
//!
//! It plays the host against prebuilt plugins, through the same loader, and needs nothing but the bundle it lies
//! in: no network, no compiler, no Python unless a reference to compare speed with is wanted. It checks answers
//! against recorded ones in every precision, that memory is given back, and how fast prompts and single tokens
//! go beside what the device could do. `--device cpu` runs all of it on the processor, in sizes that suit one, so
//! that everything up to the first launch is known to work before a card is at hand.
//!
//! It must never report success for something it did not run: what was skipped is listed with the reason.

mod bandwidth;
mod bench;
mod checkpoint;
mod device;
mod fixture;
mod golden;
mod memory;
mod plugins;
mod reference;
mod report;
mod session;
mod shape;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};

use crate::device::{Asked, Found};
use crate::report::Report;

/// Everything ran and is right.
const GREEN: u8 = 0;
/// Something ran and is wrong.
const RED: u8 = 1;
/// There is no device to run on.
const NO_DEVICE: u8 = 3;

/// Checks plugins on this machine's GPU and measures them. Exit status: 0 all is right, 1 something is not,
/// 3 there is no GPU.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    other: Option<Other>,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum Other {
    /// Opens one plugin in a process of its own.
    #[command(hide = true)]
    PluginProbe {
        /// The file.
        plugin: PathBuf,
    },
}

/// Which sizes are measured.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sizes {
    /// Checkpoints of real models' shape.
    Real,
    /// Checkpoints of a few megabytes.
    Tiny,
}

/// What is run.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Answers against recorded ones.
    Goldens,
    /// Memory after unloading.
    Memory,
    /// Prompts and single tokens per second.
    Bench,
}

#[derive(clap::Args)]
struct Options {
    /// The bundle: a folder with `plugins/` and `fixtures/`. Default: where this program lies.
    #[arg(long)]
    bundle: Option<PathBuf>,
    /// `cuda` (the first GPU), `cuda:N`, or `cpu`.
    #[arg(long, default_value = "cuda")]
    device: Asked,
    /// Sizes that are measured. Default: real on a GPU, tiny on a processor.
    #[arg(long, value_enum)]
    sizes: Option<Sizes>,
    /// Only these parts; all by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Only models whose name contains this.
    #[arg(long, default_value = "")]
    model: String,
    /// Folder for checkpoints that are made up; needs room for the largest (54 GB for 27B).
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// Folder for `results.json`, `results.txt`.
    #[arg(long, default_value = "gpu-check-results")]
    out: PathBuf,
    /// A Python with PyTorch, to measure the device and the reference implementation in the same run.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Threads a model may keep busy on the host's side. Default: all.
    #[arg(long)]
    threads: Option<u32>,
}

impl Options {
    fn runs(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn bundle(&self) -> Result<PathBuf> {
        if let Some(bundle) = &self.bundle {
            return Ok(bundle.clone());
        }
        let this = std::env::current_exe().context("this program does not know where it lies")?;
        Ok(this.parent().unwrap_or(Path::new(".")).to_path_buf())
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.other {
        Some(Other::PluginProbe { plugin }) => {
            return ExitCode::from(plugin_loader::probe_main(plugin).clamp(0, 255) as u8);
        }
        None => run(&cli.options),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::from(RED)
        }
    }
}

fn run(options: &Options) -> Result<u8> {
    let bundle = options.bundle()?;
    let found = match options.device.look() {
        Ok(found) => found,
        Err(sentence) => {
            println!("no device to run on: {sentence}");
            plugins::say_without_device(&bundle)?;
            return Ok(NO_DEVICE);
        }
    };
    number_devices_as_the_driver_lists_them(&found)?;
    let mut report = Report::new(&found);
    println!("{}", found.sentence());
    let on_gpu = found.is_gpu();
    let plugins = plugins::open(&bundle, &found.info, &mut report)?;

    if options.runs(Part::Goldens) {
        golden::run(&bundle.join("fixtures/models"), &plugins, &found, &options.model, &mut report)?;
        report.write(&options.out)?; // kept, whatever becomes of what follows
    }
    let scratch = options.scratch.clone().unwrap_or_else(|| options.out.join("scratch"));
    let sizes = options.sizes.unwrap_or(if on_gpu { Sizes::Real } else { Sizes::Tiny });
    let threads = options
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |count| count.get() as u32));
    if options.runs(Part::Memory) {
        memory::run(&plugins, &found, &scratch, threads, &mut report)?;
        report.write(&options.out)?;
    }
    if options.runs(Part::Bench) {
        if let Some(python) = &options.python {
            report.reference = Some(reference::measure(python, &bundle, sizes == Sizes::Tiny));
        }
        report.bandwidth = bandwidth::measure(&found);
        let shapes = if sizes == Sizes::Tiny { shape::tiny() } else { shape::real() };
        for shape in shapes.iter().filter(|shape| shape.name.contains(&options.model)) {
            bench::run(shape, &plugins, &found, &scratch, threads, &mut report)?;
            report.write(&options.out)?;
        }
    }
    let _ = std::fs::remove_dir(&scratch); // only if it is empty: it may be somebody's own folder
    report.write(&options.out)?;
    println!("{report}");
    Ok(if report.is_green() { GREEN } else { RED })
}

/// The CUDA driver numbers devices by speed unless told otherwise, and only listens before it is first used: this
/// program starts over with the order of the management library, which it goes by.
fn number_devices_as_the_driver_lists_them(found: &Found) -> Result<()> {
    const ORDER: (&str, &str) = ("CUDA_DEVICE_ORDER", "PCI_BUS_ID");
    if !found.is_gpu() || std::env::var(ORDER.0).is_ok_and(|order| order == ORDER.1) {
        return Ok(());
    }
    let this = std::env::current_exe()?;
    Err(std::process::Command::new(this).args(std::env::args_os().skip(1)).env(ORDER.0, ORDER.1).exec())
        .context("cannot start over")
}
