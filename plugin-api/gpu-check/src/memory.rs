//! Whether a model gives back what it took: device memory after unloading is what it was before.

use std::path::Path;

use anyhow::Result;
use plugin_loader::LoadOptions;

use crate::checkpoint::Checkpoint;
use crate::device::Found;
use crate::plugins::Plugins;
use crate::report::Report;
use crate::session::Session;
use crate::shape;

/// How often a model is loaded, used and unloaded after the first time.
const ROUNDS: u32 = 3;

/// What may stay behind: allocators keep a little, and on a shared card others come and go.
const TOLERANCE_BYTES: u64 = 64 << 20;

/// Loads and unloads a small model of each kind. The first time makes the context and compiles kernels, which stay;
/// what counts is that nothing is added after it.
pub fn run(
    plugins: &Plugins,
    device: &Found,
    scratch: &Path,
    threads: u32,
    report: &mut Report,
) -> Result<()> {
    for shape in shape::tiny() {
        let subject = format!("memory after unloading {}", shape.name);
        let model_type = shape.config["model_type"].as_str().unwrap_or_default();
        let Some((plugin, architecture)) = plugins.serving(model_type) else {
            report.skipped(&subject, &format!("no plugin here serves {model_type}"));
            continue;
        };
        let checkpoint = Checkpoint::write(&shape, scratch)?;
        let options = LoadOptions { device: device.info, threads, ..LoadOptions::default() };
        let round = || -> Result<u64> {
            let mut model = plugin.load(architecture, &checkpoint.source(), &options, &mut |_, _, _| true)?;
            let tokens: Vec<u32> = (0..shape.prompt).collect();
            let mut session = Session::new(&mut model)?;
            session.last(&tokens, &[])?;
            session.last(&[1], &[])?;
            session.end();
            drop(model);
            Ok(device.used_bytes())
        };
        let outcome = round().and_then(|baseline| {
            let mut last = baseline;
            for _ in 0..ROUNDS {
                last = round()?;
            }
            Ok((baseline, last))
        });
        report.check(&subject, outcome.map_err(|error| format!("{error:#}")).and_then(judge));
    }
    Ok(())
}

fn judge((baseline, last): (u64, u64)) -> Result<String, String> {
    let kept = last.saturating_sub(baseline);
    let said = format!("{:.1} MB more than after the first of {} rounds", kept as f64 / 1e6, ROUNDS + 1);
    if kept > TOLERANCE_BYTES { Err(said) } else { Ok(said) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_told_from_noise() {
        assert!(judge((1 << 30, (1 << 30) + TOLERANCE_BYTES)).is_ok());
        assert!(judge((1 << 30, 1 << 29)).is_ok());
        assert!(
            judge((1 << 30, (1 << 30) + TOLERANCE_BYTES + 1)).is_err_and(|said| said.contains("67.1 MB"))
        );
    }
}
