//! The host's side of the plugin boundary: find plugin files, verify them, open them, call them safely.
//!
//! A file goes through ever stronger doors: [`scan`] reads what it claims to be without running any of it,
//! [`probe_in_child`] opens it in a throw-away process, [`Plugin::open`] maps it into this one. Whatever is
//! turned away is a [`Refusal`]: one sentence that names the file and the cause.
//!
//! ```no_run
//! use plugin_loader::{HostServices, LoadOptions, Plugin, Row, Source, StepOutput, Want};
//! use std::sync::atomic::AtomicU32;
//!
//! let services = HostServices::tracing(4);
//! let plugin = Plugin::open("plugins/cpu-v3/echo.so".as_ref(), &services)?;
//! let source = Source { config: r#"{"model_type": "echo"}"#.into(), ..Source::default() };
//! let mut model = plugin.load(0, &source, &LoadOptions::default(), &mut |_, _, _| true)?;
//! let sequence = model.sequence_new()?;
//! let mut output = StepOutput::default();
//! let row = Row { sequence, position: 0, tokens: 0..2, want: Want::LAST, images: 0..0 };
//! model.step(&[row], &[72, 105], &[], &AtomicU32::new(0), &mut output)?;
//! assert_eq!(output.logits(0).len(), model.info().vocab_size as usize);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A library that was opened is never unmapped: threads, thread-locals and borrowed text of the plugin may
//! outlive every handle. A new version of a plugin is a new file (rename it into place, never overwrite) and
//! takes effect in the next process.
//!
//! This crate must never depend on the author's side (`plugin-sdk`) or on any plugin.

mod build;
mod conversion;
mod descriptor;
mod error;
mod evictor;
mod identity;
mod install;
mod layout;
mod machine;
mod manifest;
mod model;
mod plugin;
mod probe;
mod refusal;
mod router;
mod scan;
mod services;
mod source;
mod step;
mod trust;

pub use build::{BuildVerdict, Choice, Considered, Contender, Fit, choose_build, choose_common_build, judge};
pub use descriptor::{Descriptor, descriptor};
pub use error::{ErrorKind, PluginError};
pub use evictor::{EvictDecision, EvictRequest, Evictor};
pub use identity::FileIdentity;
pub use install::install;
pub use machine::cpu_device;
pub use manifest::Manifest;
pub use model::{EncodedImage, ImageId, Model, SequenceId};
pub use plugin::{ArchitectureInfo, BuildInfo, Plugin, StrategyInfo};
pub use probe::{Report, probe_in_child, probe_main};
pub use refusal::{Cause, Refusal};
pub use router::{RouteDecision, RouteRequest, Router};
pub use scan::{Found, scan};
pub use services::{HostServices, LogEvent};
pub use source::{LoadOptions, Source};
pub use step::{ImageSpan, Row, StepOutput};
pub use trust::{AllowList, Ownership, Policy};

pub use plugin_abi::PluginRef;
pub use plugin_abi::arch::{
    DeviceInfo, DeviceKind, ModelInfo, ModelStats, Plan, Want, WeightFormat, capability,
};
pub use plugin_abi::host::{Level, Phase};
pub use plugin_abi::strategy::{Candidate, Purpose, Residency, Resident};
