//! MyPlugin: sends a request to the node with most free memory.
//!
//! A router is a pure function of what it is given: no clock, no randomness of its own, no files, no network,
//! no memory of earlier requests. The host has filtered the candidates and checks the answer.

use plugin_sdk::{Candidate, Error, Explain, Result, RouteChoice, RouteRequest, Router};
use serde::Deserialize;

plugin_sdk::export_plugin! { name: "my-plugin" }

plugin_sdk::router!("my-plugin", "the node with most free memory", MyPlugin::from_options);

/// The router, with its options. Unknown options are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MyPlugin {
    /// Bytes of free memory that one queued request is worth.
    pub queued_bytes: u64,
}

impl MyPlugin {
    /// Reads the options, a JSON object; empty text means defaults.
    pub fn from_options(options: &str) -> Result<Box<dyn Router>> {
        let options = if options.is_empty() { "{}" } else { options };
        if !options.trim_start().starts_with('{') {
            return Err(Error::InvalidInput("the options must be a JSON object".into()));
        }
        let router: Self = serde_json::from_str(options)
            .map_err(|error| Error::InvalidInput(format!("the options are not understood: {error}")))?;
        Ok(Box::new(router))
    }
}

impl Router for MyPlugin {
    fn choose(
        &self,
        request: &RouteRequest<'_>,
        candidates: &[Candidate],
        explain: &mut Explain<'_>,
    ) -> Result<RouteChoice> {
        let mut best = (0, f64::INFINITY);
        for place in 0..candidates.len() {
            // Equals take turns: each request begins to look at another place.
            let index = (place + request.ordinal as usize) % candidates.len();
            let candidate = &candidates[index];
            let queued = f64::from(candidate.queued) * self.queued_bytes as f64;
            let score = queued - candidate.free_bytes as f64; // smaller is better
            explain.score(index, score);
            explain.because(index, || {
                format!("free_bytes={} queued={}", candidate.free_bytes, candidate.queued)
            });
            if score < best.1 {
                best = (index, score);
            }
        }
        Ok(RouteChoice { index: best.0 })
    }
}
