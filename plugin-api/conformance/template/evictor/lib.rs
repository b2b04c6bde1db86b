//! MyPlugin: makes room by unloading what has been idle longest.
//!
//! An evictor is a pure function of what it is given: no clock, no randomness of its own, no files, no network,
//! no memory of earlier decisions. It chooses among residents marked eligible and nothing else, and names
//! nobody when the need cannot be met; the host checks both.

use plugin_sdk::{Error, EvictChoice, EvictRequest, Evictor, Explain, Purpose, Resident, Result};
use serde::Deserialize;

plugin_sdk::export_plugin! { name: "my-plugin" }

plugin_sdk::evictor!("my-plugin", "what has been idle longest goes first", MyPlugin::from_options);

/// The evictor, with its options. Unknown options are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MyPlugin {
    /// Milliseconds of idleness that a second of loading is worth.
    pub reload_worth_ms: f64,
}

impl MyPlugin {
    /// Reads the options, a JSON object; empty text means defaults.
    pub fn from_options(options: &str) -> Result<Box<dyn Evictor>> {
        let options = if options.is_empty() { "{}" } else { options };
        if !options.trim_start().starts_with('{') {
            return Err(Error::InvalidInput("the options must be a JSON object".into()));
        }
        let evictor: Self = serde_json::from_str(options)
            .map_err(|error| Error::InvalidInput(format!("the options are not understood: {error}")))?;
        Ok(Box::new(evictor))
    }

    /// The smallest goes first.
    fn score(&self, resident: &Resident) -> f64 {
        let reload = if resident.reload_s.is_finite() { f64::from(resident.reload_s) } else { 0.0 };
        resident.last_used_ms as f64 + self.reload_worth_ms * reload
    }
}

impl Evictor for MyPlugin {
    fn choose(
        &self,
        request: &EvictRequest,
        residents: &[Resident],
        explain: &mut Explain<'_>,
    ) -> Result<EvictChoice> {
        let mut order = Vec::new();
        for (index, resident) in residents.iter().enumerate() {
            let score = self.score(resident);
            explain.score(index, score);
            explain.because(index, || {
                format!("last_used_ms={} bytes={}", resident.last_used_ms, resident.bytes)
            });
            if resident.eligible != 0 {
                order.push((score, index));
            }
        }
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let (mut victims, mut freed) = (Vec::new(), 0u64);
        for (_, index) in order {
            let resident = &residents[index];
            let enough = match request.purpose {
                Purpose::NEED => freed >= request.need_bytes,
                // A sweep needs nothing: only what has outlived its welcome goes.
                _ => {
                    let idle_ms = request.now_ms.saturating_sub(resident.last_used_ms);
                    resident.idle_limit_ms == 0 || idle_ms < resident.idle_limit_ms
                }
            };
            if !enough {
                freed = freed.saturating_add(resident.bytes);
                victims.push(index);
            }
        }
        if request.purpose == Purpose::NEED && freed < request.need_bytes {
            victims.clear(); // unloading would not help: unload nothing
        }
        Ok(EvictChoice { victims, memo: request.memo })
    }
}
