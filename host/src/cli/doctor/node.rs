//! Plugins, models and the port, as they are configured.

use std::path::Path;

use tokio::net::TcpListener;
use wire_api::node::routes;
use wire_api::node::status::Version;

use super::Finding;
use crate::catalogue::{Catalogue, Chosen, DeviceReport, Snapshot, explain};
use crate::cli::ask::Client;
use crate::cli::plugins::scan;
use crate::config::Config;
use crate::discovery::Machine;
use crate::discovery::gpu::find;

pub(super) async fn check(config: &Config, machine: &Machine) -> Vec<Finding> {
    let mut findings = Vec::new();
    match config.plugins.catalogue_options() {
        Err(error) => {
            findings.push(Finding::broken("plugins", error.to_string(), "correct plugins.allow_list"))
        }
        Ok(options) => findings.extend(plugins(&*scan(Catalogue::new(options)).await, machine)),
    }
    if config.plugins.allow_unowned {
        findings.push(Finding::notice(
            "plugins",
            "plugins are used whoever may write to them",
            "leave plugins.allow_unowned out outside of development",
        ));
    }
    findings.extend(config.models.iter().filter_map(|model| missing(model.name(), &model.source)));
    findings.extend(config.models.iter().flat_map(|model| absent(model.name(), &model.devices, machine)));
    findings.push(port(&config.listen).await);
    findings
}

fn plugins(snapshot: &Snapshot, machine: &Machine) -> Vec<Finding> {
    let directories: Vec<String> =
        snapshot.directories.iter().map(|path| path.display().to_string()).collect();
    let usable: Vec<_> = snapshot.entries.iter().filter_map(|entry| entry.outcome.as_ref().ok()).collect();
    let reports = explain(snapshot, machine);
    let fitting = reports[0].served.iter().filter(|(_, chosen)| chosen.is_ok()).count();
    let mut findings = Vec::new();
    if usable.is_empty() {
        findings.push(Finding::broken(
            "plugins",
            format!("no usable plugin in {}", directories.join(", ")),
            "install some there, or name their directory with --plugins or NEURON_PLUGINS",
        ));
    } else if fitting == 0 {
        findings.push(Finding::broken(
            "plugins",
            format!("none of {} plugin files serves anything on this processor", usable.len()),
            format!(
                "install builds for cpu-v{} or lower; `neuron plugins` says more",
                machine.cpu.level.max(2)
            ),
        ));
    } else {
        findings.push(Finding::good("plugins", format!("on this processor: {}", on(&reports[0]))));
    }
    findings.extend(reports[1..].iter().filter(|report| report.fault.is_none()).map(gpu));
    let refused = snapshot.entries.iter().filter_map(|entry| entry.outcome.as_ref().err());
    findings.extend(refused.map(|refusal| {
        Finding::notice("plugins", format!("refused: {refusal}"), "replace the file or take it away")
    }));
    let doubted = snapshot.entries.iter().filter_map(|entry| entry.manifest.as_ref().err());
    findings
        .extend(doubted.map(|why| Finding::notice("plugins", why, "install plugin and manifest together")));
    findings
}

/// What serves each architecture on a device: `llama (ada), qwen3 (ada)`.
fn on(report: &DeviceReport) -> String {
    let served = report.served.iter().filter_map(|(name, chosen)| Some((name, chosen.as_ref().ok()?)));
    served.map(|(name, chosen)| format!("{name} ({})", chosen.build)).collect::<Vec<_>>().join(", ")
}

/// What computes on a GPU, and with the build made for it or with another.
fn gpu(report: &DeviceReport) -> Finding {
    let named = format!("on {} ({})", report.id, report.name);
    if !report.serves_something() {
        let why = report.served.iter().find_map(|(_, chosen)| chosen.as_ref().err());
        return Finding::notice(
            "plugins",
            why.map_or_else(|| format!("{named}: nothing"), |why| format!("{named}: nothing; {why}")),
            "install the build made for it, as <plugin directory>/<build>/<name>.so",
        );
    }
    let mut warnings =
        report.served.iter().filter_map(|(_, chosen)| chosen.as_ref().ok()).flat_map(Chosen::warnings);
    match warnings.next() {
        Some(warning) => Finding::notice(
            "plugins",
            format!("{named}: {}; {warning}", on(report)),
            "install the build made for it; until then the first load takes long",
        ),
        None => Finding::good("plugins", format!("{named}: {}", on(report))),
    }
}

/// A configured model that is no hub id and not there.
fn missing(name: &str, source: &str) -> Option<Finding> {
    let is_path = source.starts_with(['/', '.']);
    (is_path && !Path::new(source).exists()).then(|| {
        Finding::broken(
            "models",
            format!("{name}: {source} is not there"),
            "correct its source in [[models]]",
        )
    })
}

/// Devices a configured model names and cannot have.
fn absent(name: &str, devices: &[String], machine: &Machine) -> Vec<Finding> {
    let refused = devices.iter().filter_map(|device| find(&machine.gpus, device).err());
    refused
        .map(|error| {
            Finding::broken("models", format!("{name}: {error}"), "correct its devices in [[models]]")
        })
        .collect()
}

async fn port(listen: &str) -> Finding {
    let error = match TcpListener::bind(listen).await {
        Ok(_) => return Finding::good("port", format!("{listen} is free")),
        Err(error) => error,
    };
    let running = match Client::new(listen) {
        Ok(client) => client.get::<Version>(routes::VERSION).await.ok(),
        Err(_) => None,
    };
    match running {
        Some(version) => {
            Finding::good("port", format!("{} {} runs at {listen}", version.name, version.version))
        }
        None => Finding::broken(
            "port",
            format!("{listen}: {error}"),
            "end what listens there, or choose another address: --listen or `listen`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[tokio::test]
    async fn a_port_that_is_taken_is_broken() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap().to_string();
        // Closes what connects, so that nothing answers there.
        tokio::spawn(async move { while taken.accept().await.is_ok() {} });
        assert_eq!(port(&address).await.verdict, Verdict::Broken);
        assert_eq!(port("127.0.0.1:0").await.verdict, Verdict::Good);
    }

    #[test]
    fn models_that_are_not_there_are_named() {
        assert!(missing("a", "/no/such/model").is_some());
        assert!(missing("a", "org/name").is_none());
        assert!(missing("a", "/").is_none());
    }

    #[test]
    fn devices_that_are_not_there_are_named() {
        let machine = crate::discovery::look();
        assert!(absent("a", &["cpu".into()], &machine).is_empty());
        let findings = absent("a", &["cpu".into(), "cuda-99".into()], &machine);
        assert_eq!((findings.len(), findings[0].verdict), (1, Verdict::Broken));
        assert!(findings[0].message.starts_with("a: the device cuda-99 is not here"));
    }

    #[test]
    fn no_plugins_is_broken() {
        let snapshot = Snapshot { directories: vec!["/nowhere".into()], ..Snapshot::default() };
        let findings = plugins(&snapshot, &crate::discovery::look());
        assert_eq!(findings[0].verdict, Verdict::Broken);
        assert!(findings[0].message.contains("/nowhere"));
    }
}
