//! `cortex status`: the fleet at a glance.

use std::fmt::Write as _;
use std::time::Duration;

use super::ask::Options;
use crate::server::status::{FleetStatus, NodeStatus};

const BAR: usize = 24;

/// Prints the fleet, once or every second.
pub async fn run(ask: &Options, watch: bool) -> anyhow::Result<()> {
    loop {
        let status = ask.get::<FleetStatus>("/cortex/v1/fleet").await;
        if !watch {
            return show(ask, &status?);
        }
        // Home and clear to the end: no flicker, and nothing of a longer picture stays.
        print!("\x1b[H\x1b[J");
        match status {
            Ok(status) => show(ask, &status)?,
            Err(error) => println!("{error:#}"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn show(ask: &Options, status: &FleetStatus) -> anyhow::Result<()> {
    if ask.json {
        println!("{}", serde_json::to_string(status)?);
    } else {
        print!("{}", picture(status));
    }
    Ok(())
}

/// The fleet as text.
fn picture(status: &FleetStatus) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "cortex {}  router {}  evictor {}  {} under way",
        status.version, status.router, status.evictor, status.inflight
    );
    draw_coordinator(&mut out, &status.coordinator);
    for node in &status.nodes {
        draw_node(&mut out, node);
    }
    for (model, line) in &status.loads {
        let _ = writeln!(out, "\n{model}: {line}");
    }
    if !status.changes.is_empty() {
        out.push_str("\nlately\n");
    }
    for change in status.changes.iter().take(5) {
        let text = |key: &str| change[key].as_str().unwrap_or_default().to_owned();
        let _ = writeln!(
            out,
            "  {} {} on {}: {} {}",
            text("action"),
            text("model"),
            text("node"),
            text("outcome"),
            text("reason")
        );
    }
    out
}

fn draw_coordinator(out: &mut String, standing: &crate::coordinator::Standing) {
    if let Some(fault) = &standing.fault {
        let _ = writeln!(
            out,
            "{} is lost: {fault}; what is loaded serves on, nothing is loaded or unloaded",
            standing.kind
        );
    } else if !standing.gateways.is_empty() {
        let _ = writeln!(out, "gateways {}", standing.gateways.join(", "));
    }
}

fn draw_node(out: &mut String, node: &NodeStatus) {
    let mut marks = vec![node.health.clone()];
    if node.draining {
        marks.push("draining".into());
    }
    if node.breaker_open {
        marks.push("held back".into());
    }
    let _ = writeln!(
        out,
        "\n{}  {}  {}  {} under way",
        node.name,
        marks.join(", "),
        node.endpoint,
        node.inflight
    );
    if let Some(fault) = &node.fault {
        let _ = writeln!(out, "  {fault}");
    }
    for device in &node.devices {
        let used = device.total_bytes.saturating_sub(device.free_bytes);
        let _ = writeln!(
            out,
            "  {:8} [{}] {:.1} of {:.1} GiB used  {}",
            device.id,
            bar(used, device.total_bytes),
            gib(used),
            gib(device.total_bytes),
            device.name
        );
    }
    for model in &node.models {
        let progress = model.progress.map_or_else(String::new, |share| format!(" {:.0}%", share * 100.0));
        let phase = model.phase.as_deref().map_or_else(String::new, |phase| format!(" {phase}"));
        let pinned = if model.pinned { " pinned" } else { "" };
        let failure = model.failure.as_deref().map_or_else(String::new, |why| format!("  {why}"));
        let _ = writeln!(
            out,
            "  {:40} {}{phase}{progress}{pinned}  {:.2} GiB  {} running, {} queued, {} served{failure}",
            model.id,
            format!("{:?}", model.state).to_lowercase(),
            gib(model.bytes),
            model.inflight.saturating_sub(model.queued),
            model.queued,
            model.requests_total
        );
    }
}

fn bar(used: u64, total: u64) -> String {
    let filled = if total == 0 { 0 } else { (used as f64 / total as f64 * BAR as f64).round() as usize };
    let filled = filled.min(BAR);
    format!("{}{}", "█".repeat(filled), "░".repeat(BAR - filled))
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::status::{DeviceStatus, ResidentStatus};

    #[test]
    fn the_picture_shows_what_matters() {
        let status = FleetStatus {
            nodes: vec![NodeStatus {
                name: "beast".into(),
                health: "down".into(),
                fault: Some("node beast did not answer within 2000 ms".into()),
                devices: vec![DeviceStatus {
                    id: "cuda-0".into(),
                    total_bytes: 24 << 30,
                    free_bytes: 12 << 30,
                    ..Default::default()
                }],
                models: vec![ResidentStatus { id: "smol".into(), pinned: true, ..Default::default() }],
                ..Default::default()
            }],
            loads: vec![("big".into(), "loading on beast: read 40%".into())],
            ..Default::default()
        };
        let text = picture(&status);
        for expected in ["beast", "down", "did not answer", "12.0 of 24.0 GiB", "smol", "pinned", "read 40%"]
        {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
        assert_eq!(bar(0, 0), "░".repeat(BAR));
    }
}
