//! The bundle's plugins: which there are, which of them is for this device, and what they say where there is none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use plugin_loader::{
    Contender, DeviceInfo, DeviceKind, HostServices, Level, Manifest, Plugin, Policy, choose_build,
    cpu_device, judge, scan,
};

use crate::report::Report;

/// The plugins chosen for a device, by name.
pub struct Plugins(BTreeMap<String, Plugin>);

impl Plugins {
    /// The plugin and the architecture's place in it that serve a `model_type`.
    pub fn serving(&self, model_type: &str) -> Option<(Plugin, usize)> {
        self.0.values().find_map(|plugin| Some((*plugin, plugin.architecture_for_model_type(model_type)?)))
    }
}

/// The files of the bundle by plugin name.
fn contenders(bundle: &Path) -> Result<BTreeMap<String, Vec<Contender>>> {
    let folder = bundle.join("plugins");
    let mut by_name: BTreeMap<String, Vec<Contender>> = BTreeMap::new();
    for found in scan([&folder]) {
        let descriptor = match found.descriptor {
            Ok(descriptor) => descriptor,
            Err(refusal) => {
                println!("refused: {refusal}");
                continue;
            }
        };
        let manifest = Manifest::beside(&found.path).map_err(anyhow::Error::msg)?;
        let name = descriptor.name.clone();
        by_name.entry(name).or_default().push(Contender { path: found.path, descriptor, manifest });
    }
    if by_name.is_empty() {
        bail!("there is no plugin in {}; name the bundle with --bundle", folder.display());
    }
    Ok(by_name)
}

fn services() -> HostServices {
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    let say = |event: plugin_loader::LogEvent<'_>| println!("  {}: {}", event.target, event.message);
    HostServices::new(say, Level::WARN, threads)
}

/// Opens the best build of every plugin for the device, and asks each whether it can compute there.
pub fn open(bundle: &Path, device: &DeviceInfo, report: &mut Report) -> Result<Plugins> {
    let services = services();
    let mut opened = BTreeMap::new();
    for (name, contenders) in contenders(bundle)? {
        let choice = choose_build(&contenders, device);
        let Some(path) = choice.chosen else {
            let reasons: Vec<String> = choice.considered.into_iter().map(|one| one.verdict.reason).collect();
            report.skipped(&format!("plugin {name}"), &reasons.join("; "));
            continue;
        };
        let plugin = Plugin::open_under(&path, &services, &Policy::anything())?;
        let outcome = plugin.probe(device).map(|()| "").map_err(|error| error.to_string());
        println!(
            "plugin {name}: {}, {}",
            path.display(),
            outcome.as_ref().err().map_or("ready", String::as_str)
        );
        report.plugin(&name, &path, plugin.build_info());
        let works = outcome.is_ok();
        report.check(&format!("plugin {name} can compute here"), outcome);
        if works {
            opened.insert(name, plugin);
        }
    }
    Ok(Plugins(opened))
}

/// Where there is no GPU: opens every build for one all the same, and prints what it says to a card of its kind.
pub fn say_without_device(bundle: &Path) -> Result<()> {
    let services = services();
    for contender in contenders(bundle)?.into_values().flatten() {
        let path = &contender.path;
        let Some(capability) = contender.descriptor.machine_code.first() else { continue };
        let device = DeviceInfo {
            kind: DeviceKind::CUDA,
            compute_capability: u32::from(*capability),
            driver: 0,
            ..cpu_device()
        };
        let plugin = Plugin::open_under(path, &services, &Policy::anything())
            .with_context(|| format!("{} must open without a GPU", path.display()))?;
        let answer = match plugin.probe(&device) {
            Ok(()) => judge(&contender, &device).reason,
            Err(error) => error.to_string(),
        };
        println!("{}: opens; {answer}", shown(path));
    }
    Ok(())
}

/// Build and file name.
fn shown(path: &Path) -> String {
    let parts: Vec<_> = path.iter().rev().take(2).collect();
    parts.into_iter().rev().collect::<PathBuf>().display().to_string()
}
