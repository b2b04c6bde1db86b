//! An architecture without weights: it answers with what it was asked.
//!
//! It is the smallest complete architecture, to be copied by authors, and the double that every test above
//! the plugin boundary runs against: its answers are known in advance, and its [`Settings`] make it slow,
//! greedy for memory or faulty on purpose.
//!
//! What comes next is a pure function of the tokens a sequence holds, as it is for a real model. After the
//! marker `<|assistant|>` it is the last user's turn over again, then `<|end|>`; without that marker it is the
//! text so far, repeated for ever.
//!
//! It must never need a file, a device, or a clock that its settings did not ask for.

mod config;
mod fault;
mod model;
mod sequence;
mod vision;
mod vocabulary;

pub use config::{Fault, FaultKind, Settings};
pub use model::EchoModel;
pub use vocabulary::{ASSISTANT, BEGIN, END, IMAGE, SYSTEM, TOOL, USER, VOCABULARY};

use std::thread::sleep;
use std::time::{Duration, Instant};

use plugin_sdk::arch::Description;
use plugin_sdk::{Architecture, Error, Options, Phase, Plan, Progress, Result, Source, capability};

use crate::config::Config;

/// The echo architecture.
pub struct Echo;

plugin_sdk::architecture!(Echo);

impl Architecture for Echo {
    type Model = EchoModel;

    fn describe(&self) -> Description {
        Description {
            name: "echo",
            model_types: &["echo"],
            gguf_architectures: &[],
            capabilities: capability::VISION | capability::TENSOR_PARALLEL | capability::WEIGHTLESS,
            max_world: 8,
        }
    }

    fn plan(&self, source: &Source<'_>, options: &Options<'_>) -> Result<Plan> {
        let config = Config::read(source, options)?;
        Ok(Plan {
            weight_bytes: config.settings.weight_bytes,
            kv_bytes_per_token: config.settings.bytes_per_token,
            vision_bytes: if config.settings.vision { vision::LARGEST_BYTES } else { 0 },
            max_context: config.max_context as u32,
            vocab_size: VOCABULARY as u32,
            layers: 1,
            ..Plan::default()
        })
    }

    fn load(
        &self,
        source: &Source<'_>,
        options: &Options<'_>,
        progress: &Progress<'_>,
    ) -> Result<Self::Model> {
        let config = Config::read(source, options)?;
        pretend_to_read(&config.settings, progress)?;
        tracing::info!(rank = options.rank, world = options.world, "echo is ready");
        Ok(EchoModel::new(config, options.rank))
    }
}

/// Takes as long as the settings say, reporting on the way.
fn pretend_to_read(settings: &Settings, progress: &Progress<'_>) -> Result<()> {
    if settings.load_fails {
        return Err(Error::Internal("the settings say that loading fails".into()));
    }
    if settings.load_hangs {
        loop {
            std::thread::park();
        }
    }
    let begin = Instant::now();
    let whole = Duration::from_millis(settings.load_delay_ms);
    let total = settings.weight_bytes.max(1);
    progress.report(Phase::READ, 0, total)?;
    while begin.elapsed() < whole {
        sleep(Duration::from_millis(5).min(whole));
        let share = (begin.elapsed().as_secs_f64() / whole.as_secs_f64()).min(1.0);
        progress.report(Phase::READ, (total as f64 * share) as u64, total)?;
    }
    progress.report(Phase::READ, total, total)
}
