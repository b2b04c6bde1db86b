//! Plugins, models and the port, as they are configured.

use std::path::Path;

use tokio::net::TcpListener;
use wire_api::node::routes;
use wire_api::node::status::Version;

use super::Finding;
use crate::catalogue::{Catalogue, Snapshot};
use crate::cli::ask::Client;
use crate::cli::plugins::scan;
use crate::config::Config;
use crate::device::plugin::device_info;
use crate::discovery::Machine;
use crate::worker::protocol::RankDevice;

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
    findings.push(port(&config.listen).await);
    findings
}

fn plugins(snapshot: &Snapshot, machine: &Machine) -> Vec<Finding> {
    let directories: Vec<String> =
        snapshot.directories.iter().map(|path| path.display().to_string()).collect();
    let usable: Vec<_> = snapshot.entries.iter().filter_map(|entry| entry.outcome.as_ref().ok()).collect();
    let cpu = device_info(&RankDevice::Cpu {
        level: machine.cpu.level,
        total_bytes: machine.memory.total_bytes,
        free_bytes: machine.memory.available_bytes,
    });
    let fits = |entry: &&crate::catalogue::Entry| {
        entry.outcome.is_ok()
            && entry
                .descriptor
                .as_ref()
                .is_some_and(|descriptor| plugin_loader::judge(descriptor, &cpu).score.is_some())
    };
    let fitting = snapshot.entries.iter().filter(fits).count();
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
            format!("none of {} plugin files fits this processor", usable.len()),
            format!(
                "install builds for cpu-v{} or lower; `neuron plugins` says more",
                machine.cpu.level.max(2)
            ),
        ));
    } else {
        let mut names: Vec<&str> = usable
            .iter()
            .flat_map(|report| &report.architectures)
            .map(|architecture| architecture.name.as_str())
            .collect();
        names.sort_unstable();
        names.dedup();
        findings.push(Finding::good(
            "plugins",
            format!("{fitting} files fit this processor and serve {}", names.join(", ")),
        ));
    }
    let refused = snapshot.entries.iter().filter_map(|entry| entry.outcome.as_ref().err());
    findings.extend(refused.map(|refusal| {
        Finding::notice("plugins", format!("refused: {refusal}"), "replace the file or take it away")
    }));
    findings
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
    fn no_plugins_is_broken() {
        let snapshot = Snapshot { directories: vec!["/nowhere".into()], ..Snapshot::default() };
        let findings = plugins(&snapshot, &crate::discovery::look());
        assert_eq!(findings[0].verdict, Verdict::Broken);
        assert!(findings[0].message.contains("/nowhere"));
    }
}
